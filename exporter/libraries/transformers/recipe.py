"""The recipe that an image processor of transformers follows.

The engine resizes by Pillow, so the processor that is reproduced is the one with Pillow as its backend. The one with
torchvision, which transformers takes where it is installed, rounds once where Pillow rounds twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, cast

from PIL.Image import Resampling
from transformers.image_processing_backends import PilBackend

from ....errors import UsageError
from ...models.recipe import pair
from ...spec import Recipe

__all__ = ["EXAMPLE", "of_processor", "resized"]

EXAMPLE = "--preprocess mean=0.5,std=0.5,resize=squash:224,crop=224,interpolation=bilinear"

# Their own resize is Pillow's, too, as long as they keep no aspect ratio and pad nothing.
_LIKE_PLAIN = frozenset({"BeitImageProcessorPil", "DPTImageProcessorPil"})
# With torchvision alone: rescaled before it is resized, in floating point.
_FLOATING = frozenset({"DINOv3ViTImageProcessor"})

Mode = Literal["center", "squash", "border"]


def of_processor(processor: Any, name: str) -> tuple[Recipe, str]:
    """The recipe, and what it reproduces in words.

    Args:
        processor: an image processor with Pillow's backend.
        name: the model's name, for errors.

    Raises:
        UsageError: it does something that no recipe says; with what that is, and what to do.
    """
    kind = type(processor).__name__
    given = processor.to_dict()
    if odd := _odd(processor, kind, given):
        raise UsageError(f"{name}: its image processor ({kind}) {odd}; say what the graph gets instead: {EXAMPLE}")
    crop = _edges(given.get("crop_size")) if given.get("do_center_crop") else None
    resize, mode = _resize(given, crop, name)
    recipe = Recipe(
        resize=resize,
        crop=crop or resize,
        crop_mode=mode,
        interpolation=cast(Any, Resampling(given.get("resample") or Resampling.BILINEAR).name.lower()),
        mean=_three(given, "image_mean", 0.0, name),
        std=_three(given, "image_std", 1.0, name),
        crop_rounding="down",
        transparency="white" if given.get("do_convert_rgb") else "dropped",
    )
    said = f"{kind.removesuffix('Pil')} of transformers"
    if kind in _FLOATING:
        return recipe, f"{said}, which resizes by torchvision; here Pillow resizes, at most 1 of 255 from it"
    return recipe, f"{said}, with Pillow as its backend"


def resized(recipe: Recipe, size: tuple[int, int]) -> Recipe:
    """The recipe for another picture size: what is cut off stays the same share."""
    edges = [
        math.floor(edge * before / crop) for edge, before, crop in zip(size, recipe.resize, recipe.crop, strict=True)
    ]
    changes = {"resize": tuple(edges), "crop": size}
    return Recipe(**{f: changes.get(f, getattr(recipe, f)) for f in Recipe.__dataclass_fields__})


def _odd(processor: Any, kind: str, given: Mapping[str, Any]) -> str:
    """What a processor does that no recipe says; "" for nothing."""
    plain = type(processor)._preprocess is getattr(PilBackend, "_preprocess", None)
    if given.get("keep_aspect_ratio"):
        return "gives every picture a size of its own (keep_aspect_ratio)"
    if "max_num_patches" in given:
        return "gives every picture a grid of its own (max_num_patches)"
    if not (plain or kind in _LIKE_PLAIN or kind in _FLOATING):
        return "does more than resize, crop and normalise"
    if given.get("do_pad"):
        return "pads pictures (do_pad)"
    if not given.get("do_resize", True):
        return "resizes nothing (do_resize is false)"
    factor = given.get("rescale_factor", 1 / 255)
    if not given.get("do_rescale", True) or abs(factor * 255 - 1) > 1e-6:
        return f"does not scale pixels to 0..1 (rescale_factor {factor:g})"
    return ""


def _resize(given: Mapping[str, Any], crop: tuple[int, int] | None, name: str) -> tuple[tuple[int, int], Mode]:
    size = given.get("size") or {}
    if isinstance(size, int):
        size = {"height": size, "width": size}
    if size.get("shortest_edge") and not size.get("longest_edge") and crop is not None:
        return (int(size["shortest_edge"]),) * 2, "center"
    if size.get("height") and size.get("width"):
        return (int(size["height"]), int(size["width"])), "squash"
    raise UsageError(
        f"{name}: its image processor resizes to {dict(size)}, which gives pictures of different sizes; say what the "
        f"graph gets instead: {EXAMPLE}"
    )


def _edges(size: Any) -> tuple[int, int] | None:
    if isinstance(size, Mapping):
        size = (size.get("height"), size.get("width"))
    return None if size is None else pair(size, "crop_size")


def _three(given: Mapping[str, Any], key: str, neutral: float, name: str) -> tuple[float, float, float]:
    if not given.get("do_normalize", True):
        return (neutral,) * 3
    values = given.get(key)
    values = [values] * 3 if isinstance(values, int | float) else list(values or ())
    values = values * 3 if len(values) == 1 else values
    if len(values) != 3:
        raise UsageError(f"{name}: its image processor has {key}={given.get(key)}, not one or three numbers; {EXAMPLE}")
    return float(values[0]), float(values[1]), float(values[2])

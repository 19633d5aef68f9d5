"""Parse a preprocessing recipe that the user gives instead of the model's own: from text to `Recipe`.

The recipe of Hebbar et al. (Interpreting Vision Transformers), for example, is
`mean=imagenet,std=imagenet,resize=squash:256,crop=224,interpolation=bicubic`.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping

from ...errors import UsageError
from ..spec import Recipe

__all__ = ["override", "pair"]

# The two normalisations that nearly every model was trained with, by their usual names.
_NAMED = {
    ("mean", "imagenet"): (0.485, 0.456, 0.406),
    ("std", "imagenet"): (0.229, 0.224, 0.225),
    ("mean", "inception"): (0.5, 0.5, 0.5),
    ("std", "inception"): (0.5, 0.5, 0.5),
}
_EXAMPLE = "mean=0.485,0.456,0.406,std=0.229,0.224,0.225,resize=squash:256,crop=224,interpolation=bicubic"


def override(recipe: Recipe, preprocess: str | Mapping[str, object]) -> Recipe:
    """The recipe with the named parts replaced.

    Args:
        recipe: the model's own.
        preprocess: any subset of `mean=..,std=..,resize=[center:|squash:|border:]H[xW],crop=H[xW],interpolation=..`,
            as text or as a mapping with the same keys.

    Raises:
        UsageError: an unknown key, a value that cannot be read, or a recipe that `Recipe.check` refuses.
    """
    parts = _split(preprocess) if isinstance(preprocess, str) else {k: _text(v) for k, v in preprocess.items()}
    changes: dict[str, object] = {}
    for key, text in parts.items():
        match key:
            case "mean" | "std" if not re.search("bgr|rgb", text, re.IGNORECASE):
                changes[key] = _triple(key, text)
            case "resize":
                mode, colon, size = text.rpartition(":")
                changes["resize"] = pair(size, "--preprocess resize")
                if colon:
                    changes["crop_mode"] = _choice("crop_mode", mode)
            case "crop":
                changes["crop"] = pair(text, "--preprocess crop")
            case "interpolation" | "crop_mode":
                changes[key] = _choice(key, text)
            case _ if re.search("bgr|rgb|channel|order", f"{key} {text}", re.IGNORECASE):
                raise UsageError(
                    f"--preprocess: {key}={text}: the graph takes RGB; write mean and std as red, green, blue"
                )
            case _:
                raise UsageError(
                    f"--preprocess: {key!r} is none of mean, std, resize, crop, crop_mode, interpolation; "
                    f"write for example {_EXAMPLE}"
                )
    changed = dataclasses.replace(recipe, **typing.cast("dict[str, typing.Any]", changes))
    changed.check("--preprocess")
    return changed


def pair(size: object, where: str) -> tuple[int, int]:
    """(height, width) of `224`, `"224"`, `"384x512"`, `"384,512"` or a pair.

    Raises:
        UsageError: it has another form or is not positive. `where` names the option.
    """
    text = _text(size)
    found = re.fullmatch(r"\s*(\d+)\s*(?:[x,\s]\s*(\d+)\s*)?", text)
    edges = tuple(int(g) for g in found.groups() if g) if found else ()
    if not edges or min(edges) < 1:
        raise UsageError(f"{where}: {text!r} is no size; write one edge (224) or height and width (384,512)")
    return edges[0], edges[-1]


def _split(text: str) -> dict[str, str]:
    """Split at commas that start a new `key=`; other commas separate numbers."""
    parts: dict[str, str] = {}
    for part in re.split(r"[,;]\s*(?=[A-Za-z_]+\s*=)", text.strip()):
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"--preprocess: {part!r} is no key=value; write for example {_EXAMPLE}")
        parts[key.strip()] = value.strip()
    return parts


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _triple(key: str, text: str) -> tuple[float, float, float]:
    if named := _NAMED.get((key, text.lower())):
        return named
    try:
        numbers = [float(n) for n in re.split(r"[,/\s]+", text.strip())]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3:
        raise UsageError(
            f"--preprocess: {key}={text} is not one or three numbers (red, green, blue) for pixels in 0..1, nor "
            "imagenet or inception"
        )
    return numbers[0], numbers[1], numbers[2]


def _choice(field: str, text: str) -> str:
    allowed = typing.get_args(typing.get_type_hints(Recipe)[field])
    if text not in allowed:
        raise UsageError(f"--preprocess: {field} {text!r} is none of {', '.join(allowed)}")
    return text

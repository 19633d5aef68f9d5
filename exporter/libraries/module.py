"""A model of one's own: any module whose blocks pass their attention through `attn_drop`, with a recipe given.

Tokens are read as timm's models name them (`cls_token`, `reg_token`, `pos_embed`). What is named otherwise is found:
the size of a patch by the first convolution whose stride is its kernel, what the head reads by the gradient of its
output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from ...errors import UsageError, first_line
from ..models.recipe import override, pair
from ..spec import Pooling, Recipe
from .protocol import Facts, Library, Model, Parts, Request
from .timm import facts, parts

__all__ = ["LIBRARY"]

_EXAMPLE = 'preprocess="mean=imagenet,std=imagenet,resize=squash:224,crop=224,interpolation=bicubic"'


class _Module:
    name = "module"
    has_texts = False

    def versions(self) -> Mapping[str, str]:
        return {}

    def build(self, name: str, request: Request) -> Model:
        raise UsageError(f"module:{name}: a model of one's own is passed from Python: attlas.export(module, ...)")

    def adopt(self, module: nn.Module, request: Request) -> Model:
        name = type(module).__name__
        recipe = _recipe(name, request)
        images = torch.zeros(2, 3, *recipe.crop)
        try:
            with torch.no_grad():
                out = module(images)
        except Exception as error:  # anything can go wrong in a module that is not ours
            height, width = recipe.crop
            raise UsageError(
                f"{name}: does not take pixels (2, 3, {height}, {width}): {first_line(error)}; wrap it in a module "
                "that does, and returns one tensor"
            ) from error
        if _fixed(module, images):
            raise UsageError(
                f"{name}: fixes the number of images where it runs, as len(x) or int(x.shape[0]) do; write x.shape[0]"
            )
        if not isinstance(out, Tensor) or out.ndim not in (2, 3, 4):
            raise UsageError(
                f"{name}: returns {type(out).__name__}, not one tensor (image, value) or (image, token, channel); wrap "
                "it in a module that returns that"
            )
        head: Any = "logits" if request.num_classes else "features"
        if request.num_classes and out.shape[-1] != request.num_classes:
            raise UsageError(f"num_classes={request.num_classes}: {name} returns {out.shape[-1]} values")
        notes = () if head == "logits" else (
            f"the output of {name} is taken for features; pass num_classes={out.shape[-1]} if these are classes",
        )  # fmt: skip
        return Model(module, self, name, "", "checkpoint", recipe.crop, recipe, (), head, False, "", notes)

    def refusal(self, name: str, reason: str) -> UsageError:
        return UsageError(
            f"{name}: cannot be exported: {reason}; a block's attention is found if its module passes the "
            "probabilities through a child `attn_drop` (nn.Dropout or nn.Identity) before they multiply the values"
        )

    def parts(self, model: Model) -> Parts:
        return parts.find(model)

    def facts(self, model: Model, found: Parts) -> Facts:
        trunk: Any = found.trunk
        if getattr(trunk, "patch_embed", None) is None and getattr(trunk, "patch_size", None) is None:
            trunk.patch_size = _patch_size(model)
        known = facts.describe(model, found)
        if known.pooling != "none" or hasattr(model.module, "global_pool"):
            return known
        return dataclasses.replace(known, pooling=_read(model, found, known))


def _recipe(name: str, request: Request) -> Recipe:
    asked = request.preprocess
    text = asked if isinstance(asked, str) else "".join(f"{key}=" for key in asked or {})
    if not all(f"{key}=" in text for key in ("mean", "std", "resize")):
        raise UsageError(f"{name}: a module has no recipe of its own; pass {_EXAMPLE}, with what it was trained with")
    size = pair(224 if request.img_size is None else request.img_size, "img_size")
    recipe = override(Recipe(size, size, "squash", "bicubic", (0.5,) * 3, (0.5,) * 3), asked or "")
    if request.img_size is None and "crop=" not in text:
        recipe = dataclasses.replace(recipe, crop=recipe.resize)
    if request.img_size is not None and recipe.crop != size:
        raise UsageError(f"{name}: crop {recipe.crop[0]}x{recipe.crop[1]} is not img_size {size[0]}x{size[1]}")
    return recipe


def _fixed(module: nn.Module, images: Tensor) -> bool:
    """Whether the module takes the number of images for a constant, so that its graph would take no other."""
    shapes = ShapeEnv()
    mode = FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)
    context: Any = StatelessSymbolicContext([DimDynamic.DYNAMIC, *[DimDynamic.STATIC] * 3])
    with torch.no_grad(), mode:
        module(mode.from_tensor(images, symbolic_context=context))
    return bool(shapes.replacements)


def _patch_size(model: Model) -> tuple[int, int]:
    for part in model.module.modules():
        if isinstance(part, nn.Conv2d) and part.kernel_size == part.stride and max(part.stride) > 1:
            return part.stride[0], part.stride[1]
    raise model.library.refusal(model.name, "no convolution cuts the picture into patches (stride equal to kernel)")


def _read(model: Model, found: Parts, facts: Facts) -> Pooling:
    """What the head reads: the tokens after the last block on which its output depends."""
    leaf: list[Tensor] = []

    def hook(module: nn.Module, given: object, tokens: Tensor) -> Tensor:
        leaf[:] = [tokens.detach().requires_grad_()]
        return leaf[0]

    handle = found.ends[-1].register_forward_hook(hook)
    try:
        with torch.enable_grad():
            images = torch.rand(1, 3, *model.image_size, generator=torch.Generator().manual_seed(0))
            out = model.module(images)
            if out.ndim != 2 or not leaf or leaf[0].shape[1] != facts.tokens:
                return "none"
            weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
            each = torch.autograd.grad((out * weights).sum(), leaf[0])[0][0].abs().sum(-1)
    finally:
        handle.remove()
    used = each > 1e-6 * each.max()
    patches, prefix = each[len(facts.prefix) :], each[: len(facts.prefix)]
    read = {kind for kind, one in zip(facts.prefix, used, strict=False) if one}
    if not used[len(facts.prefix) :].any():
        return "class" if read == {"class"} else "distilled" if read == {"class", "distillation"} else "none"
    if patches.max() > 10 * patches.min():  # weighted by what they hold
        return "none"
    if not read:
        return "mean"
    if read == {"class"} and prefix[0] > 3 * patches.median():
        return "class_mean"
    return "mean_all" if used.all() else "none"


LIBRARY: Library = _Module()

"""Facts that a built model of timm gives about its tokens: kinds, grid, pooling and positions. Its name is not used."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ....errors import UsageError
from ...models.recipe import pair
from ...spec import Pooling, Position
from ..protocol import Facts, Model, Parts, indivisible
from .build import refusal

__all__ = ["describe"]


def describe(model: Model, parts: Parts) -> Facts:
    """Read tokens, grid, pooling and positions from the model itself.

    Raises:
        UsageError: the model has prefix tokens of an unknown kind, or no one grid of patches.
    """
    trunk = parts.trunk
    # A class token with its own blocks is not among the tokens of the other blocks.
    prefix = () if parts.class_owners else _prefix(model, trunk)
    grid = _grid(model, trunk)
    patch = _patch_size(model, trunk, grid)
    embedding = _position_embedding(trunk, len(prefix), grid)
    return Facts(prefix, grid, patch, _pooling(model.module), _position(trunk, embedding), embedding)


def _prefix(model: Model, trunk: nn.Module) -> tuple[str, ...]:
    """Kinds of the prefix tokens, in the order that all timm models use."""
    modules = [trunk, getattr(trunk, "embeds", None), model.module]
    kinds: list[str] = []
    for attribute, kind in (("cls_token", "class"), ("dist_token", "distillation"), ("reg_token", "register")):
        found = next((t for m in modules if isinstance(t := getattr(m, attribute, None), Tensor)), None)
        kinds += [kind] * (0 if found is None else found.shape[-2])
    counted = int(getattr(trunk, "num_prefix_tokens", getattr(model.module, "num_prefix_tokens", len(kinds))))
    if counted != len(kinds):
        raise refusal(
            model.full_name,
            f"it puts {counted} tokens before the patches, of which {len(kinds)} are known "
            f"({', '.join(kinds) or 'none'})",
        )
    return tuple(kinds)


def _grid(model: Model, trunk: nn.Module) -> tuple[int, int]:
    """Rows and columns of patch tokens; models that accept any size only have the size of a patch."""
    height, width = model.image_size
    embed = getattr(trunk, "patch_embed", None) or getattr(trunk, "embeds", None)
    grid, built_for = getattr(embed, "grid_size", None), getattr(embed, "img_size", None)
    # A tag may have another picture size than its architecture's default, and its grid is that of its own size.
    if grid is None or (built_for is not None and pair(built_for, "input size") != model.image_size):
        patch = getattr(embed, "patch_size", None) or getattr(trunk, "patch_size", None)
        if patch is None:
            raise refusal(model.full_name, "it has no one grid of patches (convolutional, or in stages)")
        rows, columns = pair(patch, "patch size")
        if height % rows or width % columns:
            raise UsageError(
                f"{model.full_name}: its patch {rows}x{columns} does not divide the image {height}x{width}; "
                "pass --img-size with multiples of it"
            )
        grid = (height // rows, width // columns)
    return int(grid[0]), int(grid[1])


def _patch_size(model: Model, trunk: nn.Module, grid: tuple[int, int]) -> tuple[int, int]:
    """(height, width) in pixels of one token: the patch, times the stem's reduction if there is a stem."""
    ratio = getattr(getattr(trunk, "patch_embed", None), "feat_ratio", None)
    own = ratio(as_scalar=False) if ratio is not None else None
    patch = pair(own, "patch size") if own else (model.image_size[0] // grid[0], model.image_size[1] // grid[1])
    covered = (patch[0] * grid[0], patch[1] * grid[1])
    # Some tags have such a size by default (384 with patches of 14): they were trained without the last pixels.
    if model.resized and covered != model.image_size:
        raise indivisible(model.name, model.image_size, patch)
    return patch


def _pooling(module: nn.Module) -> Pooling:
    if getattr(module, "head_dist", None) is not None:
        return "distilled"
    match getattr(module, "global_pool", ""):
        case "token":
            return "class"
        case "avg" | "avgmax":
            return "mean_all" if getattr(module, "pool_include_prefix", False) else "mean"
        case "max":
            return "max"
        case "map" | "prr":
            return "pool"
        case _:
            return "none"


def _position(trunk: nn.Module, embedding: Tensor | None) -> Position:
    """The position encoding. If a model has both rotary and absolute, rotary: it acts in every block."""
    if any(getattr(trunk, name, None) is not None for name in ("rope", "rotary_emb", "rope_embed")):
        return "rotary"
    if any("rel_pos" in name or "relative_position" in name for name, _ in trunk.named_parameters()):
        return "relative"
    return "none" if embedding is None else "absolute"


def _position_embedding(trunk: nn.Module, prefix: int, grid: tuple[int, int]) -> Tensor | None:
    """The learned absolute embedding (token or patch, channel), resampled to the grid as the model itself does it."""
    patches = math.prod(grid)
    embeds, own = getattr(trunk, "embeds", None), getattr(trunk, "pos_embed", None)
    if isinstance(own, Tensor) and own.ndim == 3 and own.shape[1] in (patches, patches + prefix):
        return own.detach()[0]
    with torch.no_grad():
        if embeds is not None:
            apply = getattr(embeds, f"_apply_{getattr(embeds, 'pos_embed_type', '')}_pos_embed", None)
            if apply is None:
                return None
            zeros = torch.zeros(1, patches, int(embeds.embed_dim))
            apply(zeros, grid_size=list(grid))
            return zeros[0]
        if isinstance(own, Tensor) and hasattr(trunk, "pos_embed_grid_size"):
            zeros = torch.zeros(1, *grid, own.shape[-1])
            return trunk._pos_embed(zeros)[0][0]  # type: ignore[operator, no-any-return]
        table = getattr(getattr(trunk, "patch_embed", None), "_position_embeddings", None)
        if table is not None:
            ys, xs = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
            return table(torch.stack([xs.flatten(), ys.flatten()], -1)[None], None)[0]  # type: ignore[no-any-return]
    return None

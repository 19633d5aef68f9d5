"""transformers' adapter."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ....errors import UsageError
from ...models.recipe import pair
from ...spec import Pooling, Position
from ..protocol import Facts, Library, Model, Parts, Request
from .build import adopt, build, vision_config
from .kinds import KINDS
from .towers import attentions

__all__ = ["LIBRARY"]

Show = Callable[[Tensor], None]

# The tokens before the patches, by the names of their weights in the embeddings, in the order of the sequence.
_PREFIX = (
    ("cls_token", "class"),
    ("class_embedding", "class"),
    ("distillation_token", "distillation"),
    ("register_tokens", "register"),
)
_NORMS = ("layernorm", "norm", "post_layernorm")


class _Transformers:
    name = "transformers"
    has_texts = False

    def versions(self) -> Mapping[str, str]:
        return {"transformers": transformers.__version__}

    def build(self, name: str, request: Request) -> Model:
        return build(self, name, request)

    def adopt(self, module: nn.Module, request: Request) -> Model:
        return adopt(self, module, request)

    def refusal(self, name: str, reason: str) -> UsageError:
        return UsageError(
            f"{name}: cannot be exported: {reason}; of transformers these types can: {', '.join(sorted(KINDS))}"
        )

    def parts(self, model: Model) -> Parts:
        trunk = _trunk(model.module)
        found = attentions(trunk)
        if not found:
            raise self.refusal(model.full_name, "it has no attention that transformers' attention function computes")
        owners: dict[int, list[nn.Module]] = {}
        for path, part in found:
            owners.setdefault(next(int(name) for name in path.split(".") if name.isdigit()), []).append(part)
        first = found[0][0].split(".")
        at = next(i for i, name in enumerate(first) if name.isdigit())
        blocks = list(trunk.get_submodule(".".join(first[:at])).children())
        norms = [n for name in _NORMS if isinstance(n := getattr(trunk, name, None), nn.Module)]
        head = getattr(trunk, "head", None)
        pool = isinstance(getattr(head, "probe", None), Tensor) and _pooling(model) == "pool"
        after = {id(part): _projection(trunk, path, part) for path, part in found}
        return Parts(
            trunk,
            blocks,
            owners,
            [blocks[-1], *norms],
            pool=(lambda show: _pool_hooks(head, show)) if pool and head is not None else None,
            projection=lambda owner: after[id(owner)],
        )

    def facts(self, model: Model, parts: Parts) -> Facts:
        embeddings: Any = parts.trunk.embeddings
        prefix: list[str] = []
        for attribute, kind in _PREFIX:
            token = getattr(embeddings, attribute, None)
            if isinstance(token, Tensor):
                prefix += [kind] * (token.shape[-2] if token.ndim > 1 else 1)
        patch = pair(vision_config(parts.trunk).patch_size, "patch size")
        grid = model.image_size[0] // patch[0], model.image_size[1] // patch[1]
        table = _positions(embeddings, prefix, grid, model.image_size)
        position = _position(parts.trunk, table)
        return Facts(tuple(prefix), grid, patch, _pooling(model), position, table)


def _trunk(module: nn.Module) -> nn.Module:
    """The module that turns pixels into tokens: it has `embeddings`, and the blocks."""
    return next(part for part in module.modules() if isinstance(getattr(part, "embeddings", None), nn.Module))


def _projection(trunk: nn.Module, path: str, part: nn.Module) -> nn.Module | None:
    """The output projection of an attention: its own, or that of the module around it."""
    for name in ("o_proj", "out_proj"):
        if isinstance(own := getattr(part, name, None), nn.Module):
            return own
    around = trunk.get_submodule(path.rpartition(".")[0])
    dense = getattr(getattr(around, "output", None), "dense", None)
    return dense if isinstance(dense, nn.Module) else None


def _pooling(model: Model) -> Pooling:
    """What the head reads, or the tower's own pooled output without one."""
    own: Any = model.module.model
    config, name = own.config, type(own).__name__
    kind = KINDS.get(config.model_type)
    if kind is None or name.endswith("Backbone"):
        return "none"
    pooling = kind.heads.get(name, kind.pooling)
    if config.model_type == "beit" and not config.use_mean_pooling:
        return "class"
    if pooling == "pool" and not vision_config(own).vision_use_head:
        return "none"
    return pooling


def _position(trunk: nn.Module, table: Tensor | None) -> Position:
    if any("rope" in name for name, _ in trunk.named_modules()):
        return "rotary"
    if any("relative_position" in name for name, _ in trunk.named_parameters()):
        return "relative"
    return "none" if table is None else "absolute"


def _positions(embeddings: Any, prefix: list[str], grid: tuple[int, int], size: tuple[int, int]) -> Tensor | None:
    """The learned absolute embedding (token or patch, channel), resampled as the model does it."""
    patches = math.prod(grid)
    own = next((getattr(embeddings, n, None) for n in ("position_embeddings", "position_embedding")
                if getattr(embeddings, n, None) is not None), None)  # fmt: skip
    if own is None:
        return None
    weight = own.weight if isinstance(own, nn.Embedding) else own[0]
    table: Tensor
    with torch.no_grad():
        if hasattr(embeddings, "resize_positional_embeddings"):
            table = embeddings.resize_positional_embeddings()[0]  # fixed for this grid
        elif hasattr(embeddings, "_resize_pos_embed"):
            table = embeddings._resize_pos_embed(weight[None], *grid)[0]
        else:
            known = patches + sum(kind != "register" for kind in prefix)
            tokens = torch.zeros(1, known, weight.shape[-1], device=weight.device)
            table = embeddings.interpolate_pos_encoding(tokens, *size)[0]
    return table if table.shape[0] == patches + len(prefix) else table[-patches:]


def _pool_hooks(head: nn.Module, show: Show) -> list[RemovableHandle]:
    """A hook that computes the pool's map again, a row per head: its attention gives only the mean over heads."""

    def hook(module: Any, given: tuple[Any, ...], output: object) -> None:
        heads, width = int(module.num_heads), int(module.embed_dim)
        weights, biases = module.in_proj_weight.split(width), module.in_proj_bias.split(width)
        both = (nn.functional.linear(given[i], weights[i], biases[i]) for i in (0, 1))
        query, key = (t.view(*t.shape[:2], heads, -1).transpose(1, 2) for t in both)
        show(((query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)).softmax(dim=-1))

    return [head.get_submodule("attention").register_forward_hook(hook)]


LIBRARY: Library = _Transformers()

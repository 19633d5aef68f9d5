"""Read a model's attention: the tensor that multiplies the values, in every block.

timm's attention blocks pass their probabilities through `attn_drop` just before they multiply the values, so a forward
hook on that module sees exactly the attention of the definition. The shape is checked: a map of a window, of channels
or of pooled keys is not attention over patches, and such a model is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...errors import UsageError
from ..libraries.timm.build import refusal

__all__ = ["Seen", "Taps", "effective_gradient"]


@dataclass
class Seen:
    """The tensors that hooks recorded in one forward pass.

    `maps[layer]`: the block's maps (image, head, query, key); `sources[layer]`: for each map its attention module and
    the tensor that the module goes on with. `class_maps`: maps of blocks in which only the class token attends (image,
    head, class_query, class_key). `pool`: the head's own map (image, head, pool_query, key). `tokens`: the sequence
    after the final norm (image, token, channel).
    """

    maps: dict[int, list[Tensor]] = field(default_factory=dict)
    sources: dict[int, list[tuple[nn.Module, Tensor]]] = field(default_factory=dict)
    class_maps: list[Tensor] = field(default_factory=list)
    pool: Tensor | None = None
    tokens: Tensor | None = None

    def attention(self, layer: int) -> Tensor:
        """One block's attention (image, head, query, key); parallel attentions are joined on the head axis."""
        maps = self.maps[layer]
        return maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)


# Attention modules in which only the class token has a query; it does not take part in the blocks before.
_CLASS_ATTENTION = frozenset({"ClassAttn", "ClassAttention"})


class Taps:
    """The modules of one model to hook. `name` is the model's name, for errors.

    Raises:
        UsageError: no module passes attention through `attn_drop`, or they are not in one list of blocks.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model = model
        self.name = name
        self.owners: dict[int, list[nn.Module]] = {}
        self.class_owners: list[nn.Module] = []
        lists: dict[str, str] = {}
        for path, module in model.named_modules():
            parts = path.split(".")
            numbers = [i for i, part in enumerate(parts) if part.isdigit()]
            if not (numbers and isinstance(getattr(module, "attn_drop", None), nn.Module)):
                continue
            if type(module).__name__ in _CLASS_ATTENTION:
                self.class_owners.append(module)
            else:
                lists[".".join(parts[: numbers[0]])] = type(module).__name__
                self.owners.setdefault(int(parts[numbers[0]]), []).append(module)
        if not self.owners:
            raise self.refusal(_without(model))
        if len(lists) > 1:
            kinds = ", ".join(f"{path} of {kind}" for path, kind in sorted(lists.items()))
            raise self.refusal(f"its attention is of several kinds or stages ({kinds})")
        self.blocks_path = next(iter(lists))
        self.trunk = model.get_submodule(self.blocks_path.rpartition(".")[0])
        blocks = model.get_submodule(self.blocks_path)
        self.blocks = list(blocks.children())
        self.depth = len(self.blocks)
        without = sorted(set(range(self.depth)) - set(self.owners))
        if without:
            raise self.refusal(
                f"{self.blocks_path}.{without[0]} has no attention over patches (convolutional or local, or in stages)"
            )
        self.pool = next((m for m in model.modules() if _is_pool(m)), None)

    def refusal(self, reason: str) -> UsageError:
        """The error that says why this model cannot be exported."""
        return refusal(self.name, reason)

    @contextlib.contextmanager
    def recording(self) -> Iterator[Seen]:
        """A context in which a forward pass fills the `Seen` that it yields."""
        seen = Seen()
        hooks = []
        for layer, owners in self.owners.items():
            drops = [(owner, owner.get_submodule("attn_drop")) for owner in owners]
            hooks += [drop.register_forward_hook(_map_hook(seen, layer, owner)) for owner, drop in drops]
        for owner in self.class_owners:
            drop = owner.get_submodule("attn_drop")
            hooks.append(drop.register_forward_hook(lambda m, i, a: seen.class_maps.append(a)))
        # A final norm, if there is one, runs last and overwrites the block's output.
        ends = (self.blocks[-1], getattr(self.trunk, "norm", None))
        hooks += [m.register_forward_hook(_tokens_hook(seen)) for m in ends if isinstance(m, nn.Module)]
        if self.pool is not None:
            hooks += _pool_hooks(seen, self.pool)
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()

    def check(self, seen: Seen, images: int, tokens: int) -> None:
        """Check that every layer gave N x N maps, N = `tokens`, for every image.

        Raises:
            UsageError: a block gave no map, or a map of another kind; with its shape and the reason.
        """
        for layer, owners in self.owners.items():
            maps = seen.maps.get(layer, [])
            if len(maps) != len(owners):
                raise self.refusal(f"block {layer} did not show its attention (a fused kernel, or it was not run)")
            for a in maps:
                self._check_map(layer, tuple(a.shape), images, tokens)
        heads = {seen.attention(layer).shape[1] for layer in seen.maps}
        if len(heads) != 1:
            raise self.refusal(f"its blocks have different numbers of heads ({', '.join(map(str, sorted(heads)))})")

    def _check_map(self, layer: int, shape: tuple[int, ...], images: int, tokens: int) -> None:
        text = " x ".join(map(str, shape[1:]))
        if len(shape) != 4:
            raise self.refusal(f"the attention of block {layer} is no map of heads, queries and keys ({text})")
        if shape[0] != images:
            raise self.refusal(f"its attention runs inside windows of {shape[-1]} tokens, not over the whole picture")
        if shape[2] != shape[3]:
            raise self.refusal(f"the attention of block {layer} reads pooled keys ({shape[2]} x {shape[3]})")
        if shape[2] != tokens:
            raise self.refusal(
                f"the attention of block {layer} is {shape[2]} x {shape[3]}, not {tokens} x {tokens} tokens: it is "
                "over channels, or over another grid than the picture's patches"
            )


def _without(model: nn.Module) -> str:
    """Why a model has no attention to read: it has none, or a kind that never forms a map over all patches."""
    names = {type(m).__name__ for m in model.modules()}
    kinds = ", ".join(sorted(n for n in names if "Attention" in n or "Attn" in n)[:2])
    if not kinds:
        return "it has no attention blocks"
    return f"its attention ({kinds}) is pooled, windowed, linear or fused, and shows no map over all patches"


def _map_hook(seen: Seen, layer: int, owner: nn.Module) -> Callable[[nn.Module, object, Tensor], None]:
    def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
        seen.maps.setdefault(layer, []).append(_effective(owner, output))
        seen.sources.setdefault(layer, []).append((owner, output))

    return hook


def _effective(owner: nn.Module, attention: Tensor) -> Tensor:
    """The map that multiplies the values. Differential attention subtracts pairs of maps (Ye et al. 2024)."""
    compute_lambda = getattr(owner, "_compute_lambda", None)
    if compute_lambda is None:
        return attention
    pairs = attention.view(attention.shape[0], -1, 2, *attention.shape[2:])
    effective: Tensor = pairs[:, :, 0] - compute_lambda().type_as(attention) * pairs[:, :, 1]
    return effective


def effective_gradient(owner: nn.Module, gradient: Tensor) -> Tensor:
    """The gradient by the map that multiplies the values, from the gradient by `attn_drop`'s output.

    Both are (image, head, query, key). In a differential pair the first map has factor 1, so its gradient is that of
    the difference.
    """
    if getattr(owner, "_compute_lambda", None) is None:
        return gradient
    return gradient.view(gradient.shape[0], -1, 2, *gradient.shape[2:])[:, :, 0]


def _tokens_hook(seen: Seen) -> Callable[[nn.Module, object, object], None]:
    def hook(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim > 2:
            # Some model families keep the grid here: (image, y, x, channel).
            seen.tokens = output.flatten(1, -2)

    return hook


def _is_pool(module: nn.Module) -> bool:
    """Whether a module is a head's attention pool: with a learned query (`latent`), or parameter-free."""
    own = hasattr(module, "kv") and hasattr(module, "latent")
    return own or type(module).__name__ == "AttentionPoolPrr"


def _pool_hooks(seen: Seen, pool: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
    """Hooks for a pool. It has no `attn_drop`: its map is computed again from its queries and keys, a row per head."""
    if not hasattr(pool, "latent"):
        return [pool.get_submodule("pre_norm").register_forward_hook(_prr_hook(seen, pool))]
    queries: list[Tensor] = []

    def on_query(module: nn.Module, inputs: object, output: Tensor) -> None:
        queries[:] = [output]

    def on_key(module: nn.Module, inputs: object, output: Tensor) -> None:
        scaled = queries[0] * float(pool.scale)  # type: ignore[arg-type]
        seen.pool = (scaled @ output.transpose(-2, -1)).softmax(dim=-1)

    return [
        pool.get_submodule("q_norm").register_forward_hook(on_query),
        pool.get_submodule("k_norm").register_forward_hook(on_key),
    ]


def _prr_hook(seen: Seen, pool: nn.Module) -> Callable[[nn.Module, object, Tensor], None]:
    def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
        heads = output.view(*output.shape[:2], int(pool.num_heads), -1).transpose(1, 2)  # type: ignore[arg-type]
        a = ((heads * float(pool.scale)) @ heads.transpose(-2, -1)).softmax(dim=-1)  # type: ignore[arg-type]
        # The pool then reads the row of the class token, or the mean of all rows.
        seen.pool = a[:, :, :1] if pool.pool == "token" else a.mean(dim=2, keepdim=True)

    return hook

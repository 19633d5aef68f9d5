"""Read a model's attention: the tensor that multiplies the values, in every block.

Attention modules pass their probabilities through `attn_drop` just before they multiply the values (the adapters see to
it), so a forward hook on that module sees exactly the attention of the definition. The shape is checked: a map of a
window, of channels or of pooled keys is not attention over patches, and such a model is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...errors import UsageError
from ..libraries.protocol import Model

__all__ = ["Seen", "Taps"]


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


class Taps:
    """The modules of one model to hook. `name` is the model's name for errors, if not its full one.

    Raises:
        UsageError: the model has no blocks with attention over patches; with the reason.
    """

    def __init__(self, model: Model, name: str | None = None) -> None:
        self.model = model.module
        self.library = model.library
        self.name = name or model.full_name
        self.parts = model.library.parts(model)
        self.owners, self.blocks = self.parts.owners, self.parts.blocks
        self.depth = len(self.blocks)

    def refusal(self, reason: str) -> UsageError:
        """The error that says why this model cannot be exported."""
        return self.library.refusal(self.name, reason)

    @contextlib.contextmanager
    def recording(
        self, layers: Collection[int] | None = None, keep: Callable[[Tensor], Tensor] | None = None
    ) -> Iterator[Seen]:
        """A context in which a forward pass fills the `Seen` that it yields.

        Args:
            layers: the blocks whose maps are recorded; all by default.
            keep: what of a map to keep in its place. All maps of a large model take gigabytes.
        """
        seen = Seen()
        hooks = []
        for layer, owners in self.owners.items():
            if layers is not None and layer not in layers:
                continue
            drops = [(owner, owner.get_submodule("attn_drop")) for owner in owners]
            hooks += [drop.register_forward_hook(self._map_hook(seen, layer, owner, keep)) for owner, drop in drops]
        for owner in self.parts.class_owners:
            drop = owner.get_submodule("attn_drop")
            hooks.append(drop.register_forward_hook(lambda m, i, a: seen.class_maps.append(a)))
        hooks += [m.register_forward_hook(_tokens_hook(seen)) for m in self.parts.ends]
        if self.parts.pool is not None:
            hooks += self.parts.pool(lambda a: setattr(seen, "pool", a))
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
        sizes = {layer: maps[0].shape[-2] for layer, maps in seen.maps.items() if maps and len(maps[0]) == images}
        if tokens in sizes.values() and (early := [layer for layer, size in sizes.items() if size < tokens]):
            raise self.refusal(
                f"its first {len(early)} blocks attend over {sizes[early[0]]} tokens and the others over {tokens}: a "
                "class token joins on the way, so that their maps are not of the same tokens"
            )
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
        window = getattr(self.blocks[layer], "window_size", None)
        if window and len(shape) != 4:
            side = window if isinstance(window, int) else max(window)
            raise self.refusal(f"the attention of block {layer} runs inside windows of {side} x {side} patches")
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

    def _map_hook(
        self, seen: Seen, layer: int, owner: nn.Module, keep: Callable[[Tensor], Tensor] | None
    ) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            effective = self._effective(owner, output)
            seen.maps.setdefault(layer, []).append(effective if keep is None else keep(effective))
            if keep is None:
                seen.sources.setdefault(layer, []).append((owner, output))

        return hook

    def _effective(self, owner: nn.Module, attention: Tensor) -> Tensor:
        """The map that multiplies the values. Differential attention subtracts pairs of maps (Ye et al. 2024)."""
        factor = self.parts.differential(owner)
        if factor is None:
            return attention
        pairs = attention.view(attention.shape[0], -1, 2, *attention.shape[2:])
        effective: Tensor = pairs[:, :, 0] - factor.type_as(attention) * pairs[:, :, 1]
        return effective

    def effective_gradient(self, owner: nn.Module, gradient: Tensor) -> Tensor:
        """The gradient by the map that multiplies the values, from the gradient by `attn_drop`'s output.

        Both are (image, head, query, key). In a differential pair the first map has factor 1, so its gradient is that
        of the difference.
        """
        if self.parts.differential(owner) is None:
            return gradient
        return gradient.view(gradient.shape[0], -1, 2, *gradient.shape[2:])[:, :, 0]


def _tokens_hook(seen: Seen) -> Callable[[nn.Module, object, object], None]:
    def hook(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim > 2:
            # Some model families keep the grid here: (image, y, x, channel).
            seen.tokens = output.flatten(1, -2)

    return hook

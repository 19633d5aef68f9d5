"""Heads that can be silenced: inputs of the graph that replace what a head writes before the output projection."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import UsageError
from .attention import Taps
from .norms import Branches
from .tapped import Tapped

__all__ = ["Ablated"]


class Ablated(nn.Module):
    """A tapped model with two more inputs, and the mean of what each head writes as an output.

    `head_mask` (layer, head) float32 multiplies the weighted sum of the values of each head; `head_fill` (layer, head,
    channel) stands in its place by 1 - mask. `head_output.L` (image, head, channel) float32 is the mean over tokens of
    that sum before both. Maps are those that the blocks compute from what they get.

    Raises:
        UsageError: a block has no output projection that takes its heads one after another.
    """

    def __init__(self, tapped: Tapped, taps: Taps) -> None:
        super().__init__()
        self.tapped = tapped
        self.taps = taps
        if tapped.layers != tuple(range(taps.depth)):
            raise UsageError("--ablate: not with --layers, because the heads of every block can be silenced")
        several = next((layer for layer, owners in taps.owners.items() if len(owners) > 1), None)
        lacks = next(
            (n for n, o in taps.owners.items() if not isinstance(taps.parts.projection(o[0]), nn.Linear)), None
        )
        if several is not None or lacks is not None:
            why = (
                f"block {several} has several attentions"
                if lacks is None
                else f"block {lacks} has no output projection"
            )
            raise UsageError(f"{taps.name}: --ablate: {why}; export it without")
        branches = Branches(taps, "--ablate")
        with torch.no_grad(), branches:
            tapped.model(tapped.pixels(torch.zeros(2, *tapped.image_size, 3, dtype=torch.uint8)))
        branches.check()
        mixed = [branches.of[layer].mixed[0] for layer in range(taps.depth)]
        self.heads, self.channels = mixed[0].shape[1], mixed[0].shape[3]

    @property
    def names(self) -> list[str]:
        """Names of the outputs, in order."""
        return [*self.tapped.names, *(f"head_output.{layer}" for layer in range(self.taps.depth))]

    @property
    def examples(self) -> dict[str, Tensor]:
        """The added outputs without data, for their shapes."""
        shape = (2, self.heads, self.channels)
        return {f"head_output.{layer}": torch.empty(shape, device="meta") for layer in range(self.taps.depth)}

    def forward(self, image: Tensor, head_mask: Tensor, head_fill: Tensor) -> tuple[Tensor, ...]:
        """The outputs in the order of `names`; inputs as in the class."""
        return tuple(self.named(image, head_mask, head_fill).values())

    def named(
        self, image: Tensor, head_mask: Tensor, head_fill: Tensor, layers: Collection[int] | None = None
    ) -> dict[str, Tensor]:
        """The outputs by name; without those of other blocks than `layers`."""
        means: dict[int, Tensor] = {}
        with self._silencing(head_mask, head_fill, means):
            found = self.tapped.named(image, layers)
        wanted = range(self.taps.depth) if layers is None else layers
        return found | {f"head_output.{layer}": means[layer] for layer in wanted}

    def run(
        self,
        images: NDArray[np.uint8],
        head_mask: NDArray[np.float32],
        head_fill: NDArray[np.float32],
        *,
        layers: Collection[int] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """The outputs by name, from PyTorch; without those of other blocks than `layers`."""
        with torch.no_grad():
            image, mask, fill = map(torch.from_numpy, (images, head_mask, head_fill))
            values = self.named(image, mask, fill, layers)
        return {name: value.numpy() for name, value in values.items()}

    @contextlib.contextmanager
    def _silencing(self, mask: Tensor, fill: Tensor, means: dict[int, Tensor]) -> Iterator[None]:
        hooks = []
        for layer, (owner,) in self.taps.owners.items():
            projection = self.taps.parts.projection(owner)
            assert projection is not None
            hooks.append(projection.register_forward_pre_hook(self._before(layer, mask, fill, means)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _before(
        self, layer: int, mask: Tensor, fill: Tensor, means: dict[int, Tensor]
    ) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Tensor]]:
        def hook(module: nn.Module, given: tuple[Any, ...]) -> tuple[Tensor]:
            tokens: Tensor = given[0]
            by_head = tokens.view(*tokens.shape[:-1], self.heads, self.channels)
            means[layer] = by_head.mean(1)
            keep = mask[layer][:, None]
            return ((by_head * keep + fill[layer] * (1 - keep)).flatten(-2),)

        return hook

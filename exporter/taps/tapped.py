"""The model in the form in which it is traced: from uint8 pictures to outputs and maps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import UsageError, first_line
from ..libraries.protocol import Facts, Model
from ..models.memory import COMPARED, at_once
from .attention import Seen, Taps
from .heads import Heads
from .norms import Branches
from .pictures import pictures

__all__ = ["Known", "Tapped"]

# Pictures (image, y, x, 3) uint8, and the model's outputs for them by name.
type Known = tuple[NDArray[np.uint8], dict[str, NDArray[Any]]]

_MANY_HEADS = 32  # more than models have that are not huge


class Tapped(nn.Module):
    """The model from uint8 pictures to its outputs and maps, in the order of `names`."""

    def __init__(
        self,
        built: Model,
        taps: Taps,
        facts: Facts,
        layers: tuple[int, ...],
        *,
        norms: bool = False,
        qkv: bool = False,
        remember: bool = False,
    ) -> None:
        """`remember`: keep in `known` what PyTorch gives for the first look's pictures, if all maps are small."""
        super().__init__()
        self.model = built.module
        self.taps = taps
        self.facts = facts
        self.layers = layers
        self.branches = Branches(taps) if norms else None
        self.heads = Heads(taps) if qkv else None
        self.head = built.head
        self.image_size = built.image_size
        for name, values in (("mean", built.recipe.mean), ("std", built.recipe.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("position", facts.position_embedding, persistent=False)
        glance = _Glance(remember and COMPARED * 4 * _MANY_HEADS * facts.tokens**2 * taps.depth <= at_once())
        images = pictures(COMPARED if glance.keeps else 2, built.image_size)
        seen, out = self._first_look(built, images, glance)
        taps.check(seen, len(images), facts.tokens)
        if seen.tokens is None or seen.tokens.shape[1] != facts.tokens + bool(taps.parts.class_owners):
            raise taps.refusal(f"its last block does not give the {facts.tokens} tokens of its maps")
        if self.branches is not None:
            self.branches.check()
            for layer in layers:
                self.register_buffer(f"value_factor_{layer}", self.branches.factor(layer), persistent=False)
        if self.heads is not None:
            self.heads.check(seen.attention(0).shape[1], facts.tokens)
        self.mixed = glance.mixed
        self.has_pool = seen.pool is not None
        with torch.no_grad():
            outputs = self.outputs(seen, out)
        # Only for names and shapes.
        self.examples = {name: value.to("meta") for name, value in outputs.items()}
        self.known: Known | None = None
        if glance.keeps:
            self.known = images, {name: value.numpy() for name, value in outputs.items()}

    @property
    def names(self) -> list[str]:
        """Names of the outputs, in order."""
        return list(self.examples)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(image, y, x, 3) uint8 -> the outputs."""
        return tuple(self.named(image).values())

    def named(self, image: Tensor, layers: Collection[int] | None = None) -> dict[str, Tensor]:
        """The outputs by name; without those of other blocks than `layers`."""
        wanted = self.layers if layers is None else tuple(layers)
        seen, out = self.look(self.pixels(image), wanted)
        return self.outputs(seen, out, wanted)

    def run(self, images: NDArray[np.uint8], *, layers: Collection[int] | None = None) -> dict[str, NDArray[Any]]:
        """The outputs by name, from PyTorch; without those of other blocks than `layers`."""
        with torch.no_grad():
            return {name: value.numpy() for name, value in self.named(torch.from_numpy(images), layers).items()}

    def pixels(self, image: Tensor) -> Tensor:
        """(image, y, x, 3) uint8 -> the model's input: (image, channel, y, x) float32, normalised."""
        # The same operations in the same order as in timm's transform, so that pixels are equal bit for bit.
        pixels = image.permute(0, 3, 1, 2).to(torch.float32) / 255
        return (pixels - self.get_buffer("mean")) / self.get_buffer("std")

    def look(
        self,
        pixels: Tensor,
        layers: Collection[int] | None = None,
        keep: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Seen, Tensor]:
        """The recorded tensors and the result of one forward pass; arguments as for `Taps.recording`."""
        nothing = contextlib.nullcontext()
        with self.taps.recording(layers, keep) as seen, self.branches or nothing, self.heads or nothing:
            out = self.model(pixels)
        return seen, out

    def _first_look(self, built: Model, images: NDArray[np.uint8], glance: _Glance) -> tuple[Seen, Tensor]:
        try:
            with torch.no_grad():
                return self.look(self.pixels(torch.from_numpy(images)), keep=glance)
        except (RuntimeError, ValueError, AssertionError, TypeError) as error:
            height, width = built.image_size
            raise UsageError(
                f"{built.full_name}: does not take a picture of {height}x{width}: {first_line(error)}"
            ) from error

    def outputs(self, seen: Seen, out: Tensor, layers: Sequence[int] | None = None) -> dict[str, Tensor]:
        """The outputs by name, from the recorded tensors and the result of a forward pass."""
        assert seen.tokens is not None
        wanted = self.layers if layers is None else layers
        # A class token with its own blocks comes before the tokens of the maps.
        named = {self.head: self.pooled(out), "tokens": seen.tokens[:, -self.facts.tokens :]}
        named |= {f"attention.{layer}": seen.attention(layer) for layer in wanted}
        named |= {f"class_attention.{layer}": a for layer, a in enumerate(seen.class_maps)}
        if self.branches is not None:
            named |= self.branches.outputs({n: self.get_buffer(f"value_factor_{n}") for n in wanted})
        if self.heads is not None:
            named |= self.heads.outputs(wanted)
        if seen.pool is not None:
            unseen = self.facts.tokens - seen.pool.shape[-1]
            # A pool that reads only the patches gets weight 0 for the prefix, so that all maps have the same key axis.
            named["pool_attention"] = nn.functional.pad(seen.pool, (unseen, 0)) if unseen else seen.pool
        if self.facts.position_embedding is not None:
            named["position_embedding"] = self.get_buffer("position").clone()
        return named

    def pooled(self, out: Tensor) -> Tensor:
        """One vector per image. Without pooling it is the class token, or the mean of the patches if there is none."""
        if out.ndim == 2:
            return out
        tokens = out.flatten(1, -2)
        if tokens.shape[1] == self.facts.tokens and "class" in self.facts.prefix:
            return tokens[:, 0]
        prefix = len(self.facts.prefix) if tokens.shape[1] == self.facts.tokens else 0
        return tokens[:, prefix:].mean(1)


class _Glance:
    """Sees whether any map was no distribution over keys, and keeps the maps, or only their shapes.

    That is measured, so that no list of models needs maintenance.
    """

    def __init__(self, keeps: bool) -> None:
        self.keeps = keeps
        self.mixed = False

    def __call__(self, a: Tensor) -> Tensor:
        self.mixed = self.mixed or bool((a < 0).any()) or float((a.sum(-1) - 1).abs().max()) > 1e-3
        return a if self.keeps else a.to("meta")

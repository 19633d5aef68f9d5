"""The pictures that `gpu.py` works on: made, and in memory."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from attlas.engine.sources import BaseSource, Item
from PIL import Image

__all__ = ["Repeated", "pictures"]


@dataclass(frozen=True)
class Repeated(BaseSource):
    """A source of `count` pictures in memory: a few, again and again."""

    encoded: Sequence[bytes]
    count: int
    name: str = "made"
    others: Mapping[str, int] = field(default_factory=dict)

    @functools.cached_property
    def items(self) -> Sequence[Item]:  # type: ignore[override]
        return [Item(f"{i:07d}.jpg", "", len(self.encoded[i % len(self.encoded)]), 0) for i in range(self.count)]

    def read(self, item: Item) -> bytes:
        return self.encoded[int(item.key[:7]) % len(self.encoded)]


def pictures(count: int, width: int = 500, height: int = 375) -> list[bytes]:
    """JPEGs of ImageNet's usual size and weight, with edges and noise."""
    found = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
        wide = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(wide + rng.normal(0, 9, wide.shape), 0, 255).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(noisy).save(out, "JPEG", quality=90)
        found.append(out.getvalue())
    return found

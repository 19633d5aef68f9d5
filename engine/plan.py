"""The plan of a run: which images, in which order, cut into batches and units. Pure integers, made once, kept.

Two runs with equal plans write equal stores, whatever number of workers, machines or interruptions it took.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

__all__ = ["Plan", "digest", "make_plan", "spread"]

MIB = 2**20
CHUNK_BYTES = 4 * MIB  # one layer of a batch: small enough to read one image cheaply, large enough for a file
CHUNK_BYTES_GPU = 16 * MIB  # a card wants more images at once
UNIT_BYTES = 64 * MIB
MAX_UNIT_IMAGES = 256  # with little stored per image a unit is bounded by the work that a kill may lose
MIN_UNITS = 32  # so that even a small dataset keeps every worker busy until the end
MAX_BATCH = 64
SAMPLE = 256


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done, in whole numbers.

    Attributes:
        images: how many, in the order of the source's list.
        batch: images of one batch, which is one chunk of the large arrays.
        unit: images of one unit, which is done or not done: a whole number of batches.
        sample: indices, ascending, of the images whose pictures are stored.
        identity: what must be equal for a run to resume: hashes of graph, image list and choices.
    """

    images: int
    batch: int
    unit: int
    sample: tuple[int, ...]
    identity: Mapping[str, Any]

    @property
    def units(self) -> int:
        """How many units there are; the last may be smaller."""
        return -(-self.images // self.unit)

    def unit_range(self, k: int) -> range:
        """The images of unit k."""
        if not 0 <= k < self.units:
            raise IndexError(f"unit {k} of {self.units}")
        return range(k * self.unit, min((k + 1) * self.unit, self.images))

    def batches(self, k: int) -> Iterator[range]:
        """The batches of unit k, in order; only the very last of the plan may be smaller than `batch`."""
        images = self.unit_range(k)
        for start in range(images.start, images.stop, self.batch):
            yield range(start, min(start + self.batch, images.stop))

    def sampled(self, images: range) -> list[tuple[int, int]]:
        """(index in the sample, image) of the sampled images among `images`."""
        return [(index, image) for index, image in enumerate(self.sample) if image in images]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "sample": list(self.sample), "identity": dict(self.identity)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Read `to_dict`'s values."""
        return cls(
            images=int(data["images"]),
            batch=int(data["batch"]),
            unit=int(data["unit"]),
            sample=tuple(data["sample"]),
            identity=dict(data["identity"]),
        )


def make_plan(
    images: int,
    *,
    layer_bytes: int,
    image_bytes: int,
    identity: Mapping[str, Any],
    batch: int | None = None,
    gpu: bool = False,
    seed: int = 0,
) -> Plan:
    """Cut `images` into batches and units.

    Args:
        images: how many there are, at least 1.
        layer_bytes: attention of one image and layer as the graph gives it, which bounds a batch.
        image_bytes: what is stored of one image, which bounds a unit.
        identity: see `Plan`.
        batch: images of a batch; by default a power of two from `layer_bytes`.
        gpu: whether an accelerator runs the graph, which wants larger batches.
        seed: of the sample of pictures.
    """
    if batch is None:
        wanted = (CHUNK_BYTES_GPU if gpu else CHUNK_BYTES) // max(layer_bytes, 1)
        batch = max(1, min(MAX_BATCH, wanted, -(-images // MIN_UNITS)))
        batch = 1 << (batch.bit_length() - 1)
    batches = -(-UNIT_BYTES // max(image_bytes * batch, 1))
    most = max(1, min(MAX_UNIT_IMAGES, images // MIN_UNITS) // batch)
    unit = batch * max(1, min(batches, most))
    sample = sorted(Random(seed).sample(range(images), min(SAMPLE, images)))
    return Plan(images=images, batch=batch, unit=unit, sample=tuple(sample), identity=identity)


def spread(total: int, limit: int | None) -> list[int]:
    """`limit` indices evenly spread over `range(total)`: the middle of each of `limit` equal parts."""
    if limit is None or limit >= total:
        return list(range(total))
    return [(2 * i + 1) * total // (2 * limit) for i in range(limit)]


_plain_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def digest(values: Iterable[Any] | Sequence[Any]) -> str:
    """SHA-256 over the values' JSON, one a line."""
    hasher = hashlib.sha256()
    for value in values:
        hasher.update(_plain_json(value).encode())
        hasher.update(b"\n")
    return hasher.hexdigest()

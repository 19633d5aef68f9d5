"""The plan of a run: the images, their order, and their division into batches and units. It is made once and stored.

Two runs with equal plans write equal stores, with any number of workers, machines or interruptions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from ..exporter.spec import rebuilt

__all__ = ["Plan", "digest", "make_plan", "most_at_once", "spread"]

MIB = 2**20
CHUNK_BYTES = 4 * MIB  # of one layer of a batch: small enough to read one image cheaply, large enough for a file
CHUNK_BYTES_GPU = 16 * MIB  # a card needs more images at once
UNIT_BYTES = 64 * MIB
MAX_UNIT_IMAGES = 256  # limits the work that is lost on a kill, if little is stored per image
MIN_UNITS = 32  # so that a small dataset also keeps every worker busy until the end
ROUNDS = 8  # units of each thread: in the first they all wait for the accelerator at once, and in the last for nothing
MAX_BATCH = 64
HOST_BYTES = 4096 * MIB  # of what all threads get from an accelerator
SAMPLE = 256
MOST = 2**31  # images in a store


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan, in integers.

    Attributes:
        images: number of images, in the order of the source's list.
        batch: images per batch; one batch is one chunk of the large arrays.
        unit: images per unit, a multiple of `batch`. A unit is done as a whole or not at all.
        sample: ascending indices of the images whose pictures are stored.
        identity: values that must be equal for a run to resume: hashes of graph, image list and choices.
        at_once: images that an accelerator infers at once, a multiple of `batch`, and by default one.
    """

    images: int
    batch: int
    unit: int
    sample: tuple[int, ...]
    identity: Mapping[str, Any]
    at_once: int = 0

    def __post_init__(self) -> None:
        if not self.at_once:
            object.__setattr__(self, "at_once", self.batch)

    @property
    def units(self) -> int:
        """Number of units; the last one may be smaller."""
        return -(-self.images // self.unit)

    def unit_range(self, k: int) -> range:
        """The images of unit k."""
        if not 0 <= k < self.units:
            raise IndexError(f"unit {k} of {self.units}")
        return range(k * self.unit, min((k + 1) * self.unit, self.images))

    def batches(self, k: int) -> Iterator[range]:
        """The batches of unit k, in order; only the last batch of the plan may be smaller than `batch`."""
        return self.parts(self.unit_range(k), self.batch)

    def inferred(self, k: int) -> Iterator[range]:
        """The images of unit k that are inferred at once, in order."""
        return self.parts(self.unit_range(k), self.at_once)

    @staticmethod
    def parts(images: range, size: int) -> Iterator[range]:
        """`images` in order, `size` of them at a time; the last may be fewer."""
        for start in range(images.start, images.stop, size):
            yield range(start, min(start + size, images.stop))

    def sampled(self, images: range) -> list[tuple[int, int]]:
        """(index in the sample, image) of the sampled images among `images`."""
        return [(index, image) for index, image in enumerate(self.sample) if image in images]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; without `at_once` where it is a batch, as in the plans of earlier versions."""
        values = {**dataclasses.asdict(self), "sample": list(self.sample), "identity": dict(self.identity)}
        if self.at_once == self.batch:
            del values["at_once"]
        return values

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Read `to_dict`'s values.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: they are none of a plan.
        """
        plan: Plan = rebuilt(cls, data)
        # Today's batches have no more images than there are; those of earlier versions could.
        if not (0 <= plan.images <= MOST and 1 <= plan.batch <= plan.at_once <= plan.unit <= MOST):
            raise ValueError(f"{plan.images} images in units of {plan.unit} and batches of {plan.batch}")
        if not all(0 <= image < plan.images for image in plan.sample):
            raise ValueError("its sample is not among its images")
        return plan


def make_plan(
    images: int,
    *,
    layer_bytes: int,
    image_bytes: int,
    identity: Mapping[str, Any],
    batch: int | None = None,
    at_once: int | None = None,
    threads: int = 1,
    gpu: bool = False,
    seed: int = 0,
) -> Plan:
    """Divide `images` into batches and units.

    Args:
        images: number of images, at least 1.
        layer_bytes: bytes of one image's attention in one layer, as the graph outputs it; limits a batch.
        image_bytes: bytes stored per image; limits a unit.
        identity: see `Plan`.
        batch: images per batch, at most all; by default a power of two from `layer_bytes`.
        at_once: images that are inferred at once, a multiple of the batch, which is the default; also at most all.
        threads: number of units processed at once, over all workers, as far as it is known; limits a unit.
        gpu: whether an accelerator runs the graph; it needs larger batches.
        seed: seed for choosing the sample pictures.
    """
    if batch is None:
        wanted = (CHUNK_BYTES_GPU if gpu else CHUNK_BYTES) // max(layer_bytes, 1)
        batch = max(1, min(MAX_BATCH, wanted, -(-images // MIN_UNITS)))
        batch = 1 << (batch.bit_length() - 1)
    batch = min(batch, images)
    at_once = min(at_once or batch, batch * -(-images // batch))
    batches = -(-UNIT_BYTES // max(image_bytes * at_once, 1))
    most = max(1, min(MAX_UNIT_IMAGES, images // _least_units(threads)) // at_once)
    unit = at_once * max(1, min(batches, most))
    sample = sorted(Random(seed).sample(range(images), min(SAMPLE, images)))
    return Plan(images=images, batch=batch, unit=unit, sample=tuple(sample), identity=identity, at_once=at_once)


def most_at_once(images: int, batch: int, image_bytes: int, threads: int = 1) -> int:
    """The most images that an accelerator is tried with at once, at least a batch.

    Args:
        images: number of images of the run, which has many units.
        batch: images per batch.
        image_bytes: bytes of an image that come to the host, where each thread has room for all that are inferred.
        threads: number of units processed at once, over all workers.
    """
    room = HOST_BYTES // max(threads * image_bytes, 1)
    return max(batch, min(MAX_UNIT_IMAGES, images // _least_units(threads), room))


def _least_units(threads: int) -> int:
    """How many units a run should have, if it has images enough."""
    return max(MIN_UNITS, ROUNDS * threads)


def spread(total: int, limit: int | None) -> list[int]:
    """`limit` indices evenly spread over `range(total)`: the middle of each of `limit` equal parts."""
    if limit is None or limit >= total:
        return list(range(total))
    return [(2 * i + 1) * total // (2 * limit) for i in range(limit)]


_plain_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def digest(values: Iterable[Any] | Sequence[Any]) -> str:
    """SHA-256 over the values' JSON, one value per line."""
    hasher = hashlib.sha256()
    for value in values:
        hasher.update(_plain_json(value).encode())
        hasher.update(b"\n")
    return hasher.hexdigest()

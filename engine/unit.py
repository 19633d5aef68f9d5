"""One unit of work: read, decode, infer, reduce, write, and mark it done. It depends on no scheduler or other unit."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor as Pool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import AttlasError
from ..words import counted
from .contents import Contents
from .plan import Plan
from .runtime.graph import APPENDED
from .runtime.session import Session
from .sources.items import ChangedError, Items, Source
from .store.schema import GRADIENTS, LARGE, LAYERED, Template
from .store.store import Store
from .targets import PREDICTED

__all__ = ["Buffers", "Unit", "UnitResult", "commit_unit", "write_unit"]

DEVICE = "device"  # the part of inference during which an accelerator runs


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit of work, with everything that a worker does not have yet.

    Attributes:
        k: its number in the plan.
        items: only its own images.
        source: reads their bytes.
        targets: (image) int64, the classes to differentiate; None without gradients.
    """

    k: int
    items: Items
    source: Source
    targets: npt.NDArray[np.int64] | None = None

    def alone(self) -> Unit:
        """The same unit with a source of only its images, so that a large dataset is not sent with every unit."""
        return dataclasses.replace(self, items=self.items.alone(), source=self.source.subset(self.items.indices))


@dataclass
class UnitResult:
    """The result of one or more units.

    Attributes:
        images: number of images; `errors`: number of unreadable ones; `batches`: number of batches.
        remarks: number of pictures with each remark (`decode.Picture`).
        seconds: seconds by stage; `slowest`: seconds of the slowest batch by stage (of the slowest unit for stages that
            run once per unit).
    """

    images: int = 0
    errors: int = 0
    batches: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    slowest: dict[str, float] = field(default_factory=dict)
    remarks: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: UnitResult) -> UnitResult:
        stages = {**self.seconds, **other.seconds}
        return UnitResult(
            self.images + other.images,
            self.errors + other.errors,
            self.batches + other.batches,
            {name: self.seconds.get(name, 0.0) + other.seconds.get(name, 0.0) for name in stages},
            {name: max(self.slowest.get(name, 0.0), other.slowest.get(name, 0.0)) for name in stages},
            self.remarks + other.remarks,
        )

    def alone(self, threads: int, workers: int) -> dict[str, float]:
        """Images per second that each stage could do if there were no other, by the time that it took; slowest first.

        All threads work at a stage at once, except that one per worker commits, and one device per worker infers.
        """
        taken = dict(self.seconds)
        device = taken.pop(DEVICE, None)
        lanes = dict.fromkeys(taken, threads) | {"commit": workers}
        if device is not None:  # `inference` includes waiting for it
            taken["inference"], lanes["inference"] = device, workers
        rates = {name: round(self.images * lanes[name] / spent, 2) for name, spent in taken.items() if spent > 0}
        return dict(sorted(rates.items(), key=lambda rate: rate[1]))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A context that counts its seconds for a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.count(name, time.perf_counter() - start)

    def count(self, name: str, spent: float) -> None:
        """Count seconds for a stage."""
        self.seconds[name] = self.seconds.get(name, 0.0) + spent
        self.slowest[name] = max(self.slowest.get(name, 0.0), spent)


class Buffers:
    """The state of one thread that does units: the shared session and store, and its own memory for a batch."""

    def __init__(self, session: Session, store: Store, contents: Contents, readers: Pool | None = None) -> None:
        """Allocate for what is inferred at once; `readers` read ahead from remote sources."""
        self.session, self.store, self.contents, self.readers = session, store, contents, readers
        self.spec = contents.spec
        self.outputs = session.buffers(store.plan.at_once)
        self.pixels = session.pixels(store.plan.at_once)
        # Small arrays are written once per unit, because their chunks are units.
        self.small = {t.name: t for t in contents.templates if t.name not in LARGE}
        self.large = {t.name: t for t in contents.templates if t.name in LARGE}

    def given(self, asked: npt.NDArray[np.int64] | None) -> tuple[npt.NDArray[np.int64], ...]:
        """The session's inputs besides pixels: the target classes, padded to the batch size; none without gradients."""
        if asked is None:
            return ()
        target = np.full(len(self.pixels), PREDICTED, np.int64)
        target[: len(asked)] = asked
        return (target,)

    def array(self, name: str, count: int) -> npt.NDArray[Any]:
        """A small array of the first `count` images from the graph's outputs, with layers stacked on an axis."""
        outputs = self.contents.outputs[name]
        values = [self.outputs[want.name][:count] for want in outputs]
        return np.stack(values, axis=1) if "." in outputs[0].source else values[0]


def commit_unit(k: int, store: Store, result: UnitResult) -> None:
    """Flush what `write_unit` wrote for unit k to the disk, then mark the unit done."""
    with result.stage("commit"), _writing(store):
        store.mark_done(k)


def write_unit(plan: Plan, unit: Unit, buffers: Buffers) -> UnitResult:
    """Do a unit except for its mark: read, decode, infer, reduce, write.

    An image that cannot be decoded, or whose file has changed since the plan was made, keeps its index: the graph gets
    a black picture, the image's rows are set to fill, and `error` says why.

    Raises:
        AttlasError: a file cannot be read, the store cannot be written, or attention is not finite.
    """
    result = UnitResult()
    images = plan.unit_range(unit.k)
    rows = {name: _empty(t, len(images)) for name, t in buffers.small.items()}
    sample = {image: index for index, image in plan.sampled(images)}
    with _reading(unit, buffers.readers) as reads:
        for batch in plan.inferred(unit.k):
            result.batches += 1
            at = slice(batch.start - images.start, batch.stop - images.start)
            part = {name: values[at] for name, values in rows.items()}
            keys = unit.items.keys[at]
            asked = None if unit.targets is None else unit.targets[at]
            with result.stage("decode"):
                result.remarks.update(_load(buffers, keys, reads, part))
            with result.stage("inference"):
                device = buffers.session.run_into(buffers.pixels, buffers.outputs, len(batch), *buffers.given(asked))
            if device:
                result.count(DEVICE, device)
            with result.stage("reduce"):
                _reduce(buffers, keys, asked, part)
            with result.stage("write"), _writing(buffers.store):
                _write_large(buffers, batch, keys, part["valid"])
                for index, image in ((sample[i], i) for i in batch if i in sample):
                    crop = buffers.session.filler.crop(buffers.pixels, image - batch.start)
                    buffers.store.write("pixels", index, crop[None], later=True)
    with result.stage("write"), _writing(buffers.store):
        for name, values in rows.items():
            buffers.store.write(name, images.start, values, later=True)
    result.images = len(images)
    result.errors = int((~rows["valid"].astype(bool)).sum())
    return result


@contextmanager
def _reading(unit: Unit, pool: Pool | None) -> Iterator[Iterator[Callable[[], bytes]]]:
    """For each image in order a function that returns its bytes; from remote sources they are read ahead.

    Local files are not read ahead: the system does that, and threads would cost more than they gain.
    """
    items = iter(unit.items)
    if pool is None:
        yield (partial(unit.source.read, item) for item in items)
        return
    waiting = deque(pool.submit(unit.source.read, item) for item in islice(items, 2 * unit.source.reads_ahead))

    def reads() -> Iterator[Callable[[], bytes]]:
        while waiting:
            first = waiting.popleft()
            waiting.extend(pool.submit(unit.source.read, item) for item in islice(items, 1))
            yield first.result

    try:
        yield reads()
    finally:
        for future in waiting:
            future.cancel()


def _load(
    buffers: Buffers, keys: npt.NDArray[Any], reads: Iterator[Callable[[], bytes]], rows: dict[str, npt.NDArray[Any]]
) -> Counter[str]:
    """Fill the pixel buffer and the rows that describe the pictures; returns the counted remarks."""
    remarks = Counter[str]()
    for i, found in enumerate(buffers.session.filler.fill(buffers.pixels, _contents(keys, reads))):
        if isinstance(found, Exception):
            rows["error"][i] = str(found)
            continue
        size, noted = found
        if noted and "range" not in buffers.store.plan.identity:
            raise AttlasError(
                f"{buffers.store.path}: was begun by an earlier version, which clipped grey pictures of more than "
                f"8 bits, and {keys[i]} is one; choose another output, or --overwrite"
            )
        rows["height"][i], rows["width"][i] = size
        rows["valid"][i] = True
        remarks.update(noted)
    return remarks


def _contents(keys: npt.NDArray[Any], reads: Iterator[Callable[[], bytes]]) -> Iterator[bytes | ChangedError]:
    """The bytes of a batch's images, or that a file has changed."""
    for key, read in zip(keys, reads, strict=False):
        try:
            found: bytes | ChangedError = read()
        except ChangedError as error:
            found = error
        except OSError as error:
            raise AttlasError(
                f"{key}: cannot be read ({error.strerror or error}); what is done stays, "
                "run the same command again when it can be"
            ) from None
        yield found


def _reduce(
    buffers: Buffers, keys: npt.NDArray[Any], asked: npt.NDArray[np.int64] | None, rows: dict[str, npt.NDArray[Any]]
) -> None:
    """Compute the small arrays from the batch's outputs: result, prefix rows, statistics."""
    spec, session, count = buffers.spec, buffers.session, len(keys)
    found = {name: buffers.array(name, count) for name in buffers.contents.outputs if name in buffers.small}
    if asked is not None:
        found["target"] = np.where(asked < 0, found["logits"].argmax(-1), asked)
    if session.appended:
        found |= {name: buffers.outputs[f"{APPENDED}{name}"][:count] for name in session.appended}
    else:
        found |= _on_host(buffers, count, found.get("pool_attention"))
    finite = found.pop("_finite")
    valid = rows["valid"].astype(bool)
    for i, layer in np.argwhere(~finite & valid[:, None]):
        raise AttlasError(
            f"{keys[i]}: attention of layer {spec.layers[layer]} is not finite; the weights or the "
            "graph's dtype are at fault, not the picture (a float32 graph may carry what float16 cannot)"
        )
    read = slice(None) if valid.all() else valid  # a quarter of the time, for nearly every batch
    for name, values in found.items():
        rows[name][read] = values[read]


def _on_host(buffers: Buffers, count: int, pool: npt.NDArray[np.float32] | None) -> dict[str, npt.NDArray[Any]]:
    """Prefix rows, statistics and `_finite` (image, layer) of a batch whose attention is in host memory."""
    contents = buffers.contents
    attention = [buffers.outputs[want.name][:count] for want in contents.attention]
    found: dict[str, npt.NDArray[Any]] = {}
    if contents.spec.prefix:
        prefix = len(contents.spec.prefix)
        found["prefix_attention"] = np.stack([layer[:, :, :prefix] for layer in attention], axis=1)
    if contents.reducer is not None:
        found |= contents.reducer([buffers.outputs[want.name][:count] for want in contents.reduced], pool)
        if not contents.keep.coded:
            return found
    found["_finite"] = np.stack([np.isfinite(layer).all(axis=(1, 2, 3)) for layer in attention], axis=1)
    return found


def _write_large(buffers: Buffers, batch: range, keys: npt.NDArray[Any], valid: npt.NDArray[Any]) -> None:
    """Write the arrays with chunks of a batch, layer by layer; first set the rows of unreadable images to fill.

    What was inferred at once may be several chunks.
    """
    invalid = ~valid.astype(bool)
    layers = buffers.contents.keep.layers
    for name, template in buffers.large.items():
        for i, want in enumerate(buffers.contents.outputs[name]):
            values = buffers.outputs[want.name][: len(batch)]
            if name in GRADIENTS and not np.isfinite(values[~invalid]).all():
                raise AttlasError(
                    f"{keys[0]} and the {counted(len(batch) - 1, 'image')} after it: gradients of layer "
                    f"{layers[i]} are not finite; the weights are at fault, not the pictures"
                )
            if invalid.any():
                values[invalid] = template.fill
            part = None
            if name in LAYERED:
                index = buffers.spec.layers.index(layers[i])
                part, values = slice(index, index + 1), values[:, None]
            for chunk in buffers.store.plan.parts(batch, buffers.store.plan.batch):
                rows = slice(chunk.start - batch.start, chunk.stop - batch.start)
                buffers.store.write(name, chunk.start, values[rows], layer=part, later=True)


def _empty(template: Template, count: int) -> npt.NDArray[Any]:
    """Rows of fill values, for images that cannot be read."""
    dtype: Any = np.dtypes.StringDType() if template.dtype == "str" else template.dtype
    return np.full((count, *template.shape), template.fill, dtype)


@contextmanager
def _writing(store: Store) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AttlasError(
            f"{store.path}: cannot be written ({error.strerror or error}); what is done stays, "
            "run the same command again when it can be"
        ) from None

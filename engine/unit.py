"""One unit of work: read, decode, infer, reduce, write, and mark it done. It knows no scheduler and no other unit."""

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

from ..exporter.errors import AttlasError
from .decode import DecodeError, decode
from .graph import APPENDED
from .layout import GRADIENTS, Keep, Reducer, per_layer
from .plan import Plan
from .session import Session
from .sources.items import ChangedError, Items, Source
from .store import LARGE, Store, Template
from .targets import PREDICTED

__all__ = ["Share", "Tools", "UnitResult", "commit_unit", "write_unit"]


@dataclass(frozen=True, slots=True)
class Share:
    """One unit as it is handed out: all of it that a worker does not know already.

    Attributes:
        k: its number in the plan.
        items: its images alone.
        source: gives their bytes.
        targets: (image) int64, the classes to derive, where gradients are kept.
    """

    k: int
    items: Items
    source: Source
    targets: npt.NDArray[np.int64] | None = None

    def alone(self) -> Share:
        """The same with a source of these images alone: a dataset of a million does not travel with every unit."""
        return dataclasses.replace(self, items=self.items.alone(), source=self.source.subset(self.items.places))


@dataclass
class UnitResult:
    """What one or more units were.

    Attributes:
        images: how many; `errors`: how many of them could not be read; `batches`: in how many batches.
        remarks: how often each remark was made of a picture that was read (`decode.Picture`).
        seconds: by stage; `slowest`: of its slowest batch (of a whole unit, for what happens once a unit).
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

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the seconds of what happens inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
            self.slowest[name] = max(self.slowest.get(name, 0.0), spent)


class Tools:
    """What one hand holds while it does unit after unit: the shared session and store, and buffers of its own."""

    def __init__(
        self, session: Session, store: Store, keep: Keep, kept: list[Template], reducer: Reducer | None,
        readers: Pool | None = None,
    ) -> None:  # fmt: skip
        """Allocate the buffers of one batch; `readers` read ahead where a source is far away."""
        self.session, self.store, self.keep, self.reducer, self.readers = session, store, keep, reducer, readers
        self.spec = session.spec
        wanted = keep.wanted(session.spec, appended=bool(session.appended))
        self.roles = {role: want.name for role, want in wanted.items()}
        self.roles |= {name: f"{APPENDED}{name}" for name in session.appended}
        batch = store.plan.batch
        self.buffers = session.buffers(batch)
        self.pixels = session.pixels(batch)
        # The small arrays are written once a unit, since their chunks are units.
        self.small = {t.name: t for t in kept if t.name not in LARGE}

    def given(self, asked: npt.NDArray[np.int64] | None) -> tuple[npt.NDArray[np.int64], ...]:
        """What the session takes beside pixels: the classes to derive, as long as the pixels, where there are any."""
        if asked is None:
            return ()
        target = np.full(len(self.pixels), PREDICTED, np.int64)
        target[: len(asked)] = asked
        return (target,)

    def buffer(self, role: str, count: int) -> npt.NDArray[Any]:
        """The first `count` images of an output."""
        return self.buffers[self.roles[role]][:count]


def commit_unit(k: int, store: Store, result: UnitResult) -> None:
    """Bring what `write_unit` wrote of unit k to the disk, then mark the unit done."""
    with result.stage("commit"), _writing(store):
        store.mark_done(k)


def write_unit(plan: Plan, share: Share, tools: Tools) -> UnitResult:
    """Do a unit but for its mark: read, decode, infer, reduce, write.

    An image that cannot be decoded, or that is not the file the plan was made from, keeps its place: the graph sees
    black, its rows are set to fill, and `error` says why.

    Raises:
        AttlasError: a file cannot be read, the store cannot be written, or attention is not finite.
    """
    result = UnitResult()
    images = plan.unit_range(share.k)
    rows = {name: _empty(t, len(images)) for name, t in tools.small.items()}
    sample = {image: place for place, image in plan.sampled(images)}
    with _reading(share, tools.readers) as reads:
        for batch in plan.batches(share.k):
            result.batches += 1
            at = slice(batch.start - images.start, batch.stop - images.start)
            part = {name: values[at] for name, values in rows.items()}
            keys = share.items.keys[at]
            asked = None if share.targets is None else share.targets[at]
            with result.stage("decode"):
                result.remarks.update(_load(tools, keys, reads, part))
            with result.stage("inference"):
                tools.session.run_into(tools.pixels, tools.buffers, len(batch), *tools.given(asked))
            with result.stage("reduce"):
                _reduce(tools, keys, asked, part)
            with result.stage("write"), _writing(tools.store):
                _write_large(tools, batch, keys, part["valid"])
                for place, image in ((sample[i], i) for i in batch if i in sample):
                    tools.store.write("pixels", place, tools.pixels[image - batch.start][None], later=True)
    with result.stage("write"), _writing(tools.store):
        for name, values in rows.items():
            tools.store.write(name, images.start, values, later=True)
    result.images = len(images)
    result.errors = int((~rows["valid"].astype(bool)).sum())
    return result


@contextmanager
def _reading(share: Share, pool: Pool | None) -> Iterator[Iterator[Callable[[], bytes]]]:
    """For each image in order what gives its bytes; of a source far away they are fetched while others are computed.

    On this machine nothing is read ahead: the system does that, and threads would cost more than they bring.
    """
    items = iter(share.items)
    if pool is None:
        yield (partial(share.source.read, item) for item in items)
        return
    waiting = deque(pool.submit(share.source.read, item) for item in islice(items, 2 * share.source.reads_ahead))

    def reads() -> Iterator[Callable[[], bytes]]:
        while waiting:
            first = waiting.popleft()
            waiting.extend(pool.submit(share.source.read, item) for item in islice(items, 1))
            yield first.result

    try:
        yield reads()
    finally:
        for future in waiting:
            future.cancel()


def _load(
    tools: Tools, keys: npt.NDArray[Any], reads: Iterator[Callable[[], bytes]], rows: dict[str, npt.NDArray[Any]]
) -> Counter[str]:
    """Fill the pixel buffer and the rows that describe the pictures themselves; returns what is to be said of them."""
    remarks = Counter[str]()
    for i, (key, read) in enumerate(zip(keys, reads, strict=False)):
        try:
            picture = decode(read(), tools.spec.recipe)
            if picture.remarks and "range" not in tools.store.plan.identity:
                raise AttlasError(
                    f"{tools.store.path}: was begun by an earlier version, which clipped grey pictures of more than 8 "
                    f"bits, and {key} is one; choose another output, or --overwrite"
                )
            tools.pixels[i], (rows["height"][i], rows["width"][i]) = picture.pixels, picture.size
            rows["valid"][i] = True
            remarks.update(picture.remarks)
        except (DecodeError, ChangedError) as error:
            tools.pixels[i] = 0
            rows["error"][i] = str(error)
        except OSError as error:
            raise AttlasError(
                f"{key}: cannot be read ({error.strerror or error}); what is done stays, "
                "run the same command again when it can be"
            ) from None
    tools.pixels[len(keys) :] = 0
    return remarks


def _reduce(
    tools: Tools, keys: npt.NDArray[Any], asked: npt.NDArray[np.int64] | None, rows: dict[str, npt.NDArray[Any]]
) -> None:
    """Take from the batch's outputs all that is small: result, prefix rows, statistics."""
    spec, count = tools.spec, len(keys)
    found: dict[str, npt.NDArray[Any]] = {tools.session.wanted[0].source: tools.buffer("result", count)}
    pool = None
    if "pool_attention" in tools.roles:
        pool = found["pool_attention"] = tools.buffer("pool_attention", count)
    for name, outputs in per_layer(spec).items():
        found[name] = np.stack([tools.buffer(output.name, count) for output in outputs], axis=1)
    if tools.session.appended:
        found |= {name: tools.buffer(name, count) for name in tools.session.appended}
    else:
        found |= _on_host(tools, count, pool)
    if asked is not None:
        found["target"] = np.where(asked < 0, tools.buffer("result", count).argmax(-1), asked)
    finite = found.pop("_finite")
    valid = rows["valid"].astype(bool)
    for i, layer in np.argwhere(~finite & valid[:, None]):
        raise AttlasError(
            f"{keys[i]}: attention of layer {spec.layers[layer]} is not finite; the weights or the "
            "graph's dtype are at fault, not the picture (a float32 graph may carry what float16 cannot)"
        )
    for name, values in found.items():
        rows[name][valid] = values[valid]


def _on_host(tools: Tools, count: int, pool: npt.NDArray[np.float32] | None) -> dict[str, npt.NDArray[Any]]:
    """Prefix rows, statistics and `_finite` (image, layer) of a batch whose attention is in the host's memory."""
    spec = tools.spec
    attention = [tools.buffer(f"attention.{layer}", count) for layer in spec.layers]
    found: dict[str, npt.NDArray[Any]] = {}
    if spec.prefix:
        prefix = len(spec.prefix)
        found["prefix_attention"] = np.stack([layer[:, :, :prefix] for layer in attention], axis=1)
    if tools.reducer is not None:
        return found | tools.reducer(attention, pool)
    found["_finite"] = np.stack([np.isfinite(layer).all(axis=(1, 2, 3)) for layer in attention], axis=1)
    return found


def _write_large(tools: Tools, batch: range, keys: npt.NDArray[Any], valid: npt.NDArray[Any]) -> None:
    """Write what has chunks of a batch, layer by layer; rows of unreadable images are set to fill first."""
    invalid = ~valid.astype(bool)
    names = {"attention": "code" if tools.keep.dtype == "uint8" else "attention", "attention_mean": "mean"}
    names |= {name: name for name in GRADIENTS}
    for kept, role in names.items():
        if kept not in tools.keep.arrays:
            continue
        name = "attention_code" if role == "code" else kept
        for place, layer in enumerate(tools.spec.layers):
            if layer in tools.keep.layers:
                values = tools.buffer(f"{role}.{layer}", len(batch))
                if kept in GRADIENTS and not np.isfinite(values[~invalid]).all():
                    raise AttlasError(
                        f"{keys[0]} and the {len(batch) - 1} images after it: gradients of layer "
                        f"{layer} are not finite; the weights are at fault, not the pictures"
                    )
                if invalid.any():
                    values[invalid] = 0 if role == "code" else np.nan
                tools.store.write(name, batch.start, values[:, None], layer=slice(place, place + 1), later=True)
    if "tokens" in tools.keep.arrays:
        values = tools.buffer("tokens", len(batch))
        values[invalid] = np.nan
        tools.store.write("tokens", batch.start, values, later=True)


def _empty(template: Template, count: int) -> npt.NDArray[Any]:
    """Rows of fill: what an image that cannot be read leaves."""
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

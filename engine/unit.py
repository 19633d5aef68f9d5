"""One unit of work: read, decode, infer, reduce, write, and mark it done. It knows no scheduler and no other unit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..exporter.errors import AttlasError
from .decode import DecodeError, decode
from .graph import APPENDED
from .layout import GRADIENTS, Keep, Reducer
from .plan import Plan
from .session import Session
from .sources import ChangedError, Item, Source
from .store import LARGE, Store, Template
from .targets import PREDICTED

__all__ = ["Tools", "UnitResult", "run_unit"]


@dataclass
class UnitResult:
    """What a unit was: how many images, how many of them unreadable, and the seconds of each stage."""

    images: int = 0
    errors: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def __add__(self, other: UnitResult) -> UnitResult:
        seconds = {
            name: self.seconds.get(name, 0.0) + other.seconds.get(name, 0.0)
            for name in {**self.seconds, **other.seconds}
        }
        return UnitResult(self.images + other.images, self.errors + other.errors, seconds)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the seconds of what happens inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class Tools:
    """What one worker holds while it does unit after unit: the shared session and store, and buffers of its own."""

    def __init__(
        self, session: Session, store: Store, source: Source, items: list[Item], keep: Keep,
        kept: list[Template], reducer: Reducer | None, targets: npt.NDArray[np.int64] | None = None,
    ) -> None:  # fmt: skip
        """Allocate the buffers of one batch."""
        self.session, self.store, self.source, self.items = session, store, source, items
        self.keep, self.reducer, self.targets = keep, reducer, targets
        self.spec = session.spec
        wanted = keep.wanted(session.spec, appended=bool(session.appended))
        self.roles = {role: want.name for role, want in wanted.items()}
        self.roles |= {name: f"{APPENDED}{name}" for name in session.appended}
        batch = store.plan.batch
        self.buffers = session.buffers(batch)
        self.pixels = session.pixels(batch)
        # The small arrays are written once a unit, since their chunks are units.
        self.small = {t.name: t for t in kept if t.name not in LARGE}

    def given(self, batch: range) -> tuple[npt.NDArray[np.int64], ...]:
        """What the session takes beside pixels: the classes to derive, as long as the pixels, where there are any."""
        if self.targets is None:
            return ()
        target = np.full(len(self.pixels), PREDICTED, np.int64)
        target[: len(batch)] = self.targets[batch.start : batch.stop]
        return (target,)

    def buffer(self, role: str, count: int) -> npt.NDArray[Any]:
        """The first `count` images of an output."""
        return self.buffers[self.roles[role]][:count]


def run_unit(plan: Plan, k: int, tools: Tools) -> UnitResult:
    """Do unit k and mark it done.

    An image that cannot be decoded, or that is not the file the plan was made from, keeps its place: the graph sees
    black, its rows are set to fill, and `error` says why.

    Raises:
        AttlasError: a file cannot be read, the store cannot be written, or attention is not finite.
    """
    result = UnitResult()
    images = plan.unit_range(k)
    rows = {name: _empty(t, len(images)) for name, t in tools.small.items()}
    sample = {image: place for place, image in plan.sampled(images)}
    for batch in plan.batches(k):
        at = slice(batch.start - images.start, batch.stop - images.start)
        part = {name: values[at] for name, values in rows.items()}
        with result.stage("decode"):
            _load(tools, batch, part)
        with result.stage("inference"):
            tools.session.run_into(tools.pixels, tools.buffers, len(batch), *tools.given(batch))
        with result.stage("reduce"):
            _reduce(tools, batch, part)
        with result.stage("write"), _writing(tools.store):
            _write_large(tools, batch, part["valid"])
            for place, image in ((sample[i], i) for i in batch if i in sample):
                tools.store.write("pixels", place, tools.pixels[image - batch.start][None])
    with result.stage("write"), _writing(tools.store):
        for name, values in rows.items():
            tools.store.write(name, images.start, values)
        tools.store.mark_done(k)
    result.images = len(images)
    result.errors = int((~rows["valid"].astype(bool)).sum())
    return result


def _load(tools: Tools, batch: range, rows: dict[str, npt.NDArray[Any]]) -> None:
    """Fill the pixel buffer and the rows that describe the pictures themselves."""
    for i, image in enumerate(batch):
        item = tools.items[image]
        try:
            pixels, (rows["height"][i], rows["width"][i]) = decode(tools.source.read(item), tools.spec.recipe)
            tools.pixels[i] = pixels
            rows["valid"][i] = True
        except (DecodeError, ChangedError) as error:
            tools.pixels[i] = 0
            rows["error"][i] = str(error)
        except OSError as error:
            raise AttlasError(
                f"{item.key}: cannot be read ({error.strerror or error}); what is done stays, "
                "run the same command again when it can be"
            ) from None
    tools.pixels[len(batch) :] = 0


def _reduce(tools: Tools, batch: range, rows: dict[str, npt.NDArray[Any]]) -> None:
    """Take from the batch's outputs all that is small: result, prefix rows, statistics."""
    spec, count = tools.spec, len(batch)
    found: dict[str, npt.NDArray[Any]] = {tools.session.wanted[0].source: tools.buffer("result", count)}
    pool = None
    if "pool_attention" in tools.roles:
        pool = found["pool_attention"] = tools.buffer("pool_attention", count)
    if tools.session.appended:
        found |= {name: tools.buffer(name, count) for name in tools.session.appended}
    else:
        found |= _on_host(tools, count, pool)
    if tools.targets is not None:
        asked = tools.targets[batch.start : batch.stop]
        found["target"] = np.where(asked < 0, tools.buffer("result", count).argmax(-1), asked)
    finite = found.pop("_finite")
    valid = rows["valid"].astype(bool)
    for i, layer in np.argwhere(~finite & valid[:, None]):
        raise AttlasError(
            f"{tools.items[batch[i]].key}: attention of layer {spec.layers[layer]} is not finite; the weights or the "
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


def _write_large(tools: Tools, batch: range, valid: npt.NDArray[Any]) -> None:
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
                        f"{tools.items[batch.start].key} and the {len(batch) - 1} images after it: gradients of layer "
                        f"{layer} are not finite; the weights are at fault, not the pictures"
                    )
                if invalid.any():
                    values[invalid] = 0 if role == "code" else np.nan
                tools.store.write(name, batch.start, values[:, None], layer=slice(place, place + 1))
    if "tokens" in tools.keep.arrays:
        values = tools.buffer("tokens", len(batch))
        values[invalid] = np.nan
        tools.store.write("tokens", batch.start, values)


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

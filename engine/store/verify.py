"""Verify a store: every chunk that was written exists, can be decoded, and has plausible values."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np

from ...arguments import Where
from ...errors import AttlasError, one_line
from ...progress import Show, shows
from ..plan import Plan
from .arrays import mend_metadata
from .locks import analysing
from .reader import MARKS
from .reading import DamagedError
from .schema import LAYERED
from .storage import locate
from .store import Store

__all__ = ["Verification", "verify"]

# How much the sum of a row of probabilities may differ from 1: twice the measured rounding error of N entries.
ROW_TOLERANCE = {"float16": 2e-3, "float32": 1e-4}


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of `verify`.

    Attributes:
        units: number of done units that were checked.
        faults: unit -> the first fault found in it.
        repaired: whether something was repaired: faulty units reopened, what else is damaged removed.
        arrays: array -> the first fault found in it outside the units, and what mends it.
    """

    units: int
    faults: dict[int, str]
    repaired: bool
    arrays: dict[str, str] = field(default_factory=dict)


@shows("units")
def verify(path: Where, *, repair: bool = False, progress: Show[int, int] = None) -> Verification:
    """Read every chunk of a store: its file exists, its checksum holds, rows of probabilities sum to 1.

    Args:
        path: path or URL of the store.
        repair: reopen the faulty units, so that the next run does them again; write an array's metadata again; and
            remove other chunks that are damaged, so that the next run or analysis writes them again.
        progress: True shows a bar; a function is called with (units checked, units to check).

    Raises:
        AttlasError: there is no store at `path`, or it cannot be read or repaired.
    """
    with analysing(locate(path)) if repair else nullcontext():
        store = Store(path, writable=repair)
        done = np.flatnonzero(store.done)
        faults: dict[int, str] = {}
        show = progress if callable(progress) else (lambda _checked, _total: None)
        try:
            metadata = mend_metadata(store.storage, repair=repair)
            # In another thread, which finishes its unit when this one is interrupted: zarr's event loop prints errors
            # at exit if it is interrupted during a read.
            with ThreadPoolExecutor(1, thread_name_prefix="verify") as reader:
                for count, k in enumerate(map(int, done)):
                    show(count, len(done))
                    fault = reader.submit(_check, store, store.plan, k).result()
                    if fault:
                        faults[k] = fault
                        if repair:
                            _reopen(store, k)
                arrays = reader.submit(_outside, store, repair=repair).result()
        except OSError as error:
            what = "repaired" if repair else "read"
            raise AttlasError(f"{store.path}: cannot be {what} ({one_line(error)})") from None
    show(len(done), len(done))
    mended = "written again" if repair else "`attlas verify --repair` writes it again"
    arrays = {name: f"{fault}; {mended}" for name, fault in metadata.items()} | arrays
    return Verification(len(done), faults, repair and bool(faults or arrays), arrays)


def _reopen(store: Store, k: int) -> None:
    """Reopen a unit, and remove what stands in the place of its chunks."""
    store.reopen(k)
    for key in store.unit_keys(k):
        if not store.storage.exists(key):
            store.storage.delete(key)


def _outside(store: Store, *, repair: bool) -> dict[str, str]:
    """The first fault of each array whose chunks belong to no unit, and what mends it; repaired, they are removed."""
    units, faults = dict(store.unit_arrays()), {}
    for name in sorted({*store.names, *store.fixed} - units.keys()):
        fault = _first(store, name, repair=repair)
        if fault:
            first = "" if repair or fault.endswith("is missing") else "`attlas verify --repair` removes it, and "
            faults[name] = f"{fault}; {first}{store.again(name) or 'nothing'} writes it again"
    return faults


def _first(store: Store, name: str, *, repair: bool) -> str:
    """The first fault of an array, "" if there is none."""
    array, fault = store.array(name), ""
    there = {f"{name}/{file}" for file in store.storage.names(name)}
    if store.dims(name)[:1] != ("image",) or name in store.fixed:  # rows of an analysis may come later
        missing = next((key for key in store.keys(name) if key not in there), "")
        fault = f"{missing} is missing" if missing else ""
    for key in sorted(there):
        index = tuple(map(int, re.findall(r"\d+", key[len(name) :])))[: array.ndim]
        if len(index) < array.ndim or store.chunk_key(name, index) != key:  # of an earlier analysis, or no chunk
            continue
        try:
            store.read(name, tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, array.chunks, strict=True)))
        except DamagedError as error:
            fault = fault or _short(store, error)
            if repair:
                store.storage.delete(key)
    return fault


def _short(store: Store, error: DamagedError) -> str:
    return str(error).removeprefix(f"{store.path}: ").rpartition("; ")[0]


def _check(store: Store, plan: Plan, k: int) -> str | None:
    """The first fault of unit k, or None."""
    images = plan.unit_range(k)
    try:
        store.read(MARKS, slice(k, k + 1))
        valid = store.read("valid", slice(images.start, images.stop))
        for name, dim in store.unit_arrays():
            if name in LAYERED:
                fault = next(
                    filter(None, (_rows(store, name, b, valid[b.start - images.start :]) for b in plan.batches(k))),
                    None,
                )
                if fault:
                    return fault
            elif dim == "image" and name != "valid":
                store.read(name, slice(images.start, images.stop))
            elif dim != "image":
                for index, _ in plan.sampled(images):
                    store.read(name, index)
    except DamagedError as error:
        # Asked only now: in a bucket that is one more request for every chunk.
        missing = next((key for key in store.unit_keys(k) if not store.storage.exists(key)), None)
        return _short(store, error) if missing is None else f"{missing} is missing"
    return None


def _rows(store: Store, name: str, batch: range, valid: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> str | None:
    """Read a batch of a large array, and check the rows of probabilities in it."""
    for index, layer in enumerate(store.spec.layers):
        if index not in store.kept_layers:
            continue
        values = store.read(name, (slice(batch.start, batch.stop), index))[valid[: len(batch)]]
        if name not in ("attention", "attention_mean") or store.spec.attention_kind != "probability":
            continue
        off = np.abs(values.sum(axis=-1, dtype=np.float32) - 1)
        if not (off <= ROW_TOLERANCE[str(values.dtype)]).all():
            worst = "not finite" if not np.isfinite(off).all() else f"off by {off.max():.1e}"
            return f"{name} of layer {layer}: a row of attention does not sum to 1 ({worst})"
    return None

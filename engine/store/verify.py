"""Verify a store: every chunk of every done unit exists, can be decoded, and has plausible values."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ...arguments import Where
from ...progress import Show, shows
from ..plan import Plan
from .store import LAYERED, DamagedError, Store

__all__ = ["Verification", "verify"]

# How much the sum of a row of probabilities may differ from 1: twice the measured rounding error of N entries.
ROW_TOLERANCE = {"float16": 2e-3, "float32": 1e-4}


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of `verify`.

    Attributes:
        units: number of done units that were checked.
        faults: unit -> the first fault found in it.
        repaired: whether the faulty units were reopened.
    """

    units: int
    faults: dict[int, str]
    repaired: bool


@shows("units")
def verify(path: Where, *, repair: bool = False, progress: Show[int, int] = None) -> Verification:
    """Read every chunk of every done unit: its file exists, its checksum holds, rows of probabilities sum to 1.

    Args:
        path: path or URL of the store.
        repair: reopen the faulty units, so that the next run does them again.
        progress: True shows a bar; a function is called with (units checked, units to check).

    Raises:
        AttlasError: there is no store at `path`, or it cannot be repaired.
    """
    store = Store(path, writable=repair)
    done = np.flatnonzero(store.done)
    faults = {}
    show = progress if callable(progress) else (lambda _checked, _total: None)
    # In another thread, which finishes its unit when this one is interrupted: zarr's event loop prints errors at exit
    # if it is interrupted during a read.
    with ThreadPoolExecutor(1, thread_name_prefix="verify") as reader:
        for count, k in enumerate(map(int, done)):
            show(count, len(done))
            fault = reader.submit(_check, store, store.plan, k).result()
            if fault:
                faults[k] = fault
                if repair:
                    store.reopen(k)
    show(len(done), len(done))
    return Verification(len(done), faults, repair and bool(faults))


def _check(store: Store, plan: Plan, k: int) -> str | None:
    """The first fault of unit k, or None."""
    missing = next((key for key in store.unit_keys(k) if not store.storage.exists(key)), None)
    if missing is not None:
        return f"{missing} is missing"
    images = plan.unit_range(k)
    try:
        valid = store.read("valid", slice(images.start, images.stop))
        for name, dim in store.unit_arrays():
            if name in LAYERED:
                fault = next(
                    filter(None, (_rows(store, name, b, valid[b.start - images.start :]) for b in plan.batches(k))),
                    None,
                )
                if fault:
                    return fault
            elif dim == "image":
                store.read(name, slice(images.start, images.stop))
            else:
                for index, _ in plan.sampled(images):
                    store.read(name, index)
    except DamagedError as error:
        return str(error).removeprefix(f"{store.path}: ").partition(";")[0]
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

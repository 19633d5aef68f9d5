"""The batch for a device, found by running it."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from .cuda import RING, OnCard, OutOfMemoryError, fitting_batch
from .outputs import Wanted
from .providers import Precision
from .session import Session

__all__ = ["probe_batch"]


def probe_batch(
    graph: str | os.PathLike[str],
    batch: int,
    *,
    provider: str = "auto",
    wanted: Sequence[Wanted] | None = None,
    appended: bytes | None = None,
    device: str | None = None,
    precision: Precision = "float32",
    card: OnCard | None = None,
) -> int:
    """The largest batch, up to `batch` images, that fits into the device's memory, found by running black pictures.

    If a trial runs out of memory, it is repeated with half the images. From the memory of a trial that succeeds, the
    memory of a real run is computed, which needs as many sets of outputs as the ring has slots.

    Args:
        graph: an ONNX file from `attlas export`.
        batch: upper limit of the result, in images.
        provider: as for `Session`.
        wanted: as for `Session`.
        appended: as for `Session`.
        device: as for `Session`.
        precision: as for `Session`.
        card: as for `Session`.

    Raises:
        OutOfMemoryError: not even one image fits.
        AttlasError: as `Session`.
    """
    choices = {"wanted": wanted, "appended": appended, "card": card, "device": device, "precision": precision}
    make = partial(Session, graph, provider=provider, **choices)  # type: ignore[arg-type]
    while True:
        found = _probe(make, batch)
        if found is not None:
            return found
        # onnxruntime's arena never returns memory, so every trial has its own session, with no other at the same time.
        gc.collect()
        batch //= 2


def _probe(make: Callable[..., Session], batch: int) -> int | None:
    """One trial of `probe_batch`; None if it ran out of memory and a smaller batch can be tried."""
    session = make(batch=batch)
    if not session._device:
        return batch
    before = session._copies.free()
    try:
        session.run_into(session.pixels(batch), session.buffers(batch), batch)
    except OutOfMemoryError:
        if batch == 1:
            raise
        return None
    after = session._copies.free()
    if before is None or after is None:
        return batch
    output = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in session._batched().values())
    return fitting_batch(batch, free=after, used=max(before - after, 0), output=output, ring=RING)

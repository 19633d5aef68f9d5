"""The batch for a device, found by running it."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from functools import partial

from .cuda import RING, OnCard, OutOfMemoryError, fitting_batch
from .decoders import HOST, Decoder
from .outputs import Wanted
from .providers import Precision
from .session import Session

__all__ = ["probe_batch"]

GAIN = 1.03  # what twice as many images have to be worth
RUNS = 3  # of which the fastest counts


def probe_batch(
    graph: str | os.PathLike[str],
    batch: int,
    *,
    most: int | None = None,
    provider: str = "auto",
    wanted: Sequence[Wanted] | None = None,
    appended: bytes | None = None,
    device: str | None = None,
    precision: Precision = "float32",
    card: OnCard | None = None,
    decoder: Decoder = HOST,
) -> int:
    """How many images a device should infer at once, found by running black pictures.

    The largest number up to `batch` that fits into the device's memory; and with `most` twice as many, as long as they
    are faster by more than `GAIN`. So two new runs may choose differently; one that goes on keeps what its plan says.

    If a trial runs out of memory, it is repeated with half the images. From the memory of a trial that succeeds, the
    memory of a real run is computed, which needs as many sets of outputs as the ring has slots.

    Args:
        graph: an ONNX file from `attlas export`.
        batch: images to begin with.
        most: more than `batch` are tried up to this many; by default none.
        provider: as for `Session`.
        wanted: as for `Session`.
        appended: as for `Session`.
        device: as for `Session`.
        precision: as for `Session`.
        card: as for `Session`.
        decoder: as for `Session`.

    Raises:
        OutOfMemoryError: not even one image fits.
        AttlasError: as `Session`.
    """
    choices = {
        "wanted": wanted,
        "appended": appended,
        "card": card,
        "device": device,
        "precision": precision,
        "decoder": decoder,
    }
    make = partial(Session, graph, provider=provider, **choices)  # type: ignore[arg-type]
    while True:
        found, rate = _probe(make, batch, timed=most is not None and 2 * batch <= most)
        # onnxruntime's arena never returns memory, so every trial has its own session, with no other at the same time.
        gc.collect()
        if found is None:
            batch //= 2
            continue
        # A device without memory for the first trial has none for more.
        while rate and most is not None and found == batch and 2 * batch <= most:
            more, faster = _probe(make, 2 * batch, timed=True)
            gc.collect()
            if more != 2 * batch or faster < GAIN * rate:
                break
            found, rate, batch = more, faster, more
        return found


def _probe(make: Callable[..., Session], batch: int, *, timed: bool) -> tuple[int | None, float]:
    """One trial of `probe_batch`: how many images fit, None if fewer have to be tried, and images/s if `timed`."""
    session = make(batch=batch)
    if not session.on_device:
        return batch, 0.0
    before = session.free()
    pixels, buffers = session.pixels(batch), session.buffers(batch)
    try:
        session.run_into(pixels, buffers, batch)
        rate = batch / min(session.run_into(pixels, buffers, batch) for _ in range(RUNS)) if timed else 0.0
    except OutOfMemoryError:
        if batch == 1:
            raise
        return None, 0.0
    after = session.free()
    if before is None or after is None:
        return batch, rate
    sets, output = session.sets()
    others = (sets - 1) * batch * output
    used = max(before - after, 0) - others
    return fitting_batch(batch, free=after + others, used=max(used, 0), output=output, ring=RING), rate

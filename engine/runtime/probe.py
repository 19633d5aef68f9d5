"""The batch for a device, found by running it."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from functools import partial

from .cuda import OnCard, OutOfMemoryError
from .decoders import HOST, Decoder
from .outputs import Wanted
from .providers import Precision
from .session import Session
from .slots import RING, fitting_batch

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

    The largest number that fits into the device's memory: of `batch`, and with `most` of its doubles up to that many,
    less where half as many are as fast but for `GAIN`. So two new runs may choose differently; one that goes on keeps
    what its plan says.

    If a trial runs out of memory, it is repeated with half the images. From the memory of a trial that succeeds, the
    memory of a real run is computed, which needs as many sets of outputs as the ring has slots. Runs are timed in the
    session of that trial, for any number of images, since a card takes seconds to load a graph for another one.

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
    sizes = [batch]
    while most is not None and 2 * sizes[-1] <= most:
        sizes.append(2 * sizes[-1])
    while True:
        found = _probe(make(), sizes)
        # onnxruntime's arena never returns memory, so every trial has its own session, with no other at the same time.
        gc.collect()
        if found is not None:
            return found
        sizes = sizes[:-1] or [sizes[0] // 2]


def _probe(session: Session, sizes: Sequence[int]) -> int | None:
    """One trial of `probe_batch`, of the largest of `sizes`: how many images to infer, None if it does not fit."""
    if not session.on_device:
        return sizes[0]
    *less, batch = sizes
    before = session.free()
    try:
        session.run_into(session.pixels(batch), session.buffers(batch), batch)
    except OutOfMemoryError:
        if batch == 1:
            raise
        return None
    after = session.free()
    if before is not None and after is not None:
        sets, output = session.sets()
        others = (sets - 1) * batch * output
        used = max(before - after, 0) - others
        fits = fitting_batch(batch, free=after + others, used=max(used, 0), output=output, ring=RING)
        while batch > fits:
            batch = less.pop() if less else fits
    speed = _speed(session, batch) if less else 0.0
    while less and (fewer := _speed(session, less[-1])) * GAIN >= speed:
        batch, speed = less.pop(), fewer
    return batch


def _speed(session: Session, batch: int) -> float:
    """Images per second of a device; the first run prepares, and the fastest of the others counts."""
    pixels, buffers = session.pixels(batch), session.buffers(batch)
    _, *spent = (session.run_into(pixels, buffers, batch) for _ in range(1 + RUNS))
    return batch / min(spent)

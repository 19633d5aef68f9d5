"""Batches in an accelerator's memory: inputs and all outputs of each, bound to the session, and how many fit.

onnxruntime allocates on the device and runs.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from .cuda import Memory, OnCard, out_of_memory

__all__ = ["POOL", "RING", "Layers", "Reduced", "Ring", "Slot", "fitting_batch"]

# Batches on the device at once: one runs, one is copied to the host, and one receives its pixels.
RING = 3

# The share of free memory that a run uses; the rest is for workspaces that cuDNN and cuBLAS take at any time.
SHARE = 0.9

POOL = "pool_attention"  # the output that statistics of a model with attention pooling need

Shapes = Mapping[str, tuple[tuple[int, ...], str]]


def fitting_batch(batch: int, *, free: int, used: int, output: int, ring: int = RING) -> int:
    """The largest batch that fits into the device's memory, estimated from one trial run.

    Args:
        batch: images of the trial run, and upper limit of the result.
        free: bytes that were free after the trial.
        used: bytes that the trial used: activations and one set of outputs.
        output: bytes of one image's outputs.
        ring: number of sets of outputs in a real run.

    Returns:
        `batch`, or a power of two below it; at least 1.
    """
    activations = max(used - batch * output, 0) / batch
    most = int(SHARE * (free + used) / max(activations + ring * output, 1))
    if most >= batch:
        return batch
    return 1 << (max(most, 1).bit_length() - 1)


class Layers:
    """The attention of every layer side by side in one allocation, as the card's statistics read it."""

    ALIGNED = 256  # bytes, as each allocation of CUDA's own is

    def __init__(self, names: Sequence[str], shape: tuple[int, ...], dtype: str, device: str, margin: int) -> None:
        """Allocate for outputs of one `shape`, image first, and `margin` values after them."""
        item = np.dtype(dtype).itemsize
        self.stride = -(-math.prod(shape) * item // self.ALIGNED) * self.ALIGNED // item
        self._whole = _value((len(names) * self.stride + margin,), dtype, device)
        self.memory = Memory(self._whole.data_ptr(), (len(names) * self.stride + margin,), dtype)
        self.parts = {name: Part(self._whole, i * self.stride, shape, dtype) for i, name in enumerate(names)}


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an OrtValue, with as much of its face as `Copies` need."""

    whole: Any
    start: int
    shape: tuple[int, ...]
    dtype: str

    def data_ptr(self) -> int:
        """Where it begins."""
        return int(self.whole.data_ptr()) + self.start * np.dtype(self.dtype).itemsize

    def numpy(self) -> npt.NDArray[Any]:
        """Its values, copied to the host with all others: for onnxruntime's own copies, which are slow anyway."""
        values: npt.NDArray[Any] = self.whole.numpy()[self.start : self.start + math.prod(self.shape)]
        return values.reshape(self.shape)


class Slot:
    """Device memory for one batch: inputs, all outputs, and their binding to the session."""

    def __init__(
        self,
        session: Any,
        batch: int,
        inputs: Shapes,
        shapes: Shapes,
        device: str,
        *,
        reduced: Reduced | None = None,
        captured: int = 0,
    ) -> None:
        """Allocate for `batch` images; `inputs` and `shapes` give shapes without the image axis, and dtypes.

        Args:
            session: onnxruntime's.
            batch: images.
            inputs: the graph's inputs.
            shapes: the graph's outputs.
            device: onnxruntime's name of the device.
            reduced: the statistics on the card, whose arrays become outputs, too.
            captured: a number above 0 of this slot's own, to record the run as a CUDA graph here and now.
        """
        side = [] if reduced is None else reduced.layers
        self.inputs = {n: _value((batch, *own), dtype, device) for n, (own, dtype) in inputs.items()}
        self.outputs: dict[str, Any] = {
            n: _value((batch, *own), dtype, device) for n, (own, dtype) in shapes.items() if n not in side
        }
        self.binding = session.io_binding()
        for n, value in self.inputs.items():
            self.binding.bind_ortvalue_input(n, value)
        for n, value in self.outputs.items():
            self.binding.bind_ortvalue_output(n, value)
        self.reduce: Callable[[], None] | None = None
        if reduced is not None:
            own, dtype = shapes[side[0]]
            self._layers = Layers(side, (batch, *own), dtype, device, reduced.card.margin)
            for n, part in self._layers.parts.items():
                kind = np.dtype(dtype).type
                self.binding.bind_output(n, device, 0, kind, part.shape, part.data_ptr())
            made = {n: _value((batch, *own), dtype, device) for n, (own, dtype) in reduced.card.outputs.items()}
            places = {
                n: Memory(made[n].data_ptr(), (batch, *own), dtype) for n, (own, dtype) in reduced.card.outputs.items()
            }
            pool = None
            if reduced.card.pool:
                own, dtype = shapes[POOL]
                pool = Memory(self.outputs[POOL].data_ptr(), (batch, *own), dtype)
            self.reduce = reduced.card.bind(batch, self._layers.memory, self._layers.stride, places, pool)
            self.outputs |= self._layers.parts | {f"{reduced.prefix}{n}": value for n, value in made.items()}
        self.options = None
        if captured:
            self.options = ort.RunOptions()
            self.options.add_run_config_entry("gpu_graph_id", str(captured))
            self.run(session)

    def run(self, session: Any) -> None:
        """Run the graph from the inputs into the outputs; the statistics on the card are apart, in `reduce`."""
        if self.options is None:
            session.run_with_iobinding(self.binding)
        else:
            session.run_with_iobinding(self.binding, self.options)


@dataclass(frozen=True, slots=True)
class Reduced:
    """Statistics on the card: `card` computes them from the outputs `layers`; their names begin with `prefix`."""

    card: OnCard
    layers: Sequence[str]
    prefix: str


class Ring:
    """Up to `RING` slots for batches of one size, shared by all threads and made on demand.

    Attributes:
        batch: the size.
        made: the number of slots so far.
    """

    def __init__(self, make: Any, batch: int, size: int = RING) -> None:
        """Start empty; `make(k)` makes the k-th `Slot`, from 1, for `batch` images."""
        self.batch = batch
        self._make = make
        self._idle: SimpleQueue[Slot] = SimpleQueue()
        self._left, self.made = size, 0
        self._lock = threading.Lock()

    def fill(self) -> None:
        """Make all slots that memory holds, before any is in use."""
        with self._lock:
            while self._left:
                slot = self._another()
                if slot is not None:
                    self._idle.put(slot)

    @contextmanager
    def slot(self) -> Iterator[Slot]:
        """A slot for this thread only; waits while all are in use."""
        slot = self._take()
        try:
            yield slot
        finally:
            self._idle.put(slot)

    def _take(self) -> Slot:
        with self._lock:
            if self._idle.empty() and self._left:
                slot = self._another()
                if slot is not None:
                    return slot
        return self._idle.get()

    def _another(self) -> Slot | None:
        """One more slot; None if memory holds no more: fewer slots are slower, but enough."""
        try:
            slot: Slot = self._make(self.made + 1)
        except Exception as error:
            if not self.made or not out_of_memory(error):
                raise
            self._left = 0
            return None
        self._left -= 1
        self.made += 1
        return slot


def _value(shape: tuple[int, ...], dtype: str, device: str) -> Any:
    return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), np.dtype(dtype).type, device, 0)

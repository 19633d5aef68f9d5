"""One graph, ready to run. With `providers` and `cuda` the only modules that know onnxruntime."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from ...errors import AttlasError, UsageError
from ..sources.files import place
from ..targets import PREDICTED
from .cuda import RING, Copies, Cudart, OrtCopies, OutOfMemoryError, Ring, Slot, fitting_batch, out_of_memory
from .graph import APPENDED, TARGET, appended_outputs, read_spec
from .graph import prepare as prepare_graph
from .outputs import Wanted
from .pictures import crop_of, each_picture
from .providers import CPU, cores, create_session, find, resolve_provider

__all__ = ["Session", "constants", "probe_batch"]

# On a CPU a batch is run in steps of this many images: the bits do not change, and activations stay in the caches
# (deit_tiny on two cores: 134 images/s one at a time, 99 eight at a time).
CPU_STEP = 1


class Session:
    """A graph in onnxruntime: call it with pictures, or let a run fill buffers of its own.

    Example:
        >>> arrays = Session("deit_tiny.onnx")(["cat.jpg", "dog.jpg"])
        >>> arrays["attention"].shape  # (image, layer, head, query, key)
        (2, 12, 3, 197, 197)

    Attributes:
        spec: the graph's `GraphSpec`.
        provider: the execution provider in use.
        wanted: what it computes; every float32 output of the graph unless told otherwise.
        appended: the outputs of the appended model: shape without the image axis, and dtype.
        derives: whether gradients are wanted, so that a run takes classes.
    """

    def __init__(
        self,
        graph: str | os.PathLike[str],
        *,
        provider: str = "auto",
        wanted: Sequence[Wanted] | None = None,
        appended: bytes | None = None,
        threads: int | None = None,
        device: str | None = None,
    ) -> None:
        """Load a graph.

        Args:
            graph: an ONNX file from `attlas export`.
            provider: `auto`, `cpu`, `cuda` or any name onnxruntime reports.
            wanted: the outputs, and in what form.
            appended: an ONNX model to put behind the graph, whose inputs are named like outputs of the graph.
            threads: onnxruntime's own threads within one operator; all cores by default.
            device: where outputs stay until they are fetched, in onnxruntime's words; by the provider unless told
                otherwise, and `cpu` makes a CPU take the way of an accelerator.

        Raises:
            AttlasError: the file is no graph of ours, or the provider does not work here.
            UsageError: `graph` is no path, or onnxruntime has no such provider.
        """
        if not isinstance(graph, str | os.PathLike):
            raise UsageError(f"a graph is the path of an ONNX file, not {type(graph).__name__}")
        self.path = Path(place(graph))
        self.spec = read_spec(self.path)
        self.wanted = tuple(wanted if wanted is not None else (Wanted(o.name) for o in self.spec.outputs))
        candidates = resolve_provider(provider)
        self.appended = appended_outputs(appended) if appended is not None else {}
        model = prepare_graph(self.path, self.wanted, appended)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads or cores()
        options.inter_op_num_threads = 1
        # Prepared graphs are bytes, so that the folder of their external weights has to be named.
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(self.path.parent.resolve())
        )
        strict, half = provider.lower() != "auto", self.spec.dtype == "float16"
        self._session = create_session(model, options, candidates, self.path, strict=strict, half=half)
        self.provider: str = self._session.get_providers()[0]
        self._device = device or find(self.provider).device
        self.on_cpu = self.provider == CPU and not self._device
        self._inputs: dict[str, tuple[tuple[int, ...], str]] = {
            entry.name: ((), "int64") if entry.name == TARGET else ((*self.spec.image_size, 3), "uint8")
            for entry in self._session.get_inputs()
        }
        self.derives = TARGET in self._inputs
        # A card does one batch at a time; a second one beside it would only share its memory.
        self._lock = contextlib.nullcontext() if self.on_cpu else threading.Lock()
        self._copies: Copies = (Cudart.load() if self._device == "cuda" else None) or OrtCopies()
        self._ring: Ring | None = None
        self._ring_lock = threading.Lock()

    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """For every output its shape without the image axis, and its dtype; -1 leads that of one without images."""
        found: dict[str, tuple[tuple[int, ...], str]] = {}
        for want in self.wanted:
            output = self.spec.output(want.source)
            assert output is not None
            batched = output.shape[0] is None
            shape = tuple(n for n in output.shape if n is not None)
            if want.head_mean:
                shape = shape[1:]
            found[want.name] = (shape if batched else (-1, *shape), want.form)
        return found | {f"{APPENDED}{name}": known for name, known in self.appended.items()}

    def buffers(self, batch: int) -> dict[str, npt.NDArray[Any]]:
        """Arrays for `run_into`, `batch` images long, one per output with an image axis; pinned for a card."""
        return {name: self._copies.host((batch, *shape), dtype) for name, (shape, dtype) in self._batched().items()}

    def pixels(self, batch: int) -> npt.NDArray[np.uint8]:
        """An array for `run_into`'s pixels (image, row, column, channel), black; pinned for a card."""
        return self._copies.host((batch, *self.spec.image_size, 3), "uint8")

    def run_into(
        self,
        pixels: npt.NDArray[np.uint8],
        buffers: Mapping[str, npt.NDArray[Any]],
        count: int,
        target: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Run the first `count` images of `pixels` (image, row, column, channel) and fill the front of `buffers`.

        `target`, as long as `pixels`, holds the classes to derive, -1 for the predicted one; without it all are.
        Safe to call from several threads with buffers of their own. Beyond `count`, pixels and buffers hold nothing
        of meaning: an accelerator runs the padded batch whole, since a new shape costs it more.

        Raises:
            AttlasError: onnxruntime fails, or the device has not enough memory (`OutOfMemoryError`).
        """
        given: dict[str, npt.NDArray[Any]] = dict.fromkeys(self._inputs, pixels)
        if self.derives:
            given[TARGET] = np.full(len(pixels), PREDICTED, np.int64) if target is None else target
        with self._failures(len(pixels)):
            if self._device:
                self._run_on_device(given, buffers, count)
                return
            step = CPU_STEP if self.on_cpu else len(pixels)
            with self._lock:
                for start in range(0, count, step):
                    stop = min(start + step, count) if self.on_cpu else len(pixels)
                    binding = self._session.io_binding()
                    for name, values in given.items():
                        part = values[start:stop]
                        binding.bind_input(name, "cpu", 0, values.dtype.type, part.shape, part.ctypes.data)
                    for name, buffer in buffers.items():
                        out = buffer[start:stop]
                        binding.bind_output(name, "cpu", 0, buffer.dtype.type, out.shape, out.ctypes.data)
                    self._session.run_with_iobinding(binding)

    def _run_on_device(
        self, given: Mapping[str, npt.NDArray[Any]], buffers: Mapping[str, npt.NDArray[Any]], count: int
    ) -> None:
        """Bring inputs, run, fetch: only the run itself holds the lock, so that copies overlap another batch's run."""
        batch = len(next(iter(given.values())))
        with self._slots(batch).slot() as slot:
            for name, values in given.items():
                self._copies.upload(slot.inputs[name], values)
            with self._lock:
                # Returns when the device is done: onnxruntime waits for its stream at the end of every run.
                self._session.run_with_iobinding(slot.binding)
            for name, buffer in buffers.items():
                self._copies.download(buffer[:count], slot.outputs[name])

    def _slots(self, batch: int) -> Ring:
        """The ring for batches of this size; one of another size is let go."""
        with self._ring_lock:
            if self._ring is None or self._ring.batch != batch:
                # Bound to what it needs and not to this object, which would then outlive its last user.
                make = partial(Slot, self._session, batch, self._inputs, self._batched(), self._device)
                self._ring = None
                self._ring = Ring(make, batch)
            return self._ring

    def _batched(self) -> dict[str, tuple[tuple[int, ...], str]]:
        return {name: (shape, dtype) for name, (shape, dtype) in self.shapes().items() if shape[:1] != (-1,)}

    @contextlib.contextmanager
    def _failures(self, batch: int) -> Iterator[None]:
        """Turn onnxruntime's exceptions into ours."""
        try:
            yield
        except AttlasError:
            raise
        except Exception as error:  # onnxruntime's own exception types share no base but Exception
            if out_of_memory(error):
                raise OutOfMemoryError(
                    f"{self.path}: a batch of {batch} images does not fit into the memory of {self.provider}; "
                    "choose fewer with --batch-size, into a new store"
                ) from None
            raise AttlasError(f"{self.path}: onnxruntime fails ({' '.join(str(error).split())[:300]})") from None

    def __call__(self, images: Any, target: int | Sequence[int] = PREDICTED) -> dict[str, npt.NDArray[Any]]:
        """Logits and attention of a few pictures.

        Args:
            images: one or a sequence of paths, encoded bytes and Pillow images, which the graph's recipe resizes and
                crops; or of uint8 arrays of numpy, torch or others, (row, column, channel) or (channel, row, column) of
                RGB from 0 to 255, that are the recipe's crop already. Arrays may also come as one, images first.
            target: of a graph with gradients: the class to derive, one for all images or one each; -1 for the
                predicted one.

        Returns:
            The graph's outputs by name, with `attention.0`, `attention.1` ... stacked as `attention`
            (image, layer, head, query, key), and `gradient` likewise. float32.

        Raises:
            AttlasError: a picture cannot be read.
            UsageError: something is no picture, or an array of another form; the model has no such class, or the graph
                no gradients.
        """
        pixels = np.zeros((0, *self.spec.image_size, 3), np.uint8)
        if given := [crop_of(image, self.spec) for image in each_picture(images)]:
            # Rows are bound by their address, and stacked views keep the order of their memory.
            pixels = np.ascontiguousarray(np.stack(given))
        # Ordinary memory, since the caller keeps it.
        buffers = {name: np.zeros((len(pixels), *shape), dtype) for name, (shape, dtype) in self._batched().items()}
        if len(pixels):
            self.run_into(pixels, buffers, len(pixels), self._targets(target, len(pixels)))
        constants = [w.name for w in self.wanted if w.name not in buffers]
        found = dict(buffers)
        if constants and len(pixels):
            found |= {name: self.constant(name) for name in constants}
        return stack_layers(found)

    def _targets(self, target: int | Sequence[int], count: int) -> npt.NDArray[np.int64] | None:
        """The classes to derive, one per image, checked."""
        asked = np.asarray(target, np.int64)
        if not self.derives:
            if (asked != PREDICTED).any():
                raise UsageError(
                    f"target: {self.path} gives no gradients; `attlas export --gradients` makes one that does"
                )
            return None
        logits = self.spec.output("logits")
        classes = int((logits.shape[-1] if logits is not None else 0) or 0)
        if asked.size not in (1, count) or not ((asked >= PREDICTED) & (asked < classes)).all():
            raise UsageError(f"target: one class for all images or one each, from 0 to {classes - 1}, or -1")
        return np.ascontiguousarray(np.broadcast_to(asked.reshape(-1), count))

    def constant(self, name: str) -> npt.NDArray[np.float32]:
        """An output that no image changes (the position embedding), by running one black picture."""
        given = {n: np.zeros((1, *shape), dtype) for n, (shape, dtype) in self._inputs.items()}
        value: npt.NDArray[np.float32] = self._session.run([name], given)[0]
        return value


def stack_layers(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Stack `attention.0`, `attention.1` ... on a layer axis behind the image's; other arrays stay as they are."""
    layers: dict[str, list[tuple[int, str]]] = {}
    for name in arrays:
        kind, dot, number = name.partition(".")
        if dot:
            layers.setdefault(kind, []).append((int(number), name))
    found = {kind: np.stack([arrays[n] for _, n in sorted(each)], axis=1) for kind, each in layers.items()}
    return {n: a for n, a in arrays.items() if "." not in n} | found


def constants(graph: str | os.PathLike[str]) -> dict[str, npt.NDArray[np.float32]]:
    """The outputs of a graph that no image changes, by name: the position embedding, where it has one."""
    fixed = [Wanted(o.name) for o in read_spec(graph).outputs if None not in o.shape]
    if not fixed:
        return {}
    # Everything else is pruned from the graph, so that this costs next to nothing.
    session = Session(graph, provider="cpu", wanted=fixed, threads=1)
    return {want.source: session.constant(want.source) for want in fixed}


def probe_batch(
    graph: str | os.PathLike[str],
    batch: int,
    *,
    provider: str = "auto",
    wanted: Sequence[Wanted] | None = None,
    appended: bytes | None = None,
    device: str | None = None,
) -> int:
    """The largest batch, up to `batch` images, that the device's memory holds, found by running black pictures.

    A run that fails for want of memory is tried again with half as many. What it took is then set against what a whole
    run takes: as many sets of outputs as the ring holds.

    Args:
        graph: an ONNX file from `attlas export`.
        batch: images of the largest batch that is wanted.
        provider: as for `Session`.
        wanted: as for `Session`.
        appended: as for `Session`.
        device: as for `Session`.

    Raises:
        OutOfMemoryError: not even one image fits.
        AttlasError: what `Session` raises.
    """
    while True:
        found = _probe(graph, batch, provider, wanted, appended, device)
        if found is not None:
            return found
        # What an arena has taken it does not give back: every try has a session of its own, and no other beside it.
        gc.collect()
        batch //= 2


def _probe(
    graph: str | os.PathLike[str],
    batch: int,
    provider: str,
    wanted: Sequence[Wanted] | None,
    appended: bytes | None,
    device: str | None,
) -> int | None:
    """One try of `probe_batch`; None where there was too little memory for it, and less can be tried."""
    session = Session(graph, provider=provider, wanted=wanted, appended=appended, device=device)
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

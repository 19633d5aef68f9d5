"""A loaded graph, ready to run, in whichever runtime."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ... import arguments
from ...errors import AttlasError, UsageError, one_line
from ...words import counted
from ..sources.files import expanded
from ..targets import PREDICTED
from .cuda import Copies, Cudart, Memory, OnCard, OrtCopies, OutOfMemoryError, out_of_memory
from .decoders import HOST, Decoder, Filler
from .graph import APPENDED, TARGET, antialiased, appended_outputs, read_spec, weight_files
from .graph import prepare as prepare_graph
from .on_card import filler_of
from .openvino import OpenVinoGraph
from .ort import OrtGraph
from .outputs import Wanted
from .pictures import crop_of, each_picture, name_of
from .providers import OPENVINO, Precision, accelerates, check_precision, cores, find, resolve_provider
from .results import Result, stack_layers
from .slots import POOL, Reduced, Ring, Slot

__all__ = ["Session", "constants"]

# On a CPU a batch runs in steps of this many images: the results are bit-identical, and activations stay in the caches
# (deit_tiny on two cores: 134 images/s with steps of one image, 99 with eight).
CPU_STEP = 1


class Compiled(Protocol):
    """A prepared graph in one runtime.

    Attributes:
        runtime: the runtime's name, for errors.
        provider: the name of what computes.
        inputs: the names of the graph's inputs.
        session: onnxruntime's own session, to bind memory of a device; None in another runtime.
        captures: whether a card records its runs as a CUDA graph, and repeats them.
    """

    runtime: str
    provider: str
    inputs: tuple[str, ...]
    session: Any
    captures: bool

    def fill(self, given: Mapping[str, npt.NDArray[Any]], outputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """Run once, from arrays into arrays in host memory; threads may call it at the same time."""


class Session:
    """A graph in a runtime: call it with pictures, or let a run fill its own buffers.

    Example:
        >>> arrays = Session("deit_tiny.onnx")(["cat.jpg", "dog.jpg"])
        >>> arrays["attention"].shape  # (image, layer, head, query, key)
        (2, 12, 3, 197, 197)

    Attributes:
        spec: the graph's `GraphSpec`.
        provider: the execution provider of onnxruntime in use, or `OpenVINO`.
        wanted: the outputs that it computes; by default every float32 output of the graph.
        appended: outputs of the appended model, or of the card's statistics: shape without the image axis, and dtype.
        card: the statistics that a card computes from attention in its memory.
        derives: whether gradients are computed, so that a run needs target classes.
        filler: decodes pictures into what `pixels` gives.
    """

    def __init__(
        self,
        graph: str | os.PathLike[str],
        *,
        provider: str = "auto",
        wanted: Sequence[Wanted] | None = None,
        appended: bytes | None = None,
        card: OnCard | None = None,
        threads: int | None = None,
        device: str | None = None,
        precision: Precision = "float32",
        ablate: bool = False,
        optimize: bool = True,
        batch: int | None = None,
        decoder: Decoder = HOST,
    ) -> None:
        """Load a graph.

        Args:
            graph: an ONNX file from `attlas export`.
            provider: `auto`, `cpu`, `cuda`, `openvino` or any name onnxruntime reports.
            wanted: the outputs and their form.
            appended: an ONNX model to append to the graph; its inputs have the names of graph outputs.
            card: statistics that a card computes from attention in its memory, in place of an appended model.
            threads: threads within one operator; all cores by default.
            device: onnxruntime's name of the device that keeps outputs until they are copied; by default the
                provider's. `cpu` makes a CPU use the code for accelerators.
            precision: `bfloat16` computes in half as many bits, only with `openvino`, on processors that can.
            ablate: take the heads to silence with `run_without`, from a graph of `attlas export --ablate`.
            optimize: let onnxruntime fuse and replace nodes. Without, it computes each as it stands in the graph.
            batch: the number of images of every `run_into`. An accelerator then has no arithmetic with shapes left,
                which would be the host's, and a card repeats its first run as a CUDA graph. Processors run any number.
            decoder: `cuda` decodes the pictures of `run_into` on the card.

        Raises:
            AttlasError: the file is not a graph of attlas, or the provider or the decoder does not work here.
            UsageError: `graph` is not a path, or there is no such provider or precision.
        """
        self.path = Path(expanded(graph, "graph", "the path of an ONNX file"))
        self.spec = read_spec(self.path)
        provider = arguments.text(provider, "provider")
        self.wanted = tuple(wanted if wanted is not None else (Wanted(o.name) for o in self.spec.outputs))
        check_precision(provider, precision)
        shapes: dict[str, tuple[int, ...]] = {"image": (*self.spec.image_size, 3), TARGET: ()}
        self.card = card
        self.appended = appended_outputs(appended) if appended is not None else dict(card.outputs) if card else {}
        # Outputs that stay on the card, unless they are wanted, too.
        self._reduced = () if card is None else tuple(Wanted(f"attention.{i}", card.dtype) for i in self.spec.layers)
        self._held = (*self._reduced, *((Wanted(POOL),) if card is not None and card.pool else ()))
        outputs = list(dict.fromkeys((*self.wanted, *self._held)))
        path, half = self.path, self.spec.dtype == "float16"
        threads = threads or cores()

        def load(fixed: int | None, *, capture: bool = True) -> Compiled:
            model = prepare_graph(path, outputs, appended, ablate=ablate, batch=fixed)
            candidates, strict = resolve_provider(provider), provider.lower() != "auto"
            if candidates == [OPENVINO]:
                return _in_openvino(path, model, shapes, threads, precision, ablate=ablate)
            how: dict[str, Any] = {"threads": threads, "strict": strict, "half": half, "optimize": optimize}
            return OrtGraph(model, path, candidates, **how, capture=capture and fixed is not None)

        fixed = batch if accelerates(provider) or device else None
        self._graph = load(fixed)
        if fixed is not None and find(self._graph.provider).host and not device:
            self._graph = load(None)  # the card does not work
        self.provider = self._graph.provider
        self._device = device or find(self.provider).device
        self.on_cpu = find(self.provider).host and not self._device
        self._inputs = {n: (shapes[n], "int64" if n == TARGET else "uint8") for n in self._graph.inputs if n in shapes}
        self.derives = TARGET in self._inputs
        # A card runs one batch at a time; a second batch would only use more of its memory.
        self._lock = contextlib.nullcontext() if self.on_cpu else threading.Lock()
        self._copies: Copies = (Cudart.load() if self._device == "cuda" else None) or OrtCopies()
        self.filler: Filler = filler_of(decoder, self.spec.recipe, self._copies)
        self._ring: Ring | None = None
        self._without = partial(load, fixed, capture=False)  # the graph once more, if its runs cannot be recorded
        # onnxruntime keeps what a thread records for that thread; any other would record anew, amid others' work.
        self._recorder = ThreadPoolExecutor(1, "recorder") if self._graph.captures else None
        self._ring_lock = threading.Lock()

    @property
    def statistics(self) -> Literal["card", "graph", "host"]:
        """Where statistics are computed; on the host if they are none of this session's."""
        return "card" if self.card is not None else "graph" if self.appended else "host"

    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape without the image axis, and dtype, of every output; -1 comes first for an output without images."""
        return self._shapes(self.wanted) | {f"{APPENDED}{name}": known for name, known in self.appended.items()}

    def _shapes(self, outputs: Iterable[Wanted]) -> dict[str, tuple[tuple[int, ...], str]]:
        found: dict[str, tuple[tuple[int, ...], str]] = {}
        for want in outputs:
            output = self.spec.output(want.source)
            assert output is not None
            batched = output.shape[0] is None
            shape = tuple(n for n in output.shape if n is not None)
            if want.head_mean:
                shape = shape[1:]
            found[want.name] = (shape if batched else (-1, *shape), want.form)
        return found

    def buffers(self, batch: int) -> dict[str, npt.NDArray[Any]]:
        """Arrays for `run_into`, for `batch` images, one per output with an image axis; pinned for a card."""
        return {name: self._copies.host((batch, *shape), dtype) for name, (shape, dtype) in self._batched().items()}

    def pixels(self, batch: int) -> Any:
        """Room for the pixels of `run_into`: (image, row, column, channel) uint8, where `filler` puts them."""
        if self._device:
            # Runs are recorded now: CUDA forbids to allocate memory meanwhile, to a decoder and to other threads, too.
            self._slots(batch)
        return self.filler.pixels(batch)

    @property
    def on_device(self) -> bool:
        """Whether outputs are in a device's memory first."""
        return bool(self._device)

    def free(self) -> int | None:
        """Free bytes on the device, or None if unknown."""
        return self._copies.free()

    def sets(self) -> tuple[int, int]:
        """How many sets of outputs are on the device, and how many bytes an image takes in each of them."""
        shapes = self._batched() | self._shapes(self._held)
        size = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes.values())
        return max(self._ring.made if self._ring is not None else 1, 1), size

    def run_into(
        self,
        pixels: npt.NDArray[np.uint8] | Memory,
        buffers: Mapping[str, npt.NDArray[Any]],
        count: int,
        target: npt.NDArray[np.int64] | None = None,
    ) -> float:
        """Run the first `count` images of `pixels` (image, row, column, channel) and fill the front of `buffers`.

        `target`, as long as `pixels`, holds the class to differentiate for each image, -1 for the predicted class (the
        default). Threads may call it at the same time with their own buffers. Values beyond `count` in pixels and
        buffers are meaningless: an accelerator runs the whole padded batch, because a new shape costs more.

        Returns:
            The seconds that an accelerator took, without copies and without waiting for it; 0 on a CPU.

        Raises:
            AttlasError: the runtime fails, or the device does not have enough memory (`OutOfMemoryError`).
        """
        given: dict[str, Any] = dict.fromkeys(self._inputs, pixels)
        if self.derives:
            given[TARGET] = np.full(len(pixels), PREDICTED, np.int64) if target is None else target
        with self._failures(len(pixels)):
            if self._device:
                return self._run_on_device(given, buffers, count)
            step = CPU_STEP if self.on_cpu else len(pixels)
            with self._lock:
                for start in range(0, count, step):
                    stop = min(start + step, count) if self.on_cpu else len(pixels)
                    part = slice(start, stop)
                    self._graph.fill(
                        {name: values[part] for name, values in given.items()},
                        {name: buffer[part] for name, buffer in buffers.items()},
                    )
        return 0.0

    def run_without(
        self, pixels: npt.NDArray[np.uint8], mask: npt.NDArray[np.float32], fill: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """The first wanted output with some heads silenced; of a session with `ablate`.

        Args:
            pixels: (image, row, column, channel) uint8.
            mask: (layer, head), 1 keeps a head.
            fill: (layer, head, channel), what stands in place of a head that is not kept.

        Raises:
            AttlasError: onnxruntime fails, or the device does not have enough memory (`OutOfMemoryError`).
        """
        step = CPU_STEP if self.on_cpu else max(len(pixels), 1)
        parts = []
        with self._failures(len(pixels)), self._lock:
            for start in range(0, len(pixels), step):
                given = {"image": pixels[start : start + step], "head_mask": mask, "head_fill": fill}
                parts.append(self._graph.session.run([self.wanted[0].name], given)[0])
        return np.concatenate(parts)

    def _run_on_device(self, given: Mapping[str, Any], buffers: Mapping[str, npt.NDArray[Any]], count: int) -> float:
        """Upload, run, download: only the run itself holds the lock, so copies overlap with another batch's run."""
        batch = len(next(iter(given.values())))
        with self._slots(batch).slot() as slot:
            for name, values in given.items():
                self._copies.upload(slot.inputs[name], values)
            run = partial(self._run_slot, slot)
            spent = run() if self._recorder is None else self._recorder.submit(run).result()
            if slot.reduce is not None:  # beside the next batch's run
                slot.reduce()
            for name, buffer in buffers.items():
                self._copies.download(buffer[:count], slot.outputs[name])
        return spent

    def _run_slot(self, slot: Slot) -> float:
        """Run what lies in a slot; returns the seconds that the device took, apart from waiting for it."""
        with self._lock:
            start = time.perf_counter()
            # Returns when the device has finished: onnxruntime waits for its stream at the end of every run.
            slot.run(self._graph.session)
            return time.perf_counter() - start

    def _slots(self, batch: int) -> Ring:
        """The ring for batches of this size; a ring for another size is released."""
        with self._ring_lock:
            if self._ring is None or self._ring.batch != batch:
                self._ring = None
                if self._recorder is not None:
                    self._ring = self._captured(batch, self._recorder)
                if self._ring is None:
                    self._ring = Ring(self._make(batch), batch)
            return self._ring

    def _captured(self, batch: int, recorder: ThreadPoolExecutor) -> Ring | None:
        """A ring whose slots are all recorded now, while nothing else runs; None where the card cannot, from now on."""
        ring = Ring(self._make(batch, captured=True), batch)
        with contextlib.suppress(Exception):  # a runtime's have no common base; what is left to say comes again
            recorder.submit(ring.fill).result()
            return ring
        del ring
        gc.collect()
        self._graph, self._recorder = self._without(), None
        return None

    def _make(self, batch: int, *, captured: bool = False) -> Callable[[int], Slot]:
        """What makes the k-th slot; it holds no reference to this object, which could otherwise not be freed."""
        names = [want.name for want in self._reduced]
        reduced = Reduced(self.card, names, APPENDED) if self.card is not None else None
        shapes = self._batched() | self._shapes(self._held)
        if reduced is not None:  # filled by the card's statistics, not by the graph
            shapes = {name: known for name, known in shapes.items() if not name.startswith(APPENDED)}
        session, inputs, device = self._graph.session, self._inputs, self._device

        def make(k: int) -> Slot:
            return Slot(session, batch, inputs, shapes, device, reduced=reduced, captured=k if captured else 0)

        return make

    def _batched(self) -> dict[str, tuple[tuple[int, ...], str]]:
        return {name: (shape, dtype) for name, (shape, dtype) in self.shapes().items() if shape[:1] != (-1,)}

    @contextlib.contextmanager
    def _failures(self, batch: int) -> Iterator[None]:
        """Convert a runtime's exceptions to ours."""
        try:
            yield
        except AttlasError:
            raise
        except Exception as error:  # a runtime's exceptions have no common base except Exception
            if out_of_memory(error):
                raise OutOfMemoryError(
                    f"{self.path}: a batch of {counted(batch, 'image')} does not fit into the memory of "
                    f"{self.provider}; "
                    "choose fewer with --batch-size, into a new store"
                ) from None
            raise AttlasError(f"{self.path}: {self._graph.runtime} fails ({one_line(error, 300)})") from None

    def __call__(self, images: Any, target: int | Sequence[int] = PREDICTED) -> Result:
        """Logits and attention of a few pictures.

        Args:
            images: one picture or a sequence. A path, encoded bytes or a Pillow image is resized and cropped by the
                graph's recipe. A uint8 array (numpy, torch or others) must already be cropped: RGB from 0 to 255, (row,
                column, channel) or (channel, row, column). Several arrays may be one array with images first.
            target: for a graph with gradients: the class index to differentiate, one for all images or one per image;
                -1 for the predicted class.

        Returns:
            The graph's outputs by name, with `attention.0`, `attention.1` ... stacked as `attention`
            (image, layer, head, query, key), and `gradient` likewise. float32. A dict that also knows the crops, and
            that a notebook shows as pictures.

        Raises:
            AttlasError: a picture cannot be read.
            UsageError: an item is not a picture, or an array of another form; the model has no such class, or the graph
                no gradients.
        """
        pixels = np.zeros((0, *self.spec.image_size, 3), np.uint8)
        pictures = each_picture(images)
        if given := [crop_of(image, self.spec) for image in pictures]:
            # Rows are passed by their address, and stacked views keep their memory order.
            pixels = np.ascontiguousarray(np.stack(given))
        # Ordinary memory, because the caller keeps it.
        buffers = {name: np.zeros((len(pixels), *shape), dtype) for name, (shape, dtype) in self._batched().items()}
        if len(pixels):
            self.run_into(pixels, buffers, len(pixels), self._targets(target, len(pixels)))
        constants = [w.name for w in self.wanted if w.name not in buffers]
        found = dict(buffers)
        if constants and len(pixels):
            found |= {name: self.constant(name) for name in constants}
        return Result(stack_layers(found), self.spec, pixels, [name_of(p, i) for i, p in enumerate(pictures)])

    def __repr__(self) -> str:
        spec, heads = self.spec, f"{counted(len(self.spec.layers), 'layer')} of {counted(self.spec.heads, 'head')}"
        more = ", ".join(sorted({o.name.partition(".")[0] for o in spec.outputs} - {"attention"}))
        return (
            f"Session of {spec.name} ({spec.weights.source} weights), {self.provider}\n"
            f"  pictures  {spec.image_size[0]} x {spec.image_size[1]} pixels, {spec.grid[0]} x {spec.grid[1]} patches"
            f"{' after ' + ', '.join(spec.prefix) if spec.prefix else ''}\n"
            f"  attention {heads}, {spec.tokens} x {spec.tokens}; also {more}\n"
            '  call it with pictures: session(["cat.jpg"])'
        )

    def _targets(self, target: int | Sequence[int], count: int) -> npt.NDArray[np.int64] | None:
        """The class to differentiate for each image, checked."""
        asked = np.array(arguments.numbers(target, "target"), np.int64)
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
        """An output that does not depend on the image (the position embedding), from running one black picture."""
        given = {n: np.zeros((1, *shape), dtype) for n, (shape, dtype) in self._inputs.items()}
        value = np.zeros(self.shapes()[name][0][1:], np.float32)
        with self._failures(1):
            self._graph.fill(given, {name: value})
        return value


def _in_openvino(
    path: Path, model: bytes, shapes: Mapping[str, tuple[int, ...]], threads: int, precision: str, *, ablate: bool
) -> OpenVinoGraph:
    """A graph in OpenVINO, unless it would compute it wrong."""
    if ablate:
        raise UsageError("heads are silenced by onnxruntime only; choose another --provider than openvino")
    if antialiased(path):
        raise AttlasError(f"{path}: resizes a constant, which OpenVINO computes wrong in silence; export it again")
    return OpenVinoGraph(model, path, shapes, beside=bool(weight_files(path)), threads=threads, precision=precision)


def constants(graph: str | os.PathLike[str]) -> dict[str, npt.NDArray[np.float32]]:
    """The outputs of a graph that do not depend on the image, by name: the position embedding, if there is one."""
    fixed = [Wanted(o.name) for o in read_spec(graph).outputs if None not in o.shape]
    if not fixed:
        return {}
    # Everything else is pruned from the graph, so this costs almost nothing.
    session = Session(graph, provider="cpu", wanted=fixed, threads=1)
    return {want.source: session.constant(want.source) for want in fixed}

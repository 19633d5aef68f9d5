"""A prepared graph in OpenVINO, Intel's runtime for processors. The only module that uses it."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy.typing as npt

from ...errors import AttlasError
from .providers import OPENVINO, cores

__all__ = ["OpenVinoGraph", "computes"]

_HINTS = {"float32": "f32", "bfloat16": "bf16"}


def computes(precision: str) -> bool:
    """Whether this machine's processor computes in `float32` or `bfloat16`."""
    return precision == "float32" or "BF16" in _load().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _load() -> Any:
    """The package without its telemetry, which reports its import to its makers, and forks this process for it."""
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


class OpenVinoGraph:
    """A graph that OpenVINO runs, one image at a time; see `session.Compiled`.

    Float32 results have the same bits with any number of threads and streams (docs/engine.md). The shape of one image
    is fixed: with a free batch, OpenVINO is slower, and rounds differently in bfloat16.
    """

    runtime = "OpenVINO"
    provider = OPENVINO
    session = None
    captures = False

    def __init__(
        self,
        model: bytes,
        path: Path,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        beside: bool,
        threads: int,
        precision: str,
    ) -> None:
        """Compile a serialised graph.

        Args:
            model: the graph.
            path: its file.
            shapes: shape of each input, without the image axis.
            beside: whether it has external weights, beside its file.
            threads: threads of one inference. As many run at once as fit on this process's cores.
            precision: `float32` or `bfloat16`.

        Raises:
            AttlasError: OpenVINO cannot load it, or the processor does not compute in `precision`.
        """
        if not computes(precision):
            raise AttlasError(f"--precision {precision}: this machine's processor does not compute in it")
        openvino = _load()
        core, self._tensor = openvino.Core(), openvino.Tensor
        streams = max(1, cores() // threads)
        settings = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams * threads,
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            # Worker processes on one machine would all be pinned to the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            graph = _read(core, model, path) if beside else core.read_model(model, b"")
            self.inputs = tuple(port.any_name for port in graph.inputs)
            graph.reshape({name: [1, *shapes[name]] for name in self.inputs})
            self._compiled: Any = core.compile_model(graph, "CPU", settings)
        except (RuntimeError, OSError) as error:
            # Its first lines name its own source files.
            reason = " ".join(line for line in str(error).splitlines() if not line.startswith("Exception from"))
            raise AttlasError(f"{path}: OpenVINO cannot load it ({reason.strip()[:300]})") from None
        # By the outputs that are asked for: a request goes on writing to every array that it was ever given.
        self._idle: defaultdict[frozenset[str], SimpleQueue[Any]] = defaultdict(SimpleQueue)

    def fill(self, given: Mapping[str, npt.NDArray[Any]], outputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """See `session.Compiled`; the arrays hold one image."""
        idle = self._idle[frozenset(outputs)]
        try:
            request = idle.get_nowait()
        except Empty:
            request = self._compiled.create_infer_request()
        try:
            for name, array in (*given.items(), *outputs.items()):
                request.set_tensor(name, self._tensor(array, shared_memory=True))
            request.infer()
        finally:
            idle.put(request)


def _read(core: Any, model: bytes, path: Path) -> Any:
    """OpenVINO's model of a graph with external weights: it takes them from the folder of the graph's file alone."""
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.stem}.", suffix=".onnx", delete_on_close=False
    ) as file:
        file.write(model)
        file.close()
        return core.read_model(file.name)

"""A prepared graph in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnxruntime as ort

from .providers import create_session

__all__ = ["OrtGraph"]


class OrtGraph:
    """A graph that onnxruntime runs; see `session.Compiled`.

    Attributes:
        session: onnxruntime's own session.
        captures: whether a card records its runs as CUDA graphs.
    """

    runtime = "onnxruntime"

    def __init__(
        self,
        model: bytes,
        path: Path,
        candidates: Sequence[str],
        *,
        threads: int,
        strict: bool,
        half: bool,
        optimize: bool = True,
        capture: bool = False,
    ) -> None:
        """Load the serialised graph of the file `path`; other arguments and errors as in `create_session`.

        Without `optimize`, every node is computed as it stands in the graph.
        """
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # The prepared graph is bytes, so onnxruntime needs the folder of its external weights.
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(path.parent.resolve())
        )
        self.session, self.captures = create_session(
            model, options, candidates, path, strict=strict, half=half, capture=capture
        )
        self.provider: str = self.session.get_providers()[0]
        self.inputs = tuple(entry.name for entry in self.session.get_inputs())

    def fill(self, given: Mapping[str, npt.NDArray[Any]], outputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """See `session.Compiled`."""
        binding = self.session.io_binding()
        for name, values in given.items():
            binding.bind_input(name, "cpu", 0, values.dtype.type, values.shape, values.ctypes.data)
        for name, out in outputs.items():
            binding.bind_output(name, "cpu", 0, out.dtype.type, out.shape, out.ctypes.data)
        self.session.run_with_iobinding(binding)

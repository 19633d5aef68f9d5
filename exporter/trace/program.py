"""From a tapped model to an ONNX graph in memory: torch's exporter, and what is done to its result."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, fx, nn

from ...errors import AttlasError, first_line
from ..spec import METADATA_KEY, GraphSpec
from ..taps.ablation import Ablated
from ..taps.gradients import Gradients
from ..taps.tapped import Tapped
from .fold import fold_constants
from .half import to_float16
from .parity import example
from .simplify import simplify
from .tidy import adopt_constants, free_batch, name_constants, separate_square_weights, strip

__all__ = ["trace", "version"]

OPSET = 20


def version() -> str:
    """The version of attlas; 0 if it is not installed."""
    try:
        return importlib.metadata.version("attlas")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def trace(tapped: Tapped | Ablated, spec: GraphSpec) -> ir.Model:
    """The graph, with a dynamic batch and the spec inside, and without any trace of this machine.

    It is traced with two images: with one, torch's exporter would fix the batch at 1.

    Raises:
        AttlasError: torch cannot translate it, or fixes its batch.
    """
    given = {name: torch.from_numpy(values) for name, values in example(2, spec).items()}
    try:
        with _silence():
            if spec.gradients and isinstance(tapped, Tapped):
                model = _with_gradients(Gradients(tapped, spec.name, spec.objective).module(**given), given, spec)
            else:
                model = _translated(tapped, given, spec)
            simplify(model)
    except Exception as error:
        raise AttlasError(
            f"{spec.name}: torch {torch.__version__} cannot trace it to ONNX: {first_line(error)}"
        ) from error
    adopt_constants(model.graph)
    fold_constants(model.graph)
    name_constants(model.graph)
    if spec.gradients:
        separate_square_weights(model.graph)
    free_batch(model, spec)
    strip(model)
    model.producer_name, model.producer_version = "attlas", version()
    model.metadata_props[METADATA_KEY] = spec.to_json()
    if spec.dtype == "float16":
        to_float16(model)
    return model


def _with_gradients(module: fx.GraphModule, given: Mapping[str, Tensor], spec: GraphSpec) -> ir.Model:
    """A module of plain operators as a graph.

    They are decomposed already, and to try it once more takes as long as everything else, so it is left out. Where an
    operator is not plain enough for ONNX, in place for one, it is done after all.
    """
    batch = [{0: torch.export.Dim.DYNAMIC} for _ in given]
    program = torch.export.export(module, tuple(given.values()), dynamic_shapes=batch)
    decompose = program.run_decompositions
    program.run_decompositions = lambda table=None, **options: program
    try:
        return _translated(program, given, spec)
    except torch.onnx.OnnxExporterError:
        program.run_decompositions = decompose
        return _translated(program, given, spec)


def _translated(
    module: nn.Module | torch.export.ExportedProgram, given: Mapping[str, Tensor], spec: GraphSpec
) -> ir.Model:
    """The graph as torch's exporter gives it, not simplified."""
    options: dict[str, Any] = {}
    if isinstance(module, nn.Module):
        options["dynamic_shapes"] = tuple({} if name.startswith("head_") else {0: "batch"} for name in given)
    program = torch.onnx.export(
        module,
        tuple(given.values()),
        dynamo=True,
        opset_version=OPSET,
        input_names=list(given),
        output_names=[o.name for o in spec.outputs],
        optimize=False,
        **options,
    )
    assert program is not None
    return program.model


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress what torch's exporter writes to stdout, stderr, warnings and logs, and the stack traces of its nodes."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    # An older torch has no such setting. The traces are not in the graph, and take a tenth of the time.
    traces = getattr(fx.config, "do_not_emit_stack_traces", None)
    fx.config.do_not_emit_stack_traces = True
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
        fx.config.do_not_emit_stack_traces = bool(traces)

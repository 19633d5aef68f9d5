"""From a tapped model to an ONNX graph in memory: torch's exporter, and what is done to its result."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import logging
import warnings
from collections.abc import Iterator, Mapping

import onnx_ir as ir
import torch
from onnxscript.function_libs.torch_lib import registration
from torch import Tensor, fx, nn

from ...errors import AttlasError, first_line
from ..spec import GraphSpec
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
    """The graph, with a dynamic batch, and without any trace of this machine.

    It is traced with two images: with one, torch's exporter would fix the batch at 1.

    Raises:
        AttlasError: torch cannot translate it, or fixes its batch.
    """
    given = {name: torch.from_numpy(values) for name, values in example(2, spec).items()}
    try:
        with _silence():
            module: nn.Module = tapped
            if spec.gradients and isinstance(tapped, Tapped):
                module = Gradients(tapped, spec.name, spec.objective).module(**given)
            model = _translated(_captured(module, given), given, spec)
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
    if spec.dtype == "float16":
        to_float16(model)
    return model


def _captured(module: nn.Module, given: Mapping[str, Tensor]) -> torch.export.ExportedProgram:
    """The module as torch's operators, for any number of images."""
    sizes = tuple({} if name.startswith("head_") else {0: torch.export.Dim.DYNAMIC} for name in given)
    try:
        return torch.export.export(module, tuple(given.values()), dynamic_shapes=sizes)
    except Exception:  # what it cannot run with symbolic sizes, it may follow in bytecode
        with contextlib.suppress(Exception):
            return torch.export.export(module, tuple(given.values()), dynamic_shapes=sizes, strict=True)
        raise


def _translated(program: torch.export.ExportedProgram, given: Mapping[str, Tensor], spec: GraphSpec) -> ir.Model:
    """The graph as torch's exporter gives it, not simplified.

    Torch's exporter decomposes a program before it translates it, which takes longer than to capture it, though it has
    a translation for what nearly every Vision Transformer consists of. Then that is left out.
    """
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.to.dtype:  # the one frequent operator without a translation
            values, dtype, *_ = node.args
            node.target, node.args, node.kwargs = torch.ops.aten._to_copy.default, (values,), {"dtype": dtype}
    decompose = program.run_decompositions
    if all(map(_translatable, program.graph.nodes)):
        program.run_decompositions = lambda table=None, **options: program
        try:
            return _onnx(program, given, spec)
        except torch.onnx.OnnxExporterError:
            program.run_decompositions = decompose
    return _onnx(program, given, spec)


def _translatable(node: fx.Node) -> bool:
    """Whether an operator has a translation to ONNX as it is, and changes nothing in place."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    importlib.import_module("onnxscript.function_libs.torch_lib.ops")  # registers them
    name = str(node.target.name())  # type: ignore[no-untyped-call]
    known = name in registration.default_registry or name.startswith(("aten::sym_", "aten::_assert"))
    return known and not node.target._schema.is_mutable


def _onnx(program: torch.export.ExportedProgram, given: Mapping[str, Tensor], spec: GraphSpec) -> ir.Model:
    found = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=list(given),
        output_names=[o.name for o in spec.outputs],
        optimize=False,
    )
    assert found is not None
    return found.model


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

"""One ONNX file that gives a model's logits and every attention map, and says what it is."""

from __future__ import annotations

import contextlib
import io
import logging
import mmap
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
import onnx_ir as ir
import onnxruntime
import timm
import torch
from torch import nn

from .errors import AttlasError, UsageError
from .gradients import Gradients, separate_square_weights
from .half import to_float16
from .memory import refuse_too_large
from .models import Facts, Model, build, describe
from .parity import Parity, check, example
from .spec import LARGEST_FILE, METADATA_KEY, GraphSpec, Output
from .summary import summarize
from .tapped import Tapped
from .taps import Taps

__all__ = ["ExportResult", "export", "export_model", "spec_path"]

OPSET = 20

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What `export` wrote: the graph, the spec inside it, how far it is from PyTorch, the time and the size."""

    path: Path
    spec: GraphSpec
    parity: Parity
    seconds: float
    bytes: int


def export(
    model: str,
    output: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    pretrained: bool = True,
    random_init: bool = False,
    seed: int = 0,
    dtype: Literal["float32", "float16"] = "float32",
    img_size: object = None,
    preprocess: str | Mapping[str, object] | None = None,
    layers: Sequence[int] | None = None,
    gradients: bool = False,
    norms: bool = False,
    num_classes: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExportResult:
    """Export a timm model to ONNX with its attention, and prove the file against PyTorch.

    The graph's input is `image` (image, y, x, 3) uint8, any number of images. Its outputs, all float32, are `logits`
    (image, class), or `features` (image, feature) where the head gives no classes; `tokens` (image, token, channel)
    after the final norm; `attention.L` (image, head, query, key) for each block L from 0; `pool_attention`
    (image, head, pool_query, key) where the head pools with a learned query, with zeros for keys it does not see; and
    `position_embedding` (token or patch, channel) where the model has a learned absolute one. With `gradients` there
    is a second input, `target` (image) int64, a class each or -1 for the predicted one, and `gradient.L`
    (image, head, query, key) is the derivative of that class's logit by `attention.L`. With `norms` there are
    `value_norm.L` (image, head, key), `branch_ratio.L` and `token_norm.L` (image, token), see `norms`.

    Args:
        model: timm's name, with or without a pretrained tag.
        output: the graph, `NAME.onnx`; its spec goes beside it as `NAME.json`, and weights above 2 GB as
            `NAME.onnx.data`.
        checkpoint: weights from this file, safetensors or a torch state dict.
        pretrained: the tag's own weights, where no other source is given.
        random_init: random weights, drawn from `seed`.
        seed: of the random weights.
        dtype: in which the graph computes; float16 keeps softmax, norms and scores in float32.
        img_size: edge or (height, width), where the tag's own is not wanted.
        preprocess: replaces parts of the tag's recipe: `mean=..,std=..,resize=squash:256,crop=224`.
        layers: the blocks whose attention is an output; all by default.
        gradients: whether gradients are outputs too; of models that classify, in float32.
        norms: whether norms of values, attention branches and tokens are outputs too.
        num_classes: of the checkpoint's head; 0 for none.
        overwrite: replace files that exist.
        progress: called with one line as each stage begins.

    Raises:
        UsageError: the request is wrong: unknown model, an existing file, a layer that does not exist, a model
            without global attention over patches, gradients of a model without classes.
        AttlasError: weights that cannot be had or do not fit, too little memory, or a graph that differs from PyTorch.
            No file is left.
    """
    started = time.perf_counter()
    say = progress or (lambda line: None)
    path = _target(_own(output), overwrite)
    say(f"building {model}")
    with contextlib.suppress(UsageError):  # whatever else is wrong with it, building it tells
        refuse_too_large(summarize(model, img_size=img_size))
    built = build(
        model,
        checkpoint=None if checkpoint is None else _own(checkpoint),
        pretrained=pretrained,
        random_init=random_init,
        seed=seed,
        img_size=img_size,
        preprocess=preprocess,
        num_classes=num_classes,
    )
    return export_model(
        built,
        path,
        dtype=dtype,
        layers=layers,
        gradients=gradients,
        norms=norms,
        overwrite=overwrite,
        progress=say,
        started=started,
    )


def _own(place: str | os.PathLike[str]) -> Path:
    """A path whose `~` is the user's folder; one that names no user stays as it is."""
    return Path(os.path.expanduser(place))  # noqa: PTH111 - pathlib raises for `~nobody`


def export_model(
    built: Model,
    output: Path,
    *,
    dtype: Literal["float32", "float16"] = "float32",
    layers: Sequence[int] | None = None,
    gradients: bool = False,
    norms: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    started: float | None = None,
) -> ExportResult:
    """Export a model that is built already; arguments and errors as in `export`."""
    started = time.perf_counter() if started is None else started
    say = progress or (lambda line: None)
    path = _target(output, overwrite)
    if dtype not in ("float32", "float16"):
        raise UsageError(f"--dtype {dtype}: a graph computes in float32 or float16")
    if gradients and dtype != "float32":
        raise UsageError("--gradients: most of a gradient lies below float16's smallest numbers; export in float32")
    taps = Taps(built.module, built.full_name)
    facts = describe(built, taps)
    chosen = _layers(layers, taps.depth, built.full_name)
    tapped = Tapped(built, taps, facts, chosen, norms=norms)
    derived = Gradients(tapped, built.full_name) if gradients else None
    spec = _spec(built, taps, facts, tapped, dtype, gradients)
    say(f"tracing {spec.name}: {spec.depth} layers, {spec.heads} heads, {spec.tokens} tokens")
    graph = _trace(tapped, spec)
    with _beside(path) as folder:
        draft = folder / path.name
        say(f"writing {path.name}")
        _save(graph, draft, spec)
        del graph
        say("comparing with PyTorch")
        parity = check(draft, spec, tapped.run if derived is None else derived.run)
        size = sum(f.stat().st_size for f in folder.iterdir())
        _publish(folder, path)
    return ExportResult(path, spec, parity, time.perf_counter() - started, size)


def spec_path(graph: Path) -> Path:
    """Where the spec stands beside a graph: `deit.json` for `deit.onnx`."""
    return graph.with_suffix(".json")


def _layers(layers: Sequence[int] | None, depth: int, name: str) -> tuple[int, ...]:
    chosen = tuple(range(depth)) if layers is None else tuple(sorted(set(layers)))
    wrong = [layer for layer in chosen if not 0 <= layer < depth]
    if wrong or not chosen:
        asked = ", ".join(map(str, wrong)) or "none"
        raise UsageError(f"--layers: {name} has layers 0 to {depth - 1}, asked for {asked}")
    return chosen


def _spec(
    built: Model, taps: Taps, facts: Facts, tapped: Tapped, dtype: Literal["float32", "float16"], gradients: bool
) -> GraphSpec:
    dims = {
        "logits": ("image", "class"),
        "features": ("image", "feature"),
        "tokens": ("image", "token", "channel"),
        "attention": ("image", "head", "query", "key"),
        "class_attention": ("image", "head", "class_query", "class_key"),
        "pool_attention": ("image", "head", "pool_query", "key"),
        "value_norm": ("image", "head", "key"),
        "branch_ratio": ("image", "token"),
        "token_norm": ("image", "token"),
    }
    outputs = []
    for name, value in tapped.examples.items():
        shape = tuple(value.shape)
        if name == "position_embedding":
            axis = "token" if shape[0] == facts.tokens else "patch"
            outputs.append(Output(name, (axis, "channel"), shape))
        else:
            outputs.append(Output(name, dims[name.partition(".")[0]], (None, *shape[1:])))
    if gradients:
        maps = [o for o in outputs if o.name.startswith("attention.")]
        outputs += [Output(o.name.replace("attention", "gradient"), o.dims, o.shape) for o in maps]
    return GraphSpec(
        model=built.name,
        tag=built.tag,
        weights=built.weights(),
        dtype=dtype,
        image_size=built.image_size,
        recipe=built.recipe,
        patch_size=facts.patch_size,
        grid=facts.grid,
        prefix=facts.prefix,
        pooling=facts.pooling if facts.pooling != "pool" or tapped.has_pool else "none",
        layers=tapped.layers,
        depth=taps.depth,
        heads=tapped.examples[f"attention.{tapped.layers[0]}"].shape[1],
        attention_kind="mixed" if tapped.mixed else "probability",
        position=facts.position,
        outputs=tuple(outputs),
        classes=built.classes if built.head == "logits" else (),
        gradients=gradients,
        norms=tapped.branches is not None,
        versions={
            "attlas": _version(),
            "torch": torch.__version__.partition("+")[0],
            "timm": timm.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
    )


def _version() -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version("attlas")
    except importlib.metadata.PackageNotFoundError:
        return "0"


# Tracing -------------------------------------------------------------------------------------------------------------


def _trace(tapped: Tapped, spec: GraphSpec) -> ir.Model:
    """The graph, with a dynamic batch, with the spec inside and nothing of this machine.

    Traced with two images: with one, the exporter would bake the batch in.
    """
    given = {name: torch.from_numpy(values) for name, values in example(2, spec).items()}
    module: nn.Module = tapped
    try:
        with _silence():
            if spec.gradients:
                module = Gradients(tapped, spec.name).module(**given)
            program = torch.onnx.export(
                module,
                tuple(given.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(given),
                output_names=[o.name for o in spec.outputs],
                dynamic_shapes=tuple({0: "batch"} for _ in given),
            )
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise AttlasError(f"{spec.name}: torch {torch.__version__} cannot trace it to ONNX: {first[:200]}") from error
    assert program is not None
    model = program.model
    _adopt_constants(model.graph)
    _name_constants(model.graph)
    if spec.gradients:
        separate_square_weights(model.graph)
    _check_batch(model, spec)
    _strip(model)
    model.producer_name, model.producer_version = "attlas", _version()
    model.metadata_props[METADATA_KEY] = spec.to_json()
    if spec.dtype == "float16":
        to_float16(model)
    return model


def _check_batch(model: ir.Model, spec: GraphSpec) -> None:
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.name == "position_embedding":
            continue
        batch = None if value.shape is None else value.shape[0]
        if not isinstance(batch, ir.SymbolicDim):
            raise AttlasError(
                f"{spec.name}: the traced graph fixes its batch at {batch} in {value.name}; nothing was written"
            )
        assert value.shape is not None
        value.shape[0] = ir.SymbolicDim("batch")


def _adopt_constants(graph: ir.Graph) -> None:
    """Register constants that the exporter's optimiser made and forgot (seen where it fuses two clamps, torch 2.15)."""
    for node in graph:
        for i, value in enumerate(node.inputs):
            if value is None or value.producer() is not None or value.const_value is None:
                continue
            if graph.initializers.get(value.name or "") is not value:
                constant = value.const_value
                own = ir.Value(name=f"{node.name}_constant_{i}", const_value=constant)
                own.shape, own.dtype = ir.Shape(constant.numpy().shape), constant.dtype
                graph.register_initializer(own)
                node.replace_input_with(i, own)


def _name_constants(graph: ir.Graph) -> None:
    """Give a constant output a node of its own: not every runtime takes an initializer for an output."""
    for i, value in enumerate(graph.outputs):
        if not value.is_initializer():
            continue
        name, value.name = value.name, f"{value.name}_constant"
        node = ir.node("Identity", [value], name=f"node_{name}")
        node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = name, value.shape, value.type
        graph.append(node)
        graph.outputs[i] = node.outputs[0]


def _strip(model: ir.Model) -> None:
    """Remove what differs from run to run or tells of this machine: stack traces, paths, doc strings."""
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        graph.metadata_props.clear()
        graph.doc_string = None
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
                value.doc_string = None
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    model.metadata_props.clear()
    model.doc_string = None
    model.graph.name = "attlas"


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The exporter of torch talks on stdout, stderr, in warnings and logs; whoever calls a library wants none of it."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
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


# Writing -------------------------------------------------------------------------------------------------------------


def _target(path: Path, overwrite: bool) -> Path:
    if path.suffix != ".onnx":
        raise UsageError(f"{path}: a graph's name ends in .onnx")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}; make it first")
    for file in (path, spec_path(path)):
        if file.exists() and not (overwrite and file.is_file()):
            raise UsageError(f"{file}: exists already; pass --overwrite to replace it, or another name")
    return path


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A folder on the same file system, for files that are not yet proven; it is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _save(model: ir.Model, path: Path, spec: GraphSpec) -> None:
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    ir.save(model, path, external_data=f"{path.name}.data" if weights > LARGEST_FILE else None)
    _refuse_paths(path, spec)
    spec_path(path).write_text(spec.to_json(indent=1) + "\n", encoding="utf-8")


def _refuse_paths(path: Path, spec: GraphSpec) -> None:
    """No file that is published tells where it was made."""
    places = (Path.cwd(), Path.home(), path.parent.resolve(), Path(sys.prefix), Path(__file__).parent)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        # A root such as "/" says nothing, and its byte is in every file.
        found = [str(p) for p in places if len(p.parts) > 2 and content.find(str(p).encode()) >= 0]
    if found:
        raise AttlasError(f"{spec.name}: the graph would hold the path {found[0]}; nothing was written")


def _publish(folder: Path, path: Path) -> None:
    """Move the proven files into place, the graph last: where it is, the others are."""
    data = path.with_name(f"{path.name}.data")
    if not (folder / data.name).exists():
        data.unlink(missing_ok=True)
    for name in (data.name, spec_path(path).name, path.name):
        if (folder / name).exists():
            (folder / name).replace(path.with_name(name))

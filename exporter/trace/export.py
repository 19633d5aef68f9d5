"""Export a model to one ONNX file with logits, every attention map, and metadata."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
import onnxruntime
import torch
from torch import nn

from ... import arguments
from ...errors import AttlasError, UsageError
from ...files import drafting
from ...progress import SECONDS_BETWEEN_LINES, Show, Step, shows
from ...words import counted
from ..libraries.build import build, find
from ..libraries.hub import downloads
from ..libraries.protocol import Facts, Model
from ..models.memory import refuse_too_large
from ..spec import METADATA_KEY, QKV, GraphSpec, Output, Weights
from ..taps.ablation import Ablated
from ..taps.attention import Taps
from ..taps.facts import describe, summarize
from ..taps.gradients import Gradients, without_classes
from ..taps.tapped import Tapped
from .exact import in_float64
from .parity import Parity, check
from .program import trace, version
from .write import save

__all__ = ["ExportResult", "export", "export_model", "spec_path"]

STEPS = 4  # load, trace, write, compare: the steps that progress counts


@dataclass(frozen=True, slots=True, repr=False)
class ExportResult:
    """The result of `export`: the graph's path, its spec, its difference from PyTorch, the time and the size.

    `notes` are lines that the user should read, such as which weights of a checkpoint were used.
    """

    path: Path
    spec: GraphSpec
    parity: Parity
    seconds: float
    bytes: int
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        spec = f"{self.spec.name}, {counted(self.spec.depth, 'layer')}, {counted(self.spec.heads, 'head')}"
        off = f"largest row total variation from PyTorch {self.parity.row_max:.1e}"
        return "\n".join([f"{self.path}: {spec}, {off}", *self.notes])


@shows("steps")
def export(
    model: str | nn.Module,
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
    gradients: bool | Literal["logit", "loss"] = False,
    norms: bool = False,
    qkv: bool = False,
    ablate: bool = False,
    num_classes: int | None = None,
    model_args: Mapping[str, Any] | None = None,
    texts: Sequence[str] | str = (),
    overwrite: bool = False,
    progress: Show[str] = None,
) -> ExportResult:
    """Export a model with its attention to ONNX (docs/graph.md), and check the file against PyTorch.

    Args:
        model: timm's name, with or without a pretrained tag; `transformers:ORG/NAME` or `transformers:FOLDER`;
            `open_clip:NAME/TAG`; or a module, whose recipe is given where its library does not know it.
        output: the graph, `NAME.onnx`; its spec is written next to it as `NAME.json`.
        checkpoint: a file with weights (safetensors or torch), or `FILE:KEY` for one part of it, such as `model_ema`.
        pretrained: use the tag's own weights if no other source is given.
        random_init: use random weights, drawn from `seed`.
        seed: seed of the random weights.
        dtype: precision of the computation; float16 keeps softmax, norms and scores in float32.
        img_size: edge or (height, width) in pixels, instead of the tag's own.
        preprocess: replaces parts of the tag's recipe: `mean=..,std=..,resize=squash:256,crop=224`.
        layers: the blocks whose attention is an output, by index from 0; all by default.
        gradients: also output gradients of a class's logit (True), or of the loss, -ln of its probability ("loss");
            needs a model with classes, and float32.
        norms: also output norms of values, attention branches and tokens.
        qkv: also output queries, keys and values, which are for `attlas show --walk` and are not kept by a run.
        ablate: take two more inputs, by which heads are silenced; in float32 and without gradients.
        num_classes: number of classes of the checkpoint's head; 0 for no head. Of a module: how many classes it gives.
        model_args: arguments for the library: of timm's model, or entries of transformers' configuration.
        texts: of a model of open_clip: its classes. The logits are the texts' cosines with the image, scaled as the
            model does.
        overwrite: replace existing files.
        progress: True shows a bar; a function is called with one line as each step begins, and one as it ends.

    Raises:
        UsageError: an unknown model, one without global attention over patches, an existing file, a recipe not for RGB.
        AttlasError: weights do not fit, memory is too small, or the graph differs from PyTorch. No file is left.
    """
    started = time.perf_counter()
    _check_types(model, checkpoint)
    output = arguments.path(output, "output", "the path of the graph, NAME.onnx")
    checkpoint = None if checkpoint is None else arguments.path(checkpoint, "checkpoint", "the path of a file")
    layers = None if layers is None else arguments.numbers(layers, "layers")
    seed, num_classes = arguments.whole(seed, "seed"), arguments.whole_or_none(num_classes, "num_classes")
    texts = arguments.names(texts, "texts")
    _check_dtype(dtype, gradients, ablate)
    path = _target(_own(output), overwrite)
    choice: dict[str, Any] = {"checkpoint": checkpoint, "pretrained": pretrained, "random_init": random_init}
    choice |= {"seed": seed, "texts": texts}
    recipe = {"img_size": img_size, "preprocess": preprocess, "num_classes": num_classes, "model_args": model_args}
    if isinstance(model, str):
        if gradients and not texts and find(model)[0].has_texts:
            raise without_classes(model)  # and nothing is downloaded
        try:
            summary = summarize(model, img_size=img_size, preprocess=preprocess, model_args=model_args)
            refuse_too_large(summary, layers, gradients=bool(gradients))
        except UsageError:
            if find(model)[0].name == "timm":  # what its summary refuses is on no list: no weights are fetched
                raise  # any other problem is reported by `build`
    built = _loaded(model, progress, **choice, **recipe)
    more: dict[str, Any] = {"gradients": gradients, "norms": norms, "qkv": qkv, "ablate": ablate}
    return export_model(
        built, path, dtype=dtype, layers=layers, overwrite=overwrite, progress=progress, started=started, **more
    )


def _loaded(model: str | nn.Module, progress: Show[str], **choice: Any) -> Model:
    """The model with its weights; arguments as for `build`."""
    shown = model if isinstance(model, str) else type(model).__name__
    with _step(progress, f"loading {shown}", 1) as end, downloads(_downloading(progress)):
        built = build(model, **choice)
        part = f" ({built.key})" if built.key else ""
        end(f"loaded {built.full_name}, {built.source} weights{part}")
    return built


def _downloading(progress: Show[str]) -> Callable[[str, int, int], None]:
    """Show how far a download is: on a bar a moving note, elsewhere a line now and then."""
    say = progress if callable(progress) else (lambda _line: None)
    last = -math.inf

    def moved(file: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        brief = 0 < done < total and now - last < SECONDS_BETWEEN_LINES
        last = last if brief else now
        # The figures first: a terminal may have no more room.
        say(Step(f"{done / 1e9:.2f} of {total / 1e9:.2f} GB of {file} downloaded", 1, STEPS, brief=brief))

    return moved


def _own(path: str | os.PathLike[str]) -> Path:
    """A path with `~` expanded; `~nobody` is not changed."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - pathlib raises for `~nobody`


def export_model(
    built: Model,
    output: Path,
    *,
    dtype: Literal["float32", "float16"] = "float32",
    layers: Sequence[int] | None = None,
    gradients: bool | Literal["logit", "loss"] = False,
    norms: bool = False,
    qkv: bool = False,
    ablate: bool = False,
    overwrite: bool = False,
    progress: Show[str] = None,
    started: float | None = None,
) -> ExportResult:
    """Export a model that is already built; arguments and errors as in `export`."""
    started = time.perf_counter() if started is None else started
    path = _target(output, overwrite)
    _check_dtype(dtype, gradients, ablate)
    _check_recipe(built)
    if gradients and built.head != "logits":
        raise without_classes(built.full_name)
    taps = Taps(built)
    facts = describe(built, taps)
    chosen = _layers(layers, taps.depth, built.full_name)
    with _step(progress, f"tracing {built.full_name}", 2) as end, ThreadPoolExecutor(1) as aside:
        weights = aside.submit(built.weights)  # their hash, while Python traces
        tapped = Tapped(built, taps, facts, chosen, norms=norms, qkv=qkv, remember=not (gradients or ablate))
        ablated = Ablated(tapped, taps) if ablate else None
        spec = _spec(built, taps, facts, tapped, dtype, gradients, ablated)
        derived = Gradients(tapped, built.full_name, spec.objective) if gradients else None
        graph = trace(tapped if ablated is None else ablated, spec)
        spec = dataclasses.replace(spec, weights=weights.result())
        graph.metadata_props[METADATA_KEY] = spec.to_json()
        end(f"traced {spec.depth} layers, {spec.heads} heads, {spec.tokens} tokens")
    with _beside(path) as folder:
        draft = folder / path.name
        with _step(progress, f"writing {path.name}", 3) as end:
            save(graph, draft)
            spec_path(draft).write_text(spec.to_json(indent=1) + "\n", encoding="utf-8")
            del graph
            size = sum(f.stat().st_size for f in folder.iterdir())
            end(f"wrote {size / 1e6:.1f} MB")
        with _step(progress, "comparing with PyTorch", 4) as end:
            run = (ablated or derived or tapped).run
            known, tapped.known = tapped.known, None
            parity = check(draft, spec, run, in_float64(run, tapped), known=known, progress=_moving(progress))
            end(f"compared on {counted(parity.images, 'picture')}")
        _publish(folder, path)
    return ExportResult(path, spec, parity, time.perf_counter() - started, size, built.notes)


def _moving(progress: Show[str]) -> Callable[[int, int], None]:
    """Show how many layers are compared: on a bar, a moving note; elsewhere the steps' own lines do."""
    say = progress if callable(progress) else (lambda _line: None)

    def moved(done: int, total: int) -> None:
        if done:
            say(Step(f"compared {done} of {total} layers", 4, STEPS, brief=True))

    return moved


@contextlib.contextmanager
def _step(progress: Show[str], begin: str, number: int) -> Iterator[Callable[[str], None]]:
    """Report that a step begins, and at its end the result and the seconds."""
    say = progress if callable(progress) else (lambda _line: None)
    started, ended = time.perf_counter(), begin
    say(Step(begin, number, STEPS))

    def end(line: str) -> None:
        nonlocal ended
        ended = line

    yield end
    say(f"{ended} in {time.perf_counter() - started:.0f} s")


def spec_path(graph: Path) -> Path:
    """Path of the spec next to a graph: `deit.json` for `deit.onnx`."""
    return graph.with_suffix(".json")


def _check_types(model: object, checkpoint: object) -> None:
    """Refuse what is no model, and weights that are in no file, before any work."""
    if isinstance(checkpoint, nn.Module | Mapping):
        raise UsageError(
            f"checkpoint: a {type(checkpoint).__name__} was given; save the state dict with "
            "safetensors.torch.save_file and pass the file's path"
        )
    if not isinstance(model, str | nn.Module):
        raise UsageError(f"model: pass the name of a model, or a module, not {arguments.brief(model)}")


def _check_dtype(dtype: str, gradients: bool | str, ablate: bool) -> None:
    if gradients not in (False, True, "logit", "loss"):
        raise UsageError(f"gradients {arguments.brief(gradients)}: there are those of the logit (True) and of the loss")
    if dtype not in ("float32", "float16"):
        raise UsageError(f"--dtype {dtype}: a graph computes in float32 or float16")
    if gradients and dtype != "float32":
        raise UsageError("--gradients: most of a gradient lies below float16's smallest numbers; export in float32")

    if ablate and (gradients or dtype != "float32"):
        other = "--gradients" if gradients else f"--dtype {dtype}"
        raise UsageError(f"--ablate: not with {other}; export two graphs of the same weights")


def _check_recipe(built: Model) -> None:
    """Check a recipe that was set on the model by hand by the same rules as one from the options."""
    built.recipe.check(f"{built.full_name}: recipe")
    if built.recipe.crop != built.image_size:
        crop, size = ("x".join(map(str, edges)) for edges in (built.recipe.crop, built.image_size))
        raise UsageError(f"{built.full_name}: recipe: crop {crop} is not the graph's input {size}; make them equal")


def _layers(layers: Sequence[int] | None, depth: int, name: str) -> tuple[int, ...]:
    chosen = tuple(range(depth)) if layers is None else tuple(sorted(set(layers)))
    wrong = [layer for layer in chosen if not 0 <= layer < depth]
    if wrong or not chosen:
        asked = ", ".join(map(str, wrong)) or "none"
        raise UsageError(f"--layers: {name} has layers 0 to {depth - 1}, asked for {asked}")
    return chosen


def _spec(
    built: Model, taps: Taps, facts: Facts, tapped: Tapped, dtype: Literal["float32", "float16"],
    gradients: bool | str, ablated: Ablated | None,
) -> GraphSpec:  # fmt: skip
    dims = {
        "logits": ("image", "class"),
        "features": ("image", "feature"),
        "tokens": ("image", "token", "channel"),
        "attention": ("image", "head", "query", "key"),
        "class_attention": ("image", "head", "class_query", "class_key"),
        "pool_attention": ("image", "head", "pool_query", "key"),
        "head_output": ("image", "head", "head_channel"),
        "value_norm": ("image", "head", "key"),
        "branch_ratio": ("image", "token"),
        "token_norm": ("image", "token"),
        **dict.fromkeys(QKV, ("image", "head", "token", "head_channel")),
    }
    outputs = []
    for name, value in (tapped.examples | (ablated.examples if ablated is not None else {})).items():
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
        weights=Weights(built.source, "", built.key),
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
        gradients=bool(gradients),
        objective="loss" if gradients == "loss" else "logit",
        norms=tapped.branches is not None,
        ablate=ablated is not None,
        library=built.library.name,
        processor=built.processor,
        versions={
            "attlas": version(),
            "torch": torch.__version__.partition("+")[0],
            **built.library.versions(),
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
    )


# Writing -------------------------------------------------------------------------------------------------------------


def _target(path: Path, overwrite: bool) -> Path:
    if path.suffix != ".onnx":
        raise UsageError(f"{path}: a graph's name ends in .onnx")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path}: nothing can be written to {path.parent}; name another folder")
    for file in (path, spec_path(path)):
        if file.exists() and not (overwrite and file.is_file()):
            raise UsageError(f"{file}: exists already; pass --overwrite to replace it, or another name")
    return path


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A temporary folder on the same file system, for files that are not checked yet."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    except OSError as error:
        raise AttlasError(f"{path}: cannot be written ({error.strerror or error})") from None
    try:
        with drafting(folder, path):
            yield folder
    except OSError as error:
        raise AttlasError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, path: Path) -> None:
    """Move the checked files to their final paths, the graph last, so that a graph is never without its files."""
    data = path.with_name(f"{path.name}.data")
    made = [name for name in (data.name, spec_path(path).name, path.name) if (folder / name).exists()]
    for name in made:
        (folder / name).replace(path.with_name(name))
    # Weights of an earlier graph are deleted only now: that graph needed them until it was replaced.
    if data.name not in made:
        data.unlink(missing_ok=True)

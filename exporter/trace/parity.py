"""Check that a written graph equals the model: compare the file in onnxruntime with PyTorch on the same pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ...errors import AttlasError, first_line
from ..differences import GRADIENT_MAX, GRADIENT_MEDIAN, LIMITS, relative, row_variation, same_first
from ..spec import NORMS, QKV, GraphSpec
from ..taps.pictures import pictures

__all__ = ["Parity", "check", "compare", "example", "relative_difference"]

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Parity:
    """The differences between the graph and PyTorch.

    Attributes:
        images: number of pictures compared, in one batch; not the batch size of the trace.
        row_mean, row_max: total variation (half the L1 distance) per row of attention, over all layers, heads and
            queries, the pool's and the class token's own maps included.
        head: largest absolute difference of logits or features; `head_scale`: the largest absolute value of them.
        top1: share of pictures with the same first class; 1.0 without classes.
        gradient_max, gradient_median: maximum and median, over images and layers, of the largest difference from
            autograd relative to the largest gradient. None without gradients.
        norm_max: largest difference of a norm relative to the largest norm of the same kind, image and layer. None
            without norms.
        qkv_max: the same of a query, key or value. None without them.
    """

    images: int
    row_mean: float
    row_max: float
    head: float
    head_scale: float
    top1: float
    gradient_max: float | None = None
    gradient_median: float | None = None
    norm_max: float | None = None
    qkv_max: float | None = None


def check(path: Path, spec: GraphSpec, reference: Callable[..., Arrays], images: int = 3) -> Parity:
    """Run the file and the model on the same pictures.

    Args:
        path: the ONNX file.
        spec: the graph's spec.
        reference: pictures (image, y, x, 3) uint8 -> the model's outputs by name; with gradients, it also takes the
            classes (image) int64.
        images: the batch size; not 2, because the graph is traced with 2.

    Raises:
        AttlasError: the file does not load or run, or differs by more than `LIMITS` allows.
    """
    given = example(images, spec)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        values = session.run(None, given)
    except Exception as error:
        first = first_line(error).replace(str(path), path.name)
        raise AttlasError(
            f"{spec.name}: the exported graph does not run in onnxruntime {onnxruntime.__version__}: {first}; "
            "nothing was written"
        ) from error
    outputs = dict(zip((o.name for o in session.get_outputs()), values, strict=True))
    _same_outputs(outputs, spec, images)
    return compare(outputs, reference(*given.values()), spec)


def compare(outputs: Arrays, expected: Arrays, spec: GraphSpec) -> Parity:
    """The differences between two sets of outputs.

    Raises:
        AttlasError: they differ by more than `LIMITS` allows for the graph's dtype.
    """
    limits = LIMITS[spec.dtype]
    maps = [name for name in outputs if name.partition(".")[0] in ("attention", "class_attention", "pool_attention")]
    rows = [row_variation(outputs[name], expected[name]) for name in maps]
    head = "logits" if "logits" in outputs else "features"
    difference = np.abs(outputs[head] - expected[head]).max(-1)
    scale = max(1.0, float(np.abs(expected[head]).max()))
    same = np.ones(len(difference), bool)
    if head == "logits":
        same = same_first(outputs[head], expected[head], limits.tie * scale)
    figures = Parity(
        images=len(expected[head]),
        row_mean=float(np.concatenate([r.ravel() for r in rows]).mean()),
        row_max=max(float(r.max()) for r in rows),
        head=float(difference.max()),
        head_scale=scale,
        top1=float(same.mean()),
    )
    worst = maps[int(np.argmax([r.max() for r in rows]))]
    # Written so that NaN fails too.
    if not figures.row_max <= limits.row_max:
        raise AttlasError(
            f"{spec.name}: the exported graph is not the model: rows of {worst} differ from PyTorch by a total "
            f"variation of up to {figures.row_max:.2g} (allowed {limits.row_max:g}); nothing was written"
        )
    if not figures.head <= limits.head * scale or figures.top1 < 1:
        raise AttlasError(
            f"{spec.name}: the exported graph is not the model: {head} differ from PyTorch by up to {figures.head:.2g} "
            f"(largest {scale:.3g}), the first class agrees on {figures.top1:.0%} of the pictures; nothing was written"
        )
    if spec.gradients:
        figures = _with_gradients(figures, outputs, expected, spec)
    if spec.norms:
        figures = dataclasses.replace(figures, norm_max=_largest(outputs, expected, spec, NORMS))
    if any(name.startswith(f"{QKV[0]}.") for name in expected):
        figures = dataclasses.replace(figures, qkv_max=_largest(outputs, expected, spec, QKV))
    return figures


def _with_gradients(figures: Parity, outputs: Arrays, expected: Arrays, spec: GraphSpec) -> Parity:
    each = relative_difference(outputs, expected, "gradient")
    largest, median = float(each.max()), float(np.median(each))
    # Written so that NaN fails too.
    if not (largest <= GRADIENT_MAX and median <= GRADIENT_MEDIAN):
        layer = spec.layers[int(each.max(1).argmax())]
        raise AttlasError(
            f"{spec.name}: the exported graph is not the model: gradients differ from autograd by up to {largest:.2g} "
            f"of the largest of image and layer, in layer {layer}, {median:.2g} in the median (allowed "
            f"{GRADIENT_MAX:g} and {GRADIENT_MEDIAN:g}); nothing was written"
        )
    return dataclasses.replace(figures, gradient_max=largest, gradient_median=median)


def _largest(outputs: Arrays, expected: Arrays, spec: GraphSpec, kinds: tuple[str, ...]) -> float:
    """The largest relative difference of outputs of these kinds."""
    each = {name: float(relative_difference(outputs, expected, name).max()) for name in kinds}
    name, largest = max(each.items(), key=lambda item: item[1])
    if not largest <= LIMITS[spec.dtype].head:
        raise AttlasError(
            f"{spec.name}: the exported graph is not the model: {name} differs from PyTorch by up to {largest:.2g} of "
            f"the largest of image and layer (allowed {LIMITS[spec.dtype].head:g}); nothing was written"
        )
    return largest


def relative_difference(outputs: Arrays, expected: Arrays, kind: str) -> NDArray[np.float64]:
    """Largest difference of outputs `kind.L` relative to the largest value per image and layer: (layer, image) float64.

    Where all values are 0 (gradients of a layer that the head does not read), the absolute difference.
    """
    return np.stack([relative(outputs[n], expected[n]) for n in expected if n.startswith(f"{kind}.")])


def example(images: int, spec: GraphSpec) -> dict[str, NDArray[Any]]:
    """The graph's inputs by name for `images` images: pictures; as classes predicted, first, last, and so on; heads.

    Every other head is silenced, so that what takes its place is compared, too.
    """
    given: dict[str, NDArray[Any]] = {"image": pictures(images, spec.image_size)}
    logits = spec.output("logits")
    if spec.gradients and logits is not None:
        given["target"] = np.resize(np.array([-1, 0, (logits.shape[-1] or 1) - 1], np.int64), images)
    if spec.ablate:
        means = next(o for o in spec.outputs if o.name.startswith("head_output."))
        given["head_mask"] = (np.indices((spec.depth, spec.heads)).sum(0) % 2).astype(np.float32)
        fill = np.random.default_rng(0).normal(size=(spec.depth, *(n for n in means.shape if n)))
        given["head_fill"] = fill.astype(np.float32)
    return given


def _same_outputs(outputs: Arrays, spec: GraphSpec, images: int) -> None:
    """Check that the file's outputs are those of the spec: names, shapes, float32, for this batch size."""
    promised = {o.name: tuple(images if s is None else s for s in o.shape) for o in spec.outputs}
    given = {name: tuple(value.shape) for name, value in outputs.items()}
    wrong = sorted(n for n in promised.keys() | given.keys() if promised.get(n) != given.get(n))
    wrong += sorted(n for n, v in outputs.items() if v.dtype != np.float32)
    if wrong:
        name = wrong[0]
        raise AttlasError(
            f"{spec.name}: the exported graph gives {name} as {given.get(name)}, promised was {promised.get(name)}, "
            "float32; nothing was written"
        )

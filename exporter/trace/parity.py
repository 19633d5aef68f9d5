"""Check that a written graph equals the model: compare the file in onnxruntime with PyTorch on the same pictures."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ...errors import AttlasError, first_line
from ..differences import (
    GRADIENT_MAX,
    GRADIENT_MEDIAN,
    LIMITS,
    MOST_OWN,
    TIMES_OWN,
    Limits,
    relative,
    row_variation,
    same_first,
)
from ..models.memory import at_once, pictures_of
from ..spec import NORMS, QKV, GraphSpec
from ..taps.pictures import pictures
from ..taps.tapped import Known

__all__ = ["Differences", "Parity", "check", "compare", "example", "judged", "relative_difference"]

Arrays = Mapping[str, NDArray[Any]]

ROW_MEAN = 1e-5  # what is added to the mean's bound, so that layers without any error of PyTorch pass


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
        own: `row_max` of PyTorch's float32 from its float64, if the bounds follow it; all figures are then differences
            from float64. None if the model is within the usual bounds.
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
    own: float | None = None


_MAPS = ("attention", "class_attention", "pool_attention")
_BY_LAYER = ("attention", "gradient", "head_output", *NORMS, *QKV)


@dataclass
class Differences:
    """Differences of two sets of outputs, which may come a few at a time.

    Attributes:
        rows: (largest, mean, number) of the total variation of rows, by map.
        relative: by output, the largest difference relative to the largest value, by image.
        head: logits or features of both, by name.
    """

    rows: dict[str, tuple[float, float, int]] = dataclasses.field(default_factory=dict)
    relative: dict[str, NDArray[np.float64]] = dataclasses.field(default_factory=dict)
    head: dict[str, tuple[NDArray[Any], NDArray[Any]]] = dataclasses.field(default_factory=dict)

    def add(self, outputs: Arrays, expected: Arrays) -> None:
        """Compare these outputs."""
        for name in expected:
            kind = name.partition(".")[0]
            if kind in _MAPS:
                found = row_variation(outputs[name], expected[name])
                self.rows[name] = (float(found.max()), float(found.mean()), found.size)
            elif kind in ("gradient", *NORMS, *QKV):
                self.relative[name] = relative_difference({name: outputs[name]}, {name: expected[name]}, kind)[0]
            elif kind in ("logits", "features"):
                self.head[name] = (outputs[name], expected[name])

    def of(self, kind: str) -> NDArray[np.float64]:
        """The relative differences of outputs `kind.L`: (layer, image)."""
        return np.stack([values for name, values in self.relative.items() if name.startswith(f"{kind}.")])


def check(
    path: Path,
    spec: GraphSpec,
    reference: Callable[..., Arrays],
    exact: Callable[..., Arrays] | None = None,
    *,
    images: int | None = None,
    known: Known | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Parity:
    """Run the file and the model on the same pictures, a few blocks at a time.

    Args:
        path: the ONNX file.
        spec: the graph's spec.
        reference: the graph's inputs -> the model's outputs by name; without those of other blocks than `layers`.
        exact: the same in float64, for a model whose own rounding errors are beyond the usual bounds.
        images: the batch size; by default 3, or 1 if the maps are large. Not 2: the graph is traced with 2.
        known: what `reference` gives for some pictures. If they are those to compare, it is not run for them again.
        progress: called with the number of layers that are done and of all.

    Raises:
        AttlasError: the file does not load or run, or differs by more than `LIMITS` and the model's own rounding allow.
    """
    images = images or pictures_of(spec.heads, spec.tokens)
    given = example(images, spec)
    graph = _Graph(path, spec, images)

    def remembered(*_given: NDArray[Any], layers: Collection[int]) -> Arrays:
        assert known is not None
        return {name: value for name, value in known[1].items() if _layer(name) in (None, *layers)}

    def differences(outputs: Callable[..., Arrays], expected: Callable[..., Arrays]) -> Differences:
        found, done = Differences(), 0
        for layers in _groups(spec, images):
            progress(done, len(spec.layers))
            found.add(outputs(*given.values(), layers=layers), expected(*given.values(), layers=layers))
            done += len(layers)
        return found

    try:
        same = known is not None and list(given) == ["image"] and np.array_equal(known[0], given["image"])
        return judged(differences(graph, remembered if same else reference), spec)
    except AttlasError:
        if exact is None or spec.dtype != "float32":
            raise
        try:
            own = differences(reference, exact)
        except (RuntimeError, TypeError, ValueError):
            own = None  # it does not compute in float64
        if own is None:
            raise
        return judged(differences(graph, exact), spec, own)


class _Graph:
    """The written file in onnxruntime, called as the reference is."""

    def __init__(self, path: Path, spec: GraphSpec, images: int) -> None:
        self.spec, self.images = spec, images
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        with self._running(path):
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.path = path
        promised, given = ({o.name for o in outputs} for outputs in (spec.outputs, self.session.get_outputs()))
        for name in sorted(promised ^ given):
            raise self._other(
                name, "nothing" if name in promised else "an output", "it" if name in promised else "none"
            )

    def __call__(self, *given: NDArray[Any], layers: Collection[int]) -> Arrays:
        """The outputs by name; without those of other blocks than `layers`."""
        wanted = [o for o in self.spec.outputs if _layer(o.name) in (None, *layers)]
        names = [i.name for i in self.session.get_inputs()]
        with self._running(self.path):
            values = self.session.run([o.name for o in wanted], dict(zip(names, given, strict=True)))
        for output, value in zip(wanted, values, strict=True):
            shape = tuple(self.images if size is None else size for size in output.shape)
            if value.shape != shape or value.dtype != np.float32:
                raise self._other(output.name, f"{value.shape} {value.dtype}", f"{shape} float32")
        return {output.name: value for output, value in zip(wanted, values, strict=True)}

    def _other(self, name: str, given: str, promised: str) -> AttlasError:
        return AttlasError(
            f"{self.spec.name}: the exported graph gives {name} as {given}, promised was {promised}; nothing was "
            "written"
        )

    @contextlib.contextmanager
    def _running(self, path: Path) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            first = first_line(error).replace(str(path), path.name)
            raise AttlasError(
                f"{self.spec.name}: the exported graph does not run in onnxruntime {onnxruntime.__version__}: {first}; "
                "nothing was written"
            ) from error


def _layer(name: str) -> int | None:
    """The block that an output belongs to; None for those that are compared with each group of blocks."""
    kind, _, layer = name.partition(".")
    return int(layer) if kind in _BY_LAYER else None


def _groups(spec: GraphSpec, images: int) -> list[tuple[int, ...]]:
    """The layers in groups whose maps of all images fit into memory at once."""
    # With gradients there are as many again.
    each = images * 4 * spec.heads * spec.tokens**2 * (2 if spec.gradients else 1)
    size = max(1, int(at_once() // each))
    return [spec.layers[i : i + size] for i in range(0, len(spec.layers), size)]


def compare(outputs: Arrays, expected: Arrays, spec: GraphSpec) -> Parity:
    """The differences between two sets of outputs.

    Raises:
        AttlasError: they differ by more than `LIMITS` allows for the graph's dtype.
    """
    found = Differences()
    found.add(outputs, expected)
    return judged(found, spec)


def judged(found: Differences, spec: GraphSpec, own: Differences | None = None) -> Parity:
    """The figures of these differences.

    Args:
        found: the graph's.
        spec: the graph's spec.
        own: those of PyTorch's float32, if both are from its float64.

    Raises:
        AttlasError: they are larger than the bounds.
    """
    limits = LIMITS[spec.dtype]
    figures = _rows(found, spec, limits, own)
    figures = _head(figures, found, spec, limits, own)
    if spec.gradients:
        figures = _gradients(figures, found, spec, own)
    if spec.norms:
        figures = dataclasses.replace(figures, norm_max=_largest(found, spec, NORMS, own))
    if any(name.startswith(f"{QKV[0]}.") for name in found.relative):
        figures = dataclasses.replace(figures, qkv_max=_largest(found, spec, QKV, own))
    return figures


def _rows(found: Differences, spec: GraphSpec, limits: Limits, own: Differences | None) -> Parity:
    """The figures of the maps; those of the head are 0."""
    total = sum(number for _, _, number in found.rows.values())
    mean = sum(mean * number for _, mean, number in found.rows.values()) / total
    # A largest row beyond its bound comes first, by as much as it is; written so that NaN counts as beyond it.
    over = {name: found.rows[name][0] / _row_bounds(name, limits, own)[0] for name in found.rows}
    worst = max(over, key=lambda name: np.inf if np.isnan(over[name]) else over[name])
    largest = max(largest for largest, _, _ in found.rows.values())
    says = "PyTorch" if own is None else "PyTorch in float64"
    if not over[worst] <= 1:
        raise AttlasError(
            f"{spec.name}: the exported graph is not the model: rows of {worst} differ from {says} by a total "
            f"variation of up to {found.rows[worst][0]:.2g} (allowed {_row_bounds(worst, limits, own)[0]:.2g}); "
            "nothing was written"
        )
    if own is None:
        return Parity(_images(found), mean, largest, 0.0, 1.0, 1.0)
    for name, (_, middle, _) in found.rows.items():
        if own.rows[name][1] > MOST_OWN:
            raise AttlasError(
                f"{spec.name}: cannot be compared: in {name}, PyTorch's own float32 is a mean total variation of "
                f"{own.rows[name][1]:.2g} from its float64, so that a mistake would not be seen; nothing was written"
            )
        if not middle <= _row_bounds(name, limits, own)[1]:
            raise AttlasError(
                f"{spec.name}: the exported graph is not the model: rows of {name} differ from {says} by a mean total "
                f"variation of {middle:.2g} (allowed {_row_bounds(name, limits, own)[1]:.2g}); nothing was written"
            )
    return Parity(_images(found), mean, largest, 0.0, 1.0, 1.0, own=max(largest for largest, _, _ in own.rows.values()))


def _images(found: Differences) -> int:
    return next(len(expected) for _, expected in found.head.values())


def _row_bounds(name: str, limits: Limits, own: Differences | None) -> tuple[float, float]:
    """The bounds of a map's largest and mean row; the mean has none of its own unless the largest follows the model."""
    if own is None:
        return limits.row_max, np.inf
    largest, mean, _ = own.rows[name]
    return limits.row_max + TIMES_OWN * largest, ROW_MEAN + TIMES_OWN * mean


def _head(figures: Parity, found: Differences, spec: GraphSpec, limits: Limits, own: Differences | None) -> Parity:
    head, (given, expected) = next(iter(found.head.items()))
    difference = float(np.abs(given - expected).max())
    scale = max(1.0, float(np.abs(expected).max()))
    slack = TIMES_OWN * max((float(np.abs(a - b).max()) for a, b in own.head.values()), default=0.0) if own else 0.0
    same = np.ones(len(expected), bool)
    if head == "logits":
        same = same_first(given, expected, limits.tie * scale + 2 * slack)
    top1 = float(same.mean())
    # Written so that NaN fails too.
    if not difference <= limits.head * scale + slack or top1 < 1:
        raise AttlasError(
            f"{spec.name}: the exported graph is not the model: {head} differ from PyTorch by up to {difference:.2g} "
            f"(largest {scale:.3g}), the first class agrees on {top1:.0%} of the pictures; nothing was written"
        )
    return dataclasses.replace(figures, head=difference, head_scale=scale, top1=top1)


def _gradients(figures: Parity, found: Differences, spec: GraphSpec, own: Differences | None) -> Parity:
    each = found.of("gradient")
    slack = TIMES_OWN * own.of("gradient") if own else np.zeros_like(each)
    largest, median = float(each.max()), float(np.median(each))
    # Written so that NaN fails too.
    if not ((each <= GRADIENT_MAX + slack).all() and median <= GRADIENT_MEDIAN + float(np.median(slack))):
        layer = spec.layers[int((each - slack).max(1).argmax())]
        allowed = (GRADIENT_MAX + float(slack.max()), GRADIENT_MEDIAN + float(np.median(slack)))
        raise AttlasError(
            f"{spec.name}: the exported graph is not the model: gradients differ from autograd by up to {largest:.2g} "
            f"of the largest of image and layer, in layer {layer}, {median:.2g} in the median (allowed "
            f"{allowed[0]:.2g} and {allowed[1]:.2g}); nothing was written"
        )
    return dataclasses.replace(figures, gradient_max=largest, gradient_median=median)


def _largest(found: Differences, spec: GraphSpec, kinds: tuple[str, ...], own: Differences | None) -> float:
    """The largest relative difference of outputs of these kinds."""
    limit = LIMITS[spec.dtype].head
    for kind in kinds:
        each = found.of(kind)
        slack = TIMES_OWN * own.of(kind) if own else np.zeros_like(each)
        if not (each <= limit + slack).all():
            raise AttlasError(
                f"{spec.name}: the exported graph is not the model: {kind} differs from PyTorch by up to "
                f"{each.max():.2g} of the largest of image and layer (allowed {float((limit + slack).max()):.2g}); "
                "nothing was written"
            )
    return max(float(found.of(kind).max()) for kind in kinds)


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

"""What probably makes a map differ: read from the map itself, and from the same map with known roundings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import AttlasError
from ...exporter.differences import row_variation
from ...exporter.spec import GraphSpec
from ..runtime.rounded import ROUNDINGS, Edit, Rounded
from .measures import MAPS, Interval

__all__ = ["Specimen", "cause_of"]

# A runtime that rounds does so in every layer, and what it adds grows by less than this from one map to the next.
JUMP = 30

NEAR = 10  # times what float32's last bits make of a map: where chance alone may have led


@dataclass(frozen=True, slots=True)
class Specimen:
    """One output of one picture beyond its bound.

    Attributes:
        output: its name.
        got: the values, with an image axis of length 1.
        expected: likewise.
        pixels: (1, row, column, channel) uint8.
    """

    output: str
    got: npt.NDArray[Any]
    expected: Interval
    pixels: npt.NDArray[np.uint8]


def cause_of(
    specimen: Specimen,
    graph: Path,
    spec: GraphSpec,
    bound: float,
    before: float | None = None,
    own: float | None = None,
) -> str:
    """The likely cause in words.

    Args:
        specimen: what differs.
        graph: path of the graph.
        spec: its spec.
        bound: the largest total variation of a row that is allowed.
        before: the mean total variation of the map before, which is within its bounds; None if there is none.
        own: what the last bits of float32 make of this map, a mean, too; None if it was not measured.
    """
    got, middle = specimen.got.astype(np.float64), (specimen.expected[0] + specimen.expected[1]) / 2
    if not np.isfinite(got).all():
        return "values that are no numbers: scores beyond the range of float16, or an operator that fails"
    if specimen.output.partition(".")[0] not in MAPS:
        return _of_values(got, middle)
    maps = spec.attention_kind == "probability"
    found = (
        (_wrong_axis(got) if maps else "")
        or _heads(got, specimen.expected, bound)
        or _half(specimen.got)
        or _scaled(got, middle)
        or (_no_softmax(got) if maps else "")
    )
    if _is_the_graphs(specimen, graph):
        return f"the graph gives the same on the processor: the reference is of another{f'; {found}' if found else ''}"
    if found or spec.dtype != "float32":
        return found
    return _rounding(specimen, graph, before, own)


def _is_the_graphs(specimen: Specimen, graph: Path) -> bool:
    """Whether the graph itself gives this map on the processor, so that no runtime is at fault."""
    try:
        plain = _again(specimen, graph, None)
    except AttlasError:
        return False
    distance = float(row_variation(specimen.got, *specimen.expected).mean())
    return float(row_variation(specimen.got, plain).mean()) < distance / 20


def _again(specimen: Specimen, graph: Path, edit: Edit | None) -> npt.NDArray[np.float32]:
    """The same output of the graph on the processor, with a rounding."""
    return Rounded(graph, edit, {specimen.output: specimen.got.shape[1:]})(specimen.pixels)[specimen.output]


def _wrong_axis(got: npt.NDArray[np.float64]) -> str:
    """Whether columns are distributions, and rows are not."""
    rows, columns = (float(np.abs(got.sum(axis) - 1).max()) for axis in (-1, -2))
    return "softmax over the wrong axis: its columns sum to 1" if columns < 1e-2 < rows else ""


def _heads(got: npt.NDArray[np.float64], expected: Interval, bound: float) -> str:
    """Whether the heads are the right ones in another order."""
    low, high = expected
    heads = got.shape[1]
    found = []
    some = slice(None, None, max(1, got.shape[2] // 32))  # rows are enough to tell heads apart
    for head in range(heads):
        far = [
            float(row_variation(got[:, head, some], low[:, one, some], high[:, one, some]).max())
            for one in range(heads)
        ]
        found.append(int(np.argmin(far)) if min(far) <= bound else -1)
    if sorted(found) == list(range(heads)) and found != sorted(found):
        return f"the heads are in another order: {', '.join(map(str, found))}"
    return ""


def _half(got: npt.NDArray[Any]) -> str:
    """Whether every value is one of float16 or bfloat16."""
    single = got.astype(np.float32)
    if (single.view(np.uint32) & 0xFFFF == 0).all():
        return "attention is computed or returned in bfloat16"
    if (single == single.astype(np.float16)).all():
        return "attention is computed or returned in float16"
    return ""


def _scaled(got: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]) -> str:
    """Whether all scores are multiplied by one number: the logarithms of a row are its scores but for a constant."""
    large = (expected > 1e-6) & (got > 1e-6)
    large &= large.sum(-1, keepdims=True) > 2  # any two values are a multiple of any other two
    if not large.any() or (expected < 0).any():
        return ""
    weights = np.where(large, expected, 0)

    def centred(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        logs = np.log(np.where(large, values, 1))
        means = (logs * weights).sum(-1, keepdims=True) / np.maximum(weights.sum(-1, keepdims=True), 1e-12)
        return np.where(large, logs - means, 0)

    there, here = centred(expected), centred(got)
    total = float((weights * there**2).sum())
    factor = float((weights * there * here).sum()) / total if total > 0 else 1.0
    left, all_of_it = (float((weights * (here - k * there) ** 2).sum()) for k in (factor, 1.0))
    if factor > 0 and abs(factor - 1) > 1e-3 and left < 1e-3 * all_of_it:
        return f"all scores are multiplied by {factor:.4g}: the scale before the softmax is wrong"
    return ""


def _no_softmax(got: npt.NDArray[np.float64]) -> str:
    """Whether rows are no distributions."""
    sums = got.sum(-1)
    if float(np.abs(sums - 1).max()) <= 1e-4:
        return ""
    return f"rows sum to {sums.min():.4g} to {sums.max():.4g}: a fused or approximate softmax"


def _of_values(got: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]) -> str:
    """Of outputs that are no maps: whether they are a multiple."""
    total = float((expected**2).sum())
    factor = float((got * expected).sum()) / total if total else 1.0
    near = float(((got - factor * expected) ** 2).sum()) < 1e-6 * total
    return f"all values are multiplied by {factor:.4g}" if near and abs(factor - 1) > 1e-3 else ""


def _rounding(specimen: Specimen, graph: Path, before: float | None, own: float | None) -> str:
    """The rounding that makes the same map, or one that lies as far away."""
    low, high = specimen.expected
    distance = float(row_variation(specimen.got, low, high).mean())
    same: dict[str, float] = {}
    alike: dict[str, float] = {}
    for how, edit in ROUNDINGS.items():
        try:
            rounded = _again(specimen, graph, edit)
        except AttlasError:
            continue
        if not np.isfinite(rounded).all():
            continue
        same[how] = float(row_variation(specimen.got, rounded).mean())
        away = float(row_variation(rounded, low, high).mean())
        alike[how] = abs(math.log(max(away, 1e-12) / max(distance, 1e-12)))
    if not same:
        return ""
    how = min(same, key=lambda one: same[one])
    if same[how] < distance / 2:
        times = min(distance / max(same[how], 1e-12), 1000)
        return f"{how}: the graph with that rounding lies {times:.0f} x nearer"
    if own is not None and distance < NEAR * own:
        return f"the model is sharp: float32's last bits alone make {own:.1e} in the mean, and the runtime may be sound"
    if before is not None and before < distance / JUMP:
        return "no rounding, which would begin before: a weight, a bias, or an operator differs here"
    how = min(alike, key=lambda one: alike[one])
    if alike[how] < math.log(3):
        return f"a rounding, as large as where {how}; or a weight that differs a little"
    return "no rounding: a weight, a bias, or an operator differs"

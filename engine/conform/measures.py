"""The differences between what a runtime gives and what is expected, per output, and the verdict over all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...exporter.differences import (
    GRADIENT_MAX,
    LIMITS,
    MOST_OWN,
    TIMES_OWN,
    relative,
    row_variation,
    same_first,
)
from ...exporter.spec import GraphSpec, Output
from ...words import counted

__all__ = ["MAPS", "Bounds", "Conformity", "Interval", "Line", "Measure", "Top1", "bounds_of", "in_order"]

# What is expected, from its smallest to its largest value: twice the same array where it is exact.
type Interval = tuple[npt.NDArray[Any], npt.NDArray[Any]]
type Precise = Literal["float32", "float16", "bfloat16"]

MAPS = ("attention", "class_attention", "pool_attention")

WORTH_SAYING = 1e-5  # own differences from which on a bound changes by what can be seen in it

# A block's outputs in the order in which it computes them.
_BLOCK = ("token_norm", "query", "key", "value", "value_norm", "attention", "head_output", "branch_ratio")
_BEHIND = ("class_attention", "pool_attention", "tokens", "features", "logits", "gradient")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is allowed of each kind of output, as `Line` measures it.

    Attributes:
        rows_mean, rows_max: of a layer's rows of attention, in the mean and the largest.
        head: of logits or features.
        values: of tokens, norms, queries, keys, values, and what heads write.
        gradient: of gradients.
        tie: classes that are closer than this part of the largest logit may swap ranks.
    """

    rows_mean: float
    rows_max: float
    head: float
    values: float
    gradient: float
    tie: float


_SINGLE, _HALF = LIMITS["float32"], LIMITS["float16"]
BOUNDS: dict[Precise, Bounds] = {
    "float32": Bounds(1e-4, _SINGLE.row_max, _SINGLE.head, _SINGLE.head, GRADIENT_MAX, _SINGLE.tie),
    "float16": Bounds(1e-2, _HALF.row_max, _HALF.head, 0.5, math.inf, _HALF.tie),
    # With 8 bits a row or a token of a trained model can be anything, so only means and the head are bounded: a sound
    # deit_tiny has means up to 3e-2 and logits within 3e-2.
    "bfloat16": Bounds(1e-1, math.inf, 1e-1, math.inf, math.inf, 1e-1),
}


def bounds_of(*precisions: str) -> Bounds:
    """The widest bounds of several precisions: float32, float16, bfloat16."""
    return max((BOUNDS[one] for one in BOUNDS if one in precisions), key=lambda bounds: bounds.rows_mean)


def in_order(outputs: Iterable[Output]) -> list[Output]:
    """The outputs with an image axis in the order in which a model computes them; gradients last, from the end."""

    def place(output: Output) -> tuple[int, int, int]:
        kind, _, number = output.name.partition(".")
        layer = int(number or 0)
        if kind in _BLOCK:
            return 0, layer, _BLOCK.index(kind)
        behind = _BEHIND.index(kind) if kind in _BEHIND else len(_BEHIND)
        return 1, behind, -layer if kind == "gradient" else layer

    return sorted((o for o in outputs if None in o.shape), key=place)


@dataclass(frozen=True, slots=True)
class Line:
    """One output's differences.

    Attributes:
        output: its name in the graph.
        layer: the block's index from 0; None for what belongs to none.
        mean, largest: over all pictures. Of maps, the total variation of rows (half the L1 distance); of other
            outputs, the largest difference of a picture relative to its largest value. NaN if a value is no number.
        mean_bound, bound: what is allowed of them.
        own_mean, own: the same differences where the graph alone drops float32's last bits, of which the bounds allow
            `TIMES_OWN` times as much besides; None if the usual bounds sufficed. If the mean is above `MOST_OWN`,
            rounding hides mistakes, and the bounds are the usual ones.
        picture, head, query: where the largest is; None where the output has no such axis.
    """

    output: str
    layer: int | None
    mean: float
    largest: float
    mean_bound: float
    bound: float
    picture: str
    head: int | None = None
    query: int | None = None
    own_mean: float | None = None
    own: float | None = None

    @property
    def conforms(self) -> bool:
        """Whether both are within their bounds; NaN is not."""
        return self.largest <= self.bound and self.mean <= self.mean_bound

    @property
    def hidden(self) -> bool:
        """Whether rounding alone makes such differences that a mistake would not be seen."""
        return self.own_mean is not None and self.own_mean > MOST_OWN

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; None for what is no number."""
        found = {name: getattr(self, name) for name in self.__slots__} | {"conforms": self.conforms}
        return {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in found.items()}


class Measure:
    """Gathers the `Line` of one output, batch by batch."""

    def __init__(self, output: Output, spec: GraphSpec, bounds: Bounds) -> None:
        self.output = output
        self.kind, dot, number = output.name.partition(".")
        self.layer = int(number) if dot and self.kind != "class_attention" else None
        self.maps = self.kind in MAPS
        self.mean_bound = bounds.rows_mean if self.maps else math.inf
        of_kind = {"logits": bounds.head, "features": bounds.head, "gradient": bounds.gradient}
        self.bound = bounds.rows_max if self.maps else of_kind.get(self.kind, bounds.values)
        self._sum, self._count = 0.0, 0
        self._own: tuple[float, float] | None = None
        self._worst: tuple[float, str, tuple[int, ...]] = (-1.0, "", ())

    def differences(self, got: npt.NDArray[Any], expected: Interval) -> npt.NDArray[np.float64]:
        """Of rows (image, head, query), or of pictures (image)."""
        low, high = expected
        # What is no map is compared with the nearest value that a store can have rounded; NaN stays NaN.
        return (
            row_variation(got, low, high) if self.maps else relative(got, low if high is low else got.clip(low, high))
        )

    def add(self, each: npt.NDArray[np.float64], names: list[str]) -> None:
        """Take the differences of one batch."""
        self._sum, self._count = self._sum + float(each.sum()), self._count + each.size
        at = np.unravel_index(int(np.argmax(each)), each.shape)  # argmax finds NaN first
        largest = float(each[at])
        if not largest <= self._worst[0] and not math.isnan(self._worst[0]):
            self._worst = largest, names[int(at[0])], tuple(int(i) for i in at[1:])

    def allow(self, own: npt.NDArray[np.float64]) -> None:
        """Let the bounds follow what float32's last bits make of a batch: its differences from itself."""
        total, largest = self._own or (0.0, 0.0)
        self._own = total + float(own.sum()), max(largest, float(own.max()))

    def beyond(
        self, each: npt.NDArray[np.float64], own: npt.NDArray[np.float64] | None = None
    ) -> npt.NDArray[np.bool_]:
        """Which pictures are beyond the bounds, wider by their own differences: (image) bool."""
        flat = each.reshape(len(each), -1)
        allowed = np.zeros_like(flat) if own is None else TIMES_OWN * own.reshape(len(own), -1)
        largest: npt.NDArray[np.bool_] = flat.max(1) <= self.bound + allowed.max(1)
        return ~(largest & (flat.mean(1) <= self.mean_bound + allowed.mean(1)))  # NaN is beyond

    def line(self) -> Line:
        """The differences over all batches."""
        largest, picture, at = self._worst
        head, query = (at if len(at) == 2 else (None, None)) if self.maps else (None, None)
        mean = self._sum / self._count
        line = Line(self.output.name, self.layer, mean, largest, self.mean_bound, self.bound, picture, head, query)
        if self._own is None:
            return line
        own_mean, own = self._own[0] / self._count, self._own[1]
        line = replace(line, own_mean=own_mean, own=own)
        if line.hidden:
            return line
        return replace(line, mean_bound=self.mean_bound + TIMES_OWN * own_mean, bound=self.bound + TIMES_OWN * own)


class Top1:
    """Counts pictures with the same first class."""

    def __init__(self, tie: float) -> None:
        self._tie, self.same, self.count = tie, 0, 0

    def differ(
        self, got: npt.NDArray[Any], expected: npt.NDArray[Any], own: npt.NDArray[np.float64] | None = None
    ) -> npt.NDArray[np.bool_]:
        """Which pictures of a batch have another first class: (image) bool.

        `own` are the differences of the logits that float32's last bits make: classes that are closer may swap.
        """
        each = np.abs(expected).max(-1)
        slack = self._tie * max(1.0, float(each.max())) + (0 if own is None else 2 * TIMES_OWN * own * each)
        same = same_first(np.nan_to_num(got), expected, slack) & np.isfinite(got).all(-1)
        return ~same

    def add(self, differ: npt.NDArray[np.bool_]) -> None:
        """Take one batch."""
        self.same, self.count = self.same + int((~differ).sum()), self.count + len(differ)


@dataclass(frozen=True, slots=True)
class Conformity:
    """Whether a runtime gives what the graph says, and where it begins not to.

    Attributes:
        model: the graph's model.
        tested, against: what computed, and what it is compared with, in words.
        pictures: number of pictures.
        lines: a `Line` for each output that was compared, in the order in which the model computes them.
        same_top1: number of pictures with the same first class; None without classes.
        hidden: the total variation of a row that the rounding of a stored reference can hide; 0 if it is exact.
        cause: what probably makes the first difference beyond its bound, in words; "" if there is none.
        notes: what was not compared, such as `results.npz lacks tokens`.
    """

    model: str
    tested: str
    against: str
    pictures: int
    lines: tuple[Line, ...]
    same_top1: int | None
    hidden: float = 0.0
    cause: str = ""
    notes: tuple[str, ...] = ()

    @property
    def conforms(self) -> bool:
        """Whether every output is within its bounds, and every picture has the same first class."""
        return self.first is None and self.same_top1 in (None, self.pictures)

    @property
    def first(self) -> Line | None:
        """The first output beyond its bound, in the order in which the model computes them."""
        return next((line for line in self.lines if not line.conforms), None)

    @property
    def layer(self) -> int | None:
        """The block of `first`; None if all conform, or if it belongs to no block."""
        return None if self.first is None else self.first.layer

    @property
    def after(self) -> str:
        """The last output before `first` that conforms: what differs lies between both. "" if there is none."""
        first = self.first
        before = list(self.lines[: self.lines.index(first)]) if first is not None else []
        return before[-1].output if before else ""

    @property
    def table(self) -> list[dict[str, Any]]:
        """The lines as plain values, for a DataFrame."""
        return [line.to_dict() for line in self.lines]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "model": self.model,
            "tested": self.tested,
            "against": self.against,
            "pictures": self.pictures,
            "conforms": self.conforms,
            "first": None if self.first is None else self.first.output,
            "layer": self.layer,
            "after": self.after,
            "cause": self.cause,
            "same_top1": self.same_top1,
            "hidden": self.hidden,
            "outputs": self.table,
            "notes": list(self.notes),
        }

    def __repr__(self) -> str:
        return "\n".join(table_lines(self))


def table_lines(result: Conformity) -> list[str]:
    """The table and the verdict, for a terminal."""
    some = counted(result.pictures, "picture")
    lines = [f"{result.model}: {result.tested} against {result.against}, {some}"]
    heads = (("rows of attention, total variation", True), ("relative to the largest value", False))
    for title, maps in heads:
        part = [line for line in result.lines if (line.output.partition(".")[0] in MAPS) is maps]
        if part:
            lines.append(f"{title:<36} {'mean':>8} {'allowed':>8} {'largest':>8} {'allowed':>8}")
            lines += [_row(line) for line in part]
    if result.same_top1 is not None:
        lines.append(f"{'the same first class':<36} {result.same_top1} of {result.pictures}")
    own = max((line.own for line in result.lines if line.own is not None and not line.hidden), default=0.0)
    if own > WORTH_SAYING:
        lines.append(
            f"the model is sharp: where the graph alone drops float32's last bits, outputs differ by up to {own:.1e}; "
            f"{TIMES_OWN:g} times as much is allowed besides"
        )
    if result.hidden:
        lines.append(f"rows are compared with what the store's rounding leaves open: it can hide {result.hidden:.1e}")
    return [*lines, *verdict(result)]


def verdict(result: Conformity) -> list[str]:
    """The verdict in one line, and the cause in another."""
    first = result.first
    if result.conforms:
        return ["conforms" + "".join(f", but {note}, which is not compared" for note in result.notes)]
    if first is None:
        other = result.pictures - (result.same_top1 or 0)
        return [f"does not conform: the first class differs on {counted(other, 'picture')}"]
    where = f"{first.output} is" if first.layer is None else f"layer {first.layer} is"
    spot = ", ".join(
        f"{axis} {at}"
        for axis, at in (("picture", first.picture), ("head", first.head), ("query", first.query))
        if at is not None
    )
    between = f"what differs lies after {result.after}" if result.after else "no output before it was compared"
    lines = [f"does not conform: {where} the first beyond the bound ({first.output}, {spot}); {between}"]
    return [*lines, f"likely cause: {result.cause}"] if result.cause else lines


def _row(line: Line) -> str:
    mark = "" if line.conforms else "  beyond"
    mean, largest = (f"{bound:.0e}" if bound < math.inf else "any" for bound in (line.mean_bound, line.bound))
    return f"  {line.output:<34} {line.mean:>8.1e} {mean:>8} {line.largest:>8.1e} {largest:>8}{mark}"


def has_maps(outputs: Mapping[str, Any] | Iterable[str]) -> bool:
    """Whether any of these outputs is a map of attention."""
    return any(name.partition(".")[0] in MAPS for name in outputs)

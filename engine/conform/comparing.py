"""Compare a runtime with what is expected of it, batch by batch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ... import arguments
from ...arguments import Where
from ...errors import AttlasError, UsageError
from ...exporter.spec import GraphSpec, Output
from ...progress import Show, shows
from ..runtime.graph import read_spec
from ..runtime.outputs import Wanted
from ..runtime.session import Session
from ..sources.files import expanded
from ..store.store import Store
from .cases import BATCH, Cases, Results, is_cases
from .causes import Specimen, cause_of
from .inputs import Batch, Computed, Expected, Stored, filled, pictures_of
from .measures import BOUNDS, Bounds, Conformity, Measure, Top1, bounds_of, has_maps, in_order
from .own import Own

__all__ = ["conform"]

BYTES = 2**28  # of the outputs of one batch


@shows("pictures")
def conform(
    graph: str | os.PathLike[str],
    images: Any = None,
    *,
    provider: str = "auto",
    against: Where = "cpu",
    results: str | os.PathLike[str] | None = None,
    precision: str = "float32",
    limit: int = 16,
    threads: int | None = None,
    progress: Show[[int, int]] = None,
) -> Conformity:
    """Compare a graph in one runtime with a reference, output by output in the order of the model.

    Rows of attention are compared by total variation, half the L1 distance, and all else relative to a picture's
    largest value. docs/conform.md has the bounds.

    Example:
        >>> result = attlas.conform("deit.onnx", provider="openvino")
        >>> result.conforms, result.layer
        (True, None)

    Args:
        graph: an ONNX file from `attlas export`.
        images: a path (folder, picture, table, archive) or URL, a source, pictures as `Session` takes, or a file of
            `write_cases`, which also holds what is expected. By default pictures with structure are made, always the
            same; with a store its own sample pictures.
        provider: what is tested: `auto`, `cpu`, `cuda`, `openvino` or any name onnxruntime reports.
        against: `cpu`, which is onnxruntime on the processor with each node as it stands in the graph; or a store of
            the same model, whose images are in `images`.
        results: test this .npz instead, which another runtime made of the cases in `images`.
        precision: what the runtime was told to compute in; `bfloat16` (or, for `results`, `float16`) has wider bounds.
        limit: take this many pictures, evenly spread; all of a file of cases.
        threads: threads within one operator; all cores by default.
        progress: True shows a bar; a function is called with the pictures done and their number.

    Raises:
        AttlasError: the graph has no attention, the provider does not work here, or a file or picture does not fit.
        UsageError: the arguments contradict one another.
    """
    path = Path(expanded(graph, "graph", "the path of an ONNX file"))
    provider, against = (
        arguments.text(provider, "provider"),
        arguments.path(against, "against", "cpu, or the path of a store"),
    )
    results = None if results is None else arguments.path(results, "results")
    limit, threads = arguments.whole(limit, "limit"), arguments.whole_or_none(threads, "threads")
    if limit < 1:
        raise UsageError(f"limit {limit}: compare at least one picture")
    if results is not None and provider != "auto":
        raise UsageError("--import, --provider: choose one")
    spec = read_spec(path)
    if not has_maps(o.name for o in spec.outputs):
        raise AttlasError(f"{path}: has no attention outputs to compare; export it with `attlas export`")
    if results is not None and precision not in BOUNDS:
        raise UsageError(f"--precision {precision}: choose from {', '.join(BOUNDS)}")
    expected = _expected(path, spec, images, against, limit, threads)
    outputs = [o for o in in_order(spec.outputs) if o.name in expected.outputs]
    size = _batch(outputs, expected.count)
    notes: list[str] = []
    answer: Callable[[Batch], dict[str, npt.NDArray[Any]]]
    if results is not None:
        if not isinstance(expected, Cases):
            raise UsageError(
                f"--import {results}: name the cases that it is of: `attlas conform {path} CASES.npz --import ...`"
            )
        came = Results(results, expected)
        outputs = [o for o in outputs if o.name in came.outputs]
        notes += [f"{came.path.name} lacks {', '.join(came.left_out)}"] if came.left_out else []
        tested, answer = str(came.path), came
    else:
        tested, answer = _tested(path, provider, precision, outputs, threads, size)
    bounds = bounds_of(spec.dtype, expected.dtype, precision)
    own = Own(path, outputs, computed=isinstance(expected, Computed)) if bounds == BOUNDS["float32"] else None
    judge = _Judge(spec, outputs, bounds, own)
    for batch in expected.batches(size):
        judge.add(batch, answer(batch))
        if callable(progress):
            progress(judge.pictures, expected.count)
    return judge.result(path, tested, expected, notes)


def _expected(
    path: Path, spec: GraphSpec, images: Any, against: str | os.PathLike[str], limit: int, threads: int | None
) -> Expected:
    """The pictures with what is expected of them."""
    filed = is_cases(images)
    if not str(against):
        raise UsageError("--against is empty: name a store, or cpu")
    if str(against).lower() != "cpu":
        if filed:
            raise UsageError(f"{images}: holds what is expected, too; choose it or --against {against}")
        return Stored(Store(against), path, images, limit)
    if filed:
        return Cases(expanded(images), path, spec)
    return Computed(path, spec, pictures_of(spec, images, limit), threads)


def _batch(outputs: Sequence[Output], count: int) -> int:
    """Pictures in one batch."""
    each = 4 * sum(math.prod(n for n in o.shape if n is not None) for o in outputs)
    return max(1, min(BATCH, count, BYTES // max(each, 1)))


def _tested(
    path: Path, provider: str, precision: str, outputs: Sequence[Output], threads: int | None, size: int
) -> tuple[str, Callable[[Batch], dict[str, npt.NDArray[Any]]]]:
    """What computes, in words, and how it answers."""
    wanted = [Wanted(o.name) for o in outputs]
    session = Session(path, provider=provider, wanted=wanted, threads=threads, precision=precision)  # type: ignore[arg-type]
    words = session.provider.removesuffix("ExecutionProvider")
    words = words if words == "OpenVINO" else f"onnxruntime {words}"
    words = words if precision == "float32" else f"{words} in {precision}"
    return words, lambda batch: filled(session, batch.pixels, batch.target, size)


class _Judge:
    """Gathers the differences of all batches."""

    def __init__(self, spec: GraphSpec, outputs: Sequence[Output], bounds: Bounds, own: Own | None) -> None:
        self._spec, self._own = spec, own
        self._measures = {output.name: Measure(output, spec, bounds) for output in outputs}
        self._top1 = Top1(bounds.tie) if "logits" in self._measures else None
        self._specimens: dict[str, Specimen] = {}  # of one picture each, so that they take as much as one picture does
        self.pictures = 0

    def add(self, batch: Batch, got: dict[str, npt.NDArray[Any]]) -> None:
        """Take one batch."""
        self.pictures += len(batch.names)
        each = {name: one.differences(got[name], batch.expected[name]) for name, one in self._measures.items()}
        for name, measure in self._measures.items():
            measure.add(each[name], batch.names)
        own = self._allowed(batch, got, each)
        for name, measure in self._measures.items():
            beyond = measure.beyond(each[name], own.get(name))
            if beyond.any() and name not in self._specimens:
                one = slice(i := int(np.argmax(beyond)), i + 1)
                low, high = batch.expected[name]
                values = [np.array(array[one]) for array in (got[name], low, high, batch.pixels)]
                self._specimens[name] = Specimen(name, values[0], (values[1], values[2]), values[3])
        if self._top1 is not None:
            self._top1.add(self._top1.differ(got["logits"], batch.expected["logits"][0], own.get("logits")))

    def _allowed(
        self, batch: Batch, got: dict[str, npt.NDArray[Any]], each: dict[str, npt.NDArray[np.float64]]
    ) -> dict[str, npt.NDArray[np.float64]]:
        """The model's own differences, by which the bounds become wider; none where the usual ones suffice."""
        beyond = any(measure.beyond(each[name]).any() for name, measure in self._measures.items())
        if self._top1 is not None and not beyond:
            beyond = bool(self._top1.differ(got["logits"], batch.expected["logits"][0]).any())
        if self._own is None or not beyond:
            return {}
        found = self._own(batch, self._measures.values())
        for name, values in found.items():
            self._measures[name].allow(values)
        return found

    def result(self, path: Path, tested: str, expected: Expected, notes: Sequence[str]) -> Conformity:
        """The verdict over all batches."""
        lines = tuple(measure.line() for measure in self._measures.values())
        first = next((line for line in lines if not line.conforms), None)
        cause = ""
        if first is not None and first.hidden:
            cause = (
                f"none can be told: where the graph alone drops float32's last bits, {first.output} differs by "
                f"{first.own_mean:.1e} in the mean; the model is too sharp for runtimes to be compared"
            )
        elif first is not None and first.output in self._specimens:
            maps = [line for line in lines[: lines.index(first)] if math.isfinite(line.mean_bound)]
            before = maps[-1].mean if maps else None
            specimen = self._specimens[first.output]
            cause = cause_of(specimen, path, self._spec, first.bound, before, first.own_mean)
        return Conformity(
            model=self._spec.name,
            tested=tested,
            against=expected.words,
            pictures=self.pictures,
            lines=lines,
            same_top1=None if self._top1 is None else self._top1.same,
            hidden=expected.hidden,
            cause=cause,
            notes=tuple(notes),
        )

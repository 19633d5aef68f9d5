"""What is measured, and when it is beyond its bound."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from attlas.engine.conform.causes import Specimen, cause_of
from attlas.engine.conform.inputs import interval
from attlas.engine.conform.measures import Measure, bounds_of, in_order
from attlas.exporter.differences import row_variation
from attlas.exporter.spec import Output
from support import make_spec


def test_an_interval_holds_all_that_a_store_rounds_to_its_value() -> None:
    values = np.random.default_rng(0).random((2, 3, 5, 7), np.float32) ** 4
    for stored in (values, values.astype(np.float16), np.round(255 * np.sqrt(values)).astype(np.uint8)):
        low, high = interval(stored)
        assert (low <= values).all()
        assert (values <= high).all()
        np.testing.assert_array_equal(row_variation(values, low, high), 0)
    low, high = interval(np.array([[100]], np.uint8))
    beyond = np.array([[high[0, 0] + 0.25]])
    assert row_variation(beyond, low, high) == pytest.approx([0.125])
    assert row_variation(low - 0.25, low, high) == pytest.approx([0.125])
    assert np.isnan(row_variation(beyond * np.nan, low, high)).all()


def take(measure: Measure, got: npt.NDArray[Any], expected: npt.NDArray[Any], names: list[str]) -> list[bool]:
    """Which pictures of a batch are beyond the bounds."""
    each = measure.differences(got, (expected, expected))
    measure.add(each, names)
    return list(measure.beyond(each).tolist())


def test_a_measure_knows_where_the_largest_is() -> None:
    output = Output("attention.3", ("image", "head", "query", "key"), (None, 2, 4, 4))
    measure = Measure(output, make_spec(), bounds_of("float32"))
    expected = np.full((2, 2, 4, 4), 0.25)
    got = expected.copy()
    got[1, 1, 2] = (0.75, 0.25, 0, 0)
    assert take(measure, expected, expected, ["a", "b"]) == [False, False]
    assert take(measure, got, expected, ["c", "d"]) == [False, True]
    line = measure.line()
    assert (line.layer, line.picture, line.head, line.query, line.largest) == (3, "d", 1, 2, 0.5)
    assert line.mean == pytest.approx(0.5 / 32)
    assert not line.conforms


def test_what_is_no_number_never_conforms() -> None:
    output = Output("logits", ("image", "class"), (None, 3))
    measure = Measure(output, make_spec(), bounds_of("bfloat16"))
    expected = np.ones((2, 3))
    assert take(measure, np.array([[1, 1, 1], [1, np.nan, 1]]), expected, ["a", "b"]) == [False, True]
    assert take(measure, expected, expected, ["c", "d"]) == [False, False]
    line = measure.line()
    assert (line.conforms, line.picture, math.isnan(line.largest)) == (False, "b", True)
    assert json.loads(json.dumps(line.to_dict(), allow_nan=False))["largest"] is None


def test_outputs_are_in_the_order_of_the_model() -> None:
    names = ["logits", "gradient.0", "gradient.1", "attention.1", "query.1", "attention.0", "branch_ratio.0", "tokens"]
    found = in_order([Output(name, ("image",), (None, 2)) for name in names])
    assert [output.name for output in found] == [
        "attention.0", "branch_ratio.0", "query.1", "attention.1", "tokens", "logits", "gradient.1", "gradient.0",
    ]  # fmt: skip


def test_the_widest_of_several_precisions_holds() -> None:
    assert bounds_of("float32", "float16") == bounds_of("float16")
    assert bounds_of("float32", "float32", "bfloat16") == bounds_of("bfloat16")


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda map: map.astype(np.float16).astype(np.float32), "returned in float16"),
        (lambda map: (map.view(np.uint32) & 0xFFFF0000).view(np.float32), "returned in bfloat16"),
        (lambda map: map * np.float32(1.01), "rows sum to 1.01 to 1.01: a fused or approximate softmax"),
        (lambda map: map * np.float32(np.nan), "no numbers"),
    ],
)
def test_a_cause_is_read_from_the_map(
    tiny_graph: Path, change: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]], cause: str
) -> None:
    spec = make_spec()
    scores = np.random.default_rng(0).normal(size=(1, 2, 7, 7))
    right = (np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)).astype(np.float32)
    specimen = Specimen("attention.0", change(right), (right, right), np.zeros((1, *spec.image_size, 3), np.uint8))
    assert cause in cause_of(specimen, tiny_graph, spec, 1e-3)

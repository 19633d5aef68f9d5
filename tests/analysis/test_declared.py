"""What statistics of a user's own may say of themselves, and what their formulas may give."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attlas.analysis.statistic import Statistic
from attlas.engine.store.store import Store
from attlas.errors import UsageError
from support_statistics import NORMED, SPEC, UNIT, make_store

moments = pytest.importorskip("attlas.analysis.statistics.moments")
statistics = pytest.importorskip("attlas.analysis.statistics")


def heads(attention: np.ndarray) -> np.ndarray:
    return attention.mean(axis=(-2, -1))


SCALARS: dict[str, Any] = {"name": "mine", "dims": ("layer", "head"), "formula": heads}


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"name": 5}, "name: pass a name, not 5"),
        ({"formula": 5}, "5 is no function"),
        ({"units": 5}, "units=5 is no text"),
        ({"long_name": None}, "long_name=None is no text"),
        ({"dims": 5}, "dims: pass a name, or a list of them, not 5"),
        ({"dims": ("layer", "head", "head")}, "each has a name of its own"),
        ({"dims": ("layer", "mine"), "sizes": {"mine": 2}}, "and not the statistic's"),
        ({"dims": ("image", "layer")}, "leave image out"),
        ({"dims": ("head", "layer")}, "layer comes first"),
        ({"sizes": {"bin": -3}}, "bin has -3 entries"),
        ({"sizes": {"bin": 2.5}}, r"bin has 2\.5 entries"),
        ({"sizes": 3}, "are no sizes by dimension"),
        ({"within": (1, 0)}, "no smallest and largest"),
        ({"within": 1}, "no smallest and largest"),
        ({"edges": [0, 1]}, "edges are a function"),
        ({"dtype": "nonsense"}, "none of numpy's"),
        ({"dtype": "complex64"}, "none of real numbers"),
        ({"dtype": "int8"}, "fill=nan, for images that cannot be read, is no int8"),
        ({"dtype": "int8", "fill": 128}, "fill=128, .* is no int8"),
        ({"fill": "x"}, "fill='x' is no number"),
    ],
)
def test_what_a_statistic_says_of_itself_fits_together(changed: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match) as raised:
        Statistic(**SCALARS | changed)
    assert "\n" not in str(raised.value)


def test_dims_may_be_a_list_and_a_dtype_any_spelling() -> None:
    one = Statistic("mine", ["layer", "head"], heads, dtype=np.float32, sizes={"bin": np.int64(3)})  # type: ignore[arg-type]
    assert (one.dims, one.dtype, one.scalar, one.shape(SPEC)) == (("layer", "head"), "float32", True, (2, 2))


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"formula": lambda attention: heads(attention) * 1j}, "values of type complex64, and not real"),
        ({"formula": lambda attention: ["a", "b"]}, "and not real numbers"),
        ({"formula": lambda attention: [10**30, None]}, "of type object, and not real"),
        ({"formula": lambda attention: np.array([0, np.inf])}, "infinite, or too large for float32"),
        ({"formula": lambda attention: [0, 1e300]}, "infinite, or too large for float32"),
        ({"formula": lambda attention: [0, np.inf], "rows": False, "name": "sums"}, "infinite"),
        ({"formula": lambda attention: [0, 300], "dtype": "int8", "fill": -1, "name": "large"}, "are no int8"),
        ({"formula": lambda attention: [0, 1.5], "dtype": "int8", "fill": -1, "name": "large"}, "are no int8"),
        ({"formula": lambda attention: [0.5, 1], "dims": ("layer", "bin"), "sizes": {"bin": 2}, "rows": False,
          "edges": lambda spec: [0, 1, 2], "name": "counts"}, "are no counts"),
        ({"dims": ("layer", "bin"), "sizes": {"bin": 2}, "edges": lambda spec: [0, 1]}, "2 bins have 3 edges, not 2"),
        ({"sizes": {"head": 3}}, "sizes: head is a dimension of ours"),
        ({"sizes": {"quantile": 3}}, "sizes: quantile is a dimension of ours"),
        ({"dims": ("layer", "class"), "name": "of", "sizes": {"class": 3}}, "class has 3 entries, and 4 in class"),
        ({"kernels": {"layer": "sink_share"}}, "kernels are of our formulas"),
        ({"formula": lambda value_norm: value_norm.mean(-1), "rows": False}, "rows=False is for attention alone"),
        ({"formula": lambda value_norm: 1 / 0}, "its formula fails: ZeroDivisionError"),
        ({"formula": lambda value_norm: value_norm}, r"shape \(2, 7\), not \(head 2\)"),
        ({"formula": lambda value_norm: value_norm.mean(-1) * np.inf}, "infinite"),
        ({"dims": ("layer", "head", "key"), "name": "mine"}, "of other dimensions"),
        ({"dtype": "float64", "name": "mine"}, "mine of other dimensions, or not float64"),
    ],
)  # fmt: skip
def test_what_a_formula_gives_is_real_numbers_that_its_rows_hold(
    normed_store: Any, changed: dict[str, Any], match: str
) -> None:
    with pytest.raises(UsageError, match=match) as raised:
        statistics.analyze(normed_store, [Statistic(**SCALARS | {"name": "wrong"} | changed)])
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def normed_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a statistic of the name that the refused ones have."""
    store = make_store(tmp_path_factory.mktemp("own") / "s.zarr", spec=NORMED)
    statistics.analyze(store.path, [Statistic(**SCALARS)])
    return Path(store.path)


def test_names_are_names_or_statistics_and_share_no_array(normed_store: Path) -> None:
    for wrong in (5, None):
        with pytest.raises(UsageError, match=f"names: pass names or `Statistic`s, not {wrong}"):
            statistics.analyze(normed_store, [wrong])  # type: ignore[list-item]
    one, bins = Statistic(**SCALARS | {"name": "one"}), {"dims": ("bin",), "formula": lambda attention: [1.0, 2.0]}
    with pytest.raises(UsageError, match="one_mean and one both make an array one_mean"):
        statistics.analyze(normed_store, [one, Statistic(**SCALARS | {"name": "one_mean"})])
    two = [Statistic(**SCALARS | bins | {"name": f"of_{n}", "sizes": {"bin": n}}) for n in (2, 3)]
    with pytest.raises(UsageError, match="of_3: bin has 3 entries, and 2 of of_2"):
        statistics.analyze(normed_store, two)


def test_a_dimension_of_ones_own_stays_usable_for_who_does_not_know_it(tmp_path: Path) -> None:
    """Every analysis afterwards leaves its rows and sums as they are, and the store opens."""
    store = make_store(tmp_path / "s.zarr", units=[0])
    mine = Statistic("mine", ("layer", "bin"), lambda attention: attention[0, 0, :3], sizes={"bin": 3},
                     grouped="asked")  # fmt: skip
    sums = Statistic("sums", ("layer", "part"), lambda attention: attention[0, 0, :2], sizes={"part": 2}, rows=False)
    statistics.analyze(store.path, [sums])
    statistics.analyze(store.path, [mine], by="label")
    before = {name: Store(store.path).read(name) for name in ("mine", "mine_mean", "mine_mean_by_label", "sums")}
    wanted = store.read("attention", slice(0, UNIT))[:, :, 0, 0, :3]
    np.testing.assert_allclose(before["mine"][:UNIT], wanted.astype(np.float64))
    statistics.analyze(store.path)
    statistics.analyze(store.path, ["self_mass"], by="label", overwrite=True)
    for name, values in before.items():
        np.testing.assert_array_equal(Store(store.path).read(name), values)
    assert pytest.importorskip("attlas.analysis.dataset").open(store.path).sizes["bin"] == 3
    with pytest.raises(UsageError, match="bin has 4 entries, and 3 in mine"):
        statistics.analyze(store.path, [dataclasses.replace(mine, name="other", sizes={"bin": 4})])


def test_a_statistic_without_any_value_is_a_note(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr")
    none = Statistic(**SCALARS | {"formula": lambda attention: np.full(2, np.nan)})
    some = Statistic(**SCALARS | {"name": "some", "formula": lambda attention: [np.nan, 1.0]})
    maps = Statistic("maps", ("y", "x"), lambda attention: np.full(SPEC.grid, np.nan))
    notes = statistics.analyze(store.path, [none, some, maps]).notes
    assert [note for note in notes if "NaN" in note] == [
        "mine: its mean is NaN: no image has a value", "maps: its mean is NaN: no entry has a value in every image",
    ]  # fmt: skip


def test_infinite_values_of_earlier_versions_are_summed_up_in_silence() -> None:
    values = np.array([[np.inf, 1.0], [2.0, 3.0], [np.inf, 5.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = moments.Moments.of(values[:2]) + moments.Moments.of(values[2:])
        median = moments.quantiles(values)[2]
    assert found.average[1] == 3
    assert median[1] == 3

"""The card's kernels against the formulas in float64, in numba's simulator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attlas
import numpy as np
import pytest
from attlas.analysis import formulas as f
from attlas.analysis.kernels.fused import Reducer
from attlas.errors import AttlasError, UsageError
from support_card import CASES, attention, simulated
from support_devices import assert_same_store

pytest.importorskip("numba_cuda")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Every case's arrays, from one process."""
    path = tmp_path_factory.mktemp("card") / "results.npz"
    simulated("support_card.py", str(path))
    return dict(np.load(path))


def of(results: dict[str, np.ndarray], case: str) -> dict[str, np.ndarray]:
    return {name.partition("/")[2]: array for name, array in results.items() if name.startswith(f"{case}/")}


@pytest.mark.parametrize("case", [case for case in CASES if case != "not finite"])
def test_the_cards_statistics_equal_the_formulas(case: str, results: dict[str, np.ndarray]) -> None:
    """Within 1e-6 of the largest value, NaN at the same places, in the promised shapes and dtypes."""
    spec, images, _ = CASES[case]
    layers, pool = attention(case)
    a, prefix = np.stack([layer.astype(np.float64) for layer in layers], 1), len(spec.prefix)
    readout = np.zeros((images, spec.tokens))
    if pool is None:
        rows = f.readout_rows(spec.prefix, spec.grid, spec.readout)
        readout[:, list(rows)] = 1 / len(rows)
    else:
        readout[:, spec.tokens - pool.shape[-1] :] = pool.mean((1, 2), dtype=np.float64)
    expected = {
        "distance": f.distance(a, spec.grid, spec.patch_size),
        "distance_renormalized": f.distance_renormalized(a, spec.grid, spec.patch_size),
        "entropy": f.entropy(a) if case != "mixed" else None,
        "entropy_patch": f.entropy_patch(a, prefix) if case != "mixed" else None,
        "prefix_mass": f.prefix_mass(a, prefix),
        "rollout": f.rollout(list(a.swapaxes(0, 1)), spec.grid, readout),
        "rows_without_patch_mass": f.rows_without_patch_mass(a, prefix),
        "_finite": np.ones((images, len(layers)), bool),
        "prefix_attention": np.stack([layer[:, :, :prefix] for layer in layers], 1),
    }
    found = of(results, case)
    templates = {t.name: t for t in Reducer(spec).templates}
    assert templates.keys() | {"_finite"} == found.keys() - {"prefix_attention"}
    assert ("rollout" in found, "entropy" in found) == (case != "some layers", case != "mixed")
    for name, values in found.items():
        if name in templates:
            assert (values.shape[1:], values.dtype) == (templates[name].shape, templates[name].dtype)
        wanted = expected[name]
        assert wanted is not None
        if values.dtype.kind != "f" or name == "prefix_attention":
            np.testing.assert_array_equal(values, wanted, err_msg=name)
        else:
            bound = 1e-6 * np.nanmax(np.abs(wanted))
            np.testing.assert_allclose(values, wanted, rtol=0, atol=bound, err_msg=name)


def test_attention_that_is_not_finite_is_flagged(results: dict[str, np.ndarray]) -> None:
    """Its image and layer, and no other."""
    assert np.argwhere(~of(results, "not finite")["_finite"]).tolist() == [[2, 1]]


def test_a_run_by_way_of_a_card_stores_what_the_host_does(
    graph_factory: Callable[..., Path], pictures: Path, tmp_path: Path
) -> None:
    """Attention of all layers in one allocation, whether it is stored or not, in both dtypes; a padded batch."""
    graph = graph_factory(prefix=("class", "register"), grid=(2, 2), heads=1)
    kept = {"none": "float16", "attention": "float32"}
    simulated("support_card.py", str(graph), str(pictures), str(tmp_path / "card"), *sum(kept.items(), ()))
    for keep, dtype in kept.items():
        host = attlas.run(
            graph, pictures, tmp_path / f"{keep}.zarr", keep=(keep,), store_dtype=dtype, batch_size=3, limit=2
        )
        assert_same_store(tmp_path / f"card.{keep}.zarr", host.path, tolerance=1e-5)


@pytest.mark.parametrize(
    ("text", "kind"), [("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: ...", AttlasError), ("out of memory", RuntimeError)]
)
def test_a_card_that_cannot_run_the_kernels_is_said_in_one_line(text: str, kind: type[Exception]) -> None:
    """But for want of memory fewer images are tried."""
    from attlas.analysis.kernels.cuda import _tried

    def reduce() -> None:
        raise RuntimeError(text)

    with pytest.raises(kind, match=text[:13]):
        _tried(reduce)


def test_without_a_card_statistics_are_elsewhere(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """And to ask for them there is an error in one line."""
    assert Reducer(CASES["class token"][0]).on_card("float16") is None
    with pytest.raises(UsageError, match="statistics on the card: need"):
        attlas.run(tiny_graph, pictures, tmp_path / "s.zarr", statistics="card")

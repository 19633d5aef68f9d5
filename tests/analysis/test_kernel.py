"""The fused kernel against the formulas in float64, on every stored dtype and kind of model."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from attlas.analysis import formulas as f
from attlas.errors import UsageError
from attlas.exporter.spec import GraphSpec, Recipe, Weights
from hypothesis import given, settings
from hypothesis import strategies as st

kernel = pytest.importorskip("attlas.analysis.kernels.fused")


def spec(**changes: Any) -> GraphSpec:
    made = GraphSpec(
        model="vit_test", tag="", weights=Weights("random", "0"), dtype="float32", image_size=(48, 64),
        recipe=Recipe((48, 64), (48, 64), "center", "bicubic", (0.5,) * 3, (0.5,) * 3), patch_size=(16, 8),
        grid=(3, 8), prefix=("class",), pooling="class", layers=(0, 1, 2), depth=3, heads=2,
        attention_kind="probability", position="absolute", outputs=(),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def attention(of: GraphSpec, images: int, seed: int = 0, sharp: float = 3.0) -> list[np.ndarray]:
    """Per layer (image, head, query, key), float32 rows that sum to 1."""
    shape = (len(of.layers), images, of.heads, of.tokens, of.tokens)
    e = np.exp(np.random.default_rng(seed).normal(size=shape) * sharp)
    return list((e / e.sum(-1, keepdims=True)).astype(np.float32))


def expected(of: GraphSpec, layers: list[np.ndarray], readout: Any = None) -> dict[str, np.ndarray]:
    layers = [a.astype(np.float64) for a in layers]
    a, prefix = np.stack(layers, 1), len(of.prefix)
    if readout is None:
        readout = f.readout_rows(of.prefix, of.grid, of.readout)
    return {
        "distance": f.distance(a, of.grid, of.patch_size),
        "distance_renormalized": f.distance_renormalized(a, of.grid, of.patch_size),
        "entropy": f.entropy(a),
        "entropy_patch": f.entropy_patch(a, prefix),
        "prefix_mass": f.prefix_mass(a, prefix),
        "rollout": f.rollout(layers, of.grid, readout),
        "rows_without_patch_mass": f.rows_without_patch_mass(a, prefix),
    }


def close(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray], bound: float = 5e-6) -> None:
    """Within `bound` of the largest value; of 0.1 where all are smaller, since one-hot rows have no entropy at all."""
    for name, value in wanted.items():
        if name in got:
            assert got[name].shape == value.shape
            np.testing.assert_allclose(got[name], value, rtol=0, atol=bound * np.nanmax(np.abs(value), initial=0.1))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prefix": ("class", "distillation"), "pooling": "distilled"},
        {"prefix": ("register", "class"), "pooling": "class"},
        {"prefix": (), "pooling": "mean", "heads": 1},
        {"prefix": ("class",) + ("register",) * 4, "pooling": "mean", "grid": (5, 5)},
    ],
)
def test_equals_the_formulas_on_the_stored_values(dtype: str, changes: dict[str, Any]) -> None:
    of = spec(**changes)
    layers = [a.astype(dtype) for a in attention(of, 3)]
    reducer = kernel.Reducer(of)
    got = reducer(layers)
    assert got.pop("_finite").all()
    assert got.keys() == {t.name for t in reducer.templates}
    assert ("prefix_mass" in got) == bool(of.prefix)
    close(got, expected(of, layers))
    for template in reducer.templates:
        assert got[template.name].shape[1:] == template.shape
        assert got[template.name].dtype == template.dtype
        assert len(template.dims) == 1 + len(template.shape)


def test_codes_are_decoded_with_rows_renormalised() -> None:
    of = spec()
    codes = [np.round(255 * np.sqrt(a)).astype(np.uint8) for a in attention(of, 2)]
    decoded = [np.asarray(f.decode_codes(c, np.float64)) for c in codes]
    close(kernel.Reducer(of)(codes), expected(of, decoded))


def test_the_pools_own_map_is_the_readout() -> None:
    """Also where the pool attends to the patches alone."""
    of = spec(prefix=("register",), pooling="pool")
    layers = attention(of, 2)
    for keys in (of.tokens, of.patches):
        pool = np.random.default_rng(1).random((2, 4, 1, keys)).astype(np.float32)
        weights = np.zeros((2, of.tokens))
        weights[:, of.tokens - keys :] = pool.mean((1, 2), dtype=np.float64)
        close(kernel.Reducer(of)(layers, pool), expected(of, layers, weights))
    with pytest.raises(UsageError, match="pool"):
        kernel.Reducer(of)(layers)


@given(st.integers(0, 2**16), st.floats(0.1, 30), st.sampled_from([(1, 2), (2, 2), (4, 3), (7, 7)]))
@settings(max_examples=25, deadline=None)
def test_sharp_and_flat_attention_stays_right(seed: int, sharp: float, grid: tuple[int, int]) -> None:
    """Up to one-hot rows, where float16 subnormals and zeros abound."""
    of = spec(grid=grid)
    layers = [a.astype(np.float16) for a in attention(of, 1, seed, sharp)]
    close(kernel.Reducer(of)(layers), expected(of, layers))


def test_logarithm_is_right_over_all_of_float16() -> None:
    """Every positive float16 up to 1, subnormals included, as -a ln a in a row of its own."""
    of = spec(grid=(1, 2), prefix=(), pooling="mean", layers=(0,), depth=1, heads=1)
    values = np.arange(1, 0x3C01, dtype=np.uint16).view(np.float16)
    a = np.zeros((len(values), 1, 2, 2), np.float16)
    a[:, 0, :, 0] = values[:, None]
    got = kernel.Reducer(of)([a])["entropy"][:, 0, 0]
    wide = values.astype(np.float64)
    np.testing.assert_allclose(got, -wide * np.log(wide), rtol=3e-7, atol=1e-7)


def test_an_image_has_the_same_bits_alone_in_a_batch_and_in_threads() -> None:
    of = spec(grid=(5, 7))
    layers = [a.astype(np.float16) for a in attention(of, 8)]
    reducer = kernel.Reducer(of)
    whole = reducer(layers)
    for image in range(8):
        alone = reducer([a[image : image + 1] for a in layers])
        assert all(whole[name][image].tobytes() == alone[name][0].tobytes() for name in whole)
    with ThreadPoolExecutor(4) as threads:
        for again in threads.map(lambda _: reducer(layers), range(8)):
            assert all(whole[name].tobytes() == again[name].tobytes() for name in whole)


def test_a_strided_view_gives_what_its_copy_gives() -> None:
    of = spec()
    stored = np.stack([a.astype(np.float16) for a in attention(of, 2)], 1)
    views = [stored[:, layer] for layer in range(3)]
    got, copied = kernel.Reducer(of)(views), kernel.Reducer(of)([v.copy() for v in views])
    assert all(got[name].tobytes() == copied[name].tobytes() for name in got)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_attention_that_is_not_finite_is_noticed_by_image_and_layer(bad: float) -> None:
    of = spec()
    layers = [a.astype(np.float16) for a in attention(of, 3)]
    layers[1][2, 1, 4, 5] = bad
    finite = np.ones((3, 3), np.bool_)
    finite[2, 1] = False
    np.testing.assert_array_equal(kernel.Reducer(of)(layers)["_finite"], finite)


def test_rows_without_patch_mass_are_counted_and_left_out() -> None:
    of = spec(layers=(0,), depth=1)
    [a] = attention(of, 1)
    a[0, 0, 3] = np.eye(of.tokens)[0]
    a[0, 1] = np.eye(of.tokens)[0]
    got = kernel.Reducer(of)([a])
    np.testing.assert_array_equal(got["rows_without_patch_mass"][0, 0], [1, of.tokens])
    assert np.isnan(got["entropy_patch"][0, 0, 1])
    assert np.isnan(got["distance_renormalized"][0, 0, 1])
    close(got, expected(of, [a]))


def test_mixed_attention_has_no_entropies_and_some_layers_no_rollout() -> None:
    mixed = kernel.Reducer(spec(attention_kind="mixed"))
    assert not any("entropy" in t.name for t in mixed.templates)
    assert "entropy" not in mixed(attention(mixed.spec, 1))
    some = spec(layers=(0, 2))
    assert "rollout" not in kernel.Reducer(some)(attention(some, 1))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [(lambda a: a[:, :1], "shape"), (lambda a: a.astype(np.float64), "float64"), (lambda a: a[0], "shape")],
)
def test_wrong_arrays_are_refused_with_the_layer(wrong: Any, match: str) -> None:
    of = spec()
    layers = attention(of, 1)
    layers[1] = wrong(layers[1])
    with pytest.raises(UsageError, match=f"layer 1.*{match}"):
        kernel.Reducer(of)(layers)

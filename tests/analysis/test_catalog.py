"""Every statistic that can be asked for by name, against its formula in float64."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from attlas.analysis import formulas as f
from attlas.analysis.formulas import histograms
from attlas.analysis.statistic import context
from attlas.exporter.spec import GraphSpec, Recipe, Weights

catalog = pytest.importorskip("attlas.analysis.catalog")
kernel = pytest.importorskip("attlas.analysis.kernels.fused")
layer = pytest.importorskip("attlas.analysis.kernels.layer")
views = pytest.importorskip("attlas.analysis.kernels.views")

SPEC = GraphSpec(
    model="vit_test", tag="", weights=Weights("random", "0"), dtype="float32", image_size=(48, 64),
    recipe=Recipe((48, 64), (48, 64), "center", "bicubic", (0.5,) * 3, (0.5,) * 3), patch_size=(16, 8),
    grid=(3, 8), prefix=("class", "register"), pooling="class", layers=(0, 1, 2), depth=3, heads=3,
    attention_kind="probability", position="absolute", outputs=(),
)  # fmt: skip
KINDS = {
    "class and register": SPEC,
    "register first": dataclasses.replace(SPEC, prefix=("register", "class")),
    "no prefix": dataclasses.replace(SPEC, prefix=(), pooling="mean", grid=(5, 5), patch_size=(16, 16)),
    "distilled": dataclasses.replace(SPEC, prefix=("class", "distillation"), pooling="distilled", grid=(2, 2)),
}


def attention(spec: GraphSpec, seed: int = 0, sharp: float = 3.0) -> np.ndarray:
    """(head, query, key), float32 rows that sum to 1."""
    scores = np.random.default_rng(seed).normal(size=(spec.heads, spec.tokens, spec.tokens)) * sharp
    e = np.exp(scores)
    return (e / e.sum(-1, keepdims=True)).astype(np.float32)


def of_formula(name: str, spec: GraphSpec, a: np.ndarray, v: np.ndarray) -> np.ndarray:
    """What the statistic is, by the formula that its entry names, called with what its arguments' names say."""
    return np.asarray(catalog.CATALOG[name](context(spec) | {"attention": a, "value_norm": v}))


# With a kernel of one layer; a histogram's counts are compared below.
FAST = [name for name, s in catalog.CATALOG.items() if {"layer", "batch"} & set(s.kernels) and s.edges is None]
COUNTS = [name for name, s in catalog.CATALOG.items() if s.edges is not None]


def shown(spec: GraphSpec, dtype: str, a: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
    """A `Layer` that shows `a` as stored in `dtype`, the stored values in float64, and value norms."""
    codes = np.round(255 * np.sqrt(a)).astype(np.uint8) if dtype == "uint8" else a.astype(dtype)
    values = f.decode_codes(codes, np.float64) if dtype == "uint8" else codes.astype(np.float64)
    v = np.random.default_rng(5).random((spec.heads, spec.tokens)).astype(np.float32) + 0.1
    view = layer.Layer(spec)
    view.take(kernel.seen(codes)[None])
    view.show(0, v)
    return view, values, v.astype(np.float64)


def by_kernel(name: str, view: Any) -> np.ndarray:
    """What the pass makes of the image that is shown."""
    kernels = catalog.CATALOG[name].kernels
    if "batch" in kernels:
        return np.asarray(views.BATCH[kernels["batch"]](view)[0])
    return np.asarray(views.LAYER[kernels["layer"]](view))


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAST)
def test_equals_the_formula_in_float64(name: str, kind: str, dtype: str) -> None:
    """Within 1e-6 of the largest value, on every stored dtype and kind of model."""
    spec = KINDS[kind]
    view, a, v = shown(spec, dtype, attention(spec))
    got, wanted = by_kernel(name, view), of_formula(name, spec, a, v)
    assert got.shape == wanted.shape == catalog.CATALOG[name].shape(spec)[1:]
    assert np.abs(got - wanted).max() <= 1e-6 * max(np.abs(wanted).max(), 0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_the_formula_s(name: str, kind: str) -> None:
    """But for a query that rounding moves over an edge."""
    view, a, v = shown(KINDS[kind], "float32", attention(KINDS[kind]))
    assert np.abs(by_kernel(name, view) - of_formula(name, KINDS[kind], a, v)).sum() <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_histograms_count_every_query_once_where_the_formula_puts_it(kind: str) -> None:
    """Of thousands of queries only such may lie elsewhere that rounding moves over an edge."""
    spec = KINDS[kind]
    view, a, _ = shown(spec, "float16", attention(spec))
    d = np.asarray(f.patch_distances(spec.grid, spec.patch_size))
    part = a[:, len(spec.prefix) :, len(spec.prefix) :]
    far, mass = (part * d).sum(-1), part.sum(-1)
    values = {
        "entropy_histogram": f.row_entropy(a), "distance_histogram": far, "distance_renormalized_histogram": far / mass,
    }  # fmt: skip
    for name, wanted in values.items():
        statistic = catalog.CATALOG[name]
        counts = by_kernel(name, view)
        assert counts.dtype.kind == "i"
        assert (counts.sum(-1) == wanted.shape[-1]).all()
        assert np.abs(counts - histograms.histogram(wanted, statistic.edges(spec))).sum() <= 2


@pytest.mark.parametrize("discard", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("ties", [False, True])
def test_rollout_of_vit_explain_equals_the_formula(discard: float, ties: bool) -> None:
    """Also where stored values are equal in their hundreds, which decides what is discarded."""
    spec = SPEC
    layers = [attention(spec, seed) for seed in range(3)]
    layers = [(np.round(a * 64) / 64).astype(np.float16) if ties else a.astype(np.float16) for a in layers]
    row, readout = kernel.Reducer(spec).start(1)[0], f.readout_rows(spec.prefix, spec.grid, spec.readout)
    for a in reversed(layers):
        view, _, _ = shown(spec, "float16", a.astype(np.float32))
        row = view.explain(row, discard=discard)
    got = row[len(spec.prefix) :].reshape(spec.grid)
    wanted = f.rollout_vit_explain([a.astype(np.float64) for a in layers], spec.grid, readout, discard=discard)
    np.testing.assert_allclose(got / got.max(), wanted, rtol=1e-6, atol=1e-9)


def test_rows_without_patch_mass_are_left_out() -> None:
    a = attention(SPEC)
    a[0, 4] = np.eye(SPEC.tokens)[0]
    a[1] = np.eye(SPEC.tokens)[0]
    view, exact, v = shown(SPEC, "float32", a)
    for name in ("distance_unit_square", "normalized_mutual_information"):
        got = by_kernel(name, view)
        np.testing.assert_allclose(got[[0, 2]], of_formula(name, SPEC, exact, v)[[0, 2]], rtol=1e-6)
        assert np.isnan(got[1])
    counts = by_kernel("distance_renormalized_histogram", view)
    np.testing.assert_array_equal(counts.sum(-1), [SPEC.patches - 1, 0, SPEC.patches])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_mixed_attention_may_be_below_zero_everywhere(dtype: str) -> None:
    """The largest of negative values is one of them."""
    spec = dataclasses.replace(SPEC, attention_kind="mixed")
    a = attention(spec).astype(dtype)
    a[:, :, -1] *= -1
    view = layer.Layer(spec)
    view.take(kernel.seen(a)[None])
    view.show(0)
    wanted = f.score_matrix(a.astype(np.float64), spec.grid)
    assert wanted[-1, -1] < 0
    np.testing.assert_allclose(view.peaks("query"), wanted, rtol=1e-6)


def test_images_of_a_batch_are_shown_one_by_one() -> None:
    batch = np.stack([attention(SPEC, seed) for seed in range(3)]).astype(np.float16)
    view = layer.Layer(SPEC)
    view.take(kernel.seen(batch))
    for image in (2, 0, 1):
        view.show(image)
        np.testing.assert_array_equal(view.attention, batch[image].astype(np.float32))
        np.testing.assert_allclose(
            view.peaks("query"), f.score_matrix(batch[image].astype(float), SPEC.grid), rtol=1e-6
        )


@pytest.mark.parametrize("name", ["score_matrix", "score_matrix_mean"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_batch_at_once_is_its_images_one_by_one(name: str, dtype: str) -> None:
    view, batch = layer.Layer(SPEC), np.stack([attention(SPEC, seed) for seed in range(3)]).astype(dtype)
    view.take(kernel.seen(batch))
    found = views.BATCH[catalog.CATALOG[name].kernels["batch"]](view)
    for image in range(3):
        view.show(image)
        np.testing.assert_array_equal(found[image], view.peaks("query"))


def test_a_layer_forgets_what_it_made_of_the_attention_before() -> None:
    one, other = attention(SPEC, 1), attention(SPEC, 2)
    view, _, _ = shown(SPEC, "float32", one)
    first = view.rows.copy()
    view.take(kernel.seen(other)[None])
    view.show(0)
    assert not np.array_equal(view.rows, first)
    view.take(kernel.seen(one)[None])
    view.show(0)
    np.testing.assert_array_equal(view.rows, first)

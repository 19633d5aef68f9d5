"""Every plain function takes arrays of any library: numpy's numbers from torch and from the strict Array API."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import attlas.analysis
import numpy as np
import pytest

GRID, PIXELS, PREFIX = (2, 3), (16, 8), 2
rng = np.random.default_rng(0)
scores = np.exp(rng.normal(size=(2, 3, 8, 8)) * 2)
ATTENTION = scores / scores.sum(-1, keepdims=True)  # (layer, head, query, key)
GRADIENT = rng.normal(size=ATTENTION.shape)
NORMS, VECTORS = rng.random((2, 3, 8)) + 0.1, rng.normal(size=(2, 3, 8, 5))
TOKENS, COVER = rng.normal(size=(8, 5)), [[0.0, 1.0, 0.0], [0.0, 0.5, 0.0]]
CODES = np.round(255 * np.sqrt(ATTENTION)).astype(np.uint8)

f: Any = attlas.analysis
CALLS: dict[str, Callable[..., Any]] = {
    "border_mass": lambda a, g, m, x, t: f.border_mass(a, GRID),
    "box_jaccard": lambda a, g, m, x, t: f.box_jaccard(f.readout_map(a, GRID), COVER),
    "box_mass": lambda a, g, m, x, t: f.box_mass(f.readout_map(a, GRID), COVER),
    "chefer": lambda a, g, m, x, t: f.chefer(list_of(f.gradient_positive(a, g)), GRID),
    "class_token_weight": lambda a, g, m, x, t: f.class_token_weight(a, GRID),
    "discard_smallest": lambda a, g, m, x, t: f.discard_smallest(f.fuse(a, "max"), 0.5),
    "distance": lambda a, g, m, x, t: f.distance(a, GRID, PIXELS),
    "distance_renormalized": lambda a, g, m, x, t: f.distance_renormalized(a, GRID, PIXELS),
    "distance_unit_square": lambda a, g, m, x, t: f.distance_unit_square(a, GRID),
    "divergence": lambda a, g, m, x, t: f.divergence(a, a[..., 1:, 1:], GRID),
    "effective_tokens": lambda a, g, m, x, t: f.effective_tokens(a),
    "entropy": lambda a, g, m, x, t: f.entropy(a, unit="bits", rows=[0, 3]),
    "entropy_patch": lambda a, g, m, x, t: f.entropy_patch(a, PREFIX, normalized=True),
    "fuse": lambda a, g, m, x, t: f.fuse(a, "min"),
    "gradient_mean": lambda a, g, m, x, t: f.gradient_mean(a, g),
    "gradient_positive": lambda a, g, m, x, t: f.gradient_positive(a, g),
    "gradient_rollout": lambda a, g, m, x, t: f.gradient_rollout(list_of(f.gradient_mean(a, g)), GRID, discard=0.5),
    "gradient_rollout_vit_explain": lambda a, g, m, x, t: f.gradient_rollout_vit_explain(list_of(a), list_of(g), GRID),
    "head_deviation": lambda a, g, m, x, t: f.head_deviation(a, GRID),
    "head_importance": lambda a, g, m, x, t: f.head_importance(a, g),
    "head_similarity": lambda a, g, m, x, t: f.head_similarity(a),
    "histogram": lambda a, g, m, x, t: f.histogram(f.row_entropy(a), f.entropy_edges(8, bins=5)),
    "mass_mask": lambda a, g, m, x, t: f.mass_mask(f.readout_map(a, GRID)),
    "neighbour_mass": lambda a, g, m, x, t: f.neighbour_mass(a, GRID),
    "norm_outlier_map": lambda a, g, m, x, t: f.norm_outlier_map(m, GRID, times=1.1),
    "norm_outlier_share": lambda a, g, m, x, t: f.norm_outlier_share(m, GRID, above=0.5),
    "norm_weighted": lambda a, g, m, x, t: f.norm_weighted(a, m),
    "norm_weighted_distance": lambda a, g, m, x, t: f.norm_weighted_distance(a, m, GRID, PIXELS),
    "norm_weighted_entropy": lambda a, g, m, x, t: f.norm_weighted_entropy(a, m),
    "normalized_mutual_information": lambda a, g, m, x, t: f.normalized_mutual_information(a, GRID),
    "object_similarity": lambda a, g, m, x, t: f.object_similarity(f.object_vectors(t, [COVER, [[1] * 3] * 2])),
    "object_vectors": lambda a, g, m, x, t: f.object_vectors(t, [COVER], f.rollout(list_of(a), GRID)),
    "offset_map": lambda a, g, m, x, t: f.offset_map(a, GRID),
    "pointing_hit": lambda a, g, m, x, t: f.pointing_hit(f.readout_map(a, GRID), COVER),
    "position_deviation": lambda a, g, m, x, t: f.position_deviation(a, GRID),
    "position_similarity": lambda a, g, m, x, t: f.position_similarity(t, GRID),
    "prefix_mass": lambda a, g, m, x, t: f.prefix_mass(a, PREFIX),
    "query_map": lambda a, g, m, x, t: f.query_map(a, GRID, 1, 2),
    "readout_map": lambda a, g, m, x, t: f.readout_map(a, GRID, [0, 1]),
    "received_attention": lambda a, g, m, x, t: f.received_attention(a, GRID, queries="all"),
    "rest_mass": lambda a, g, m, x, t: f.rest_mass(a, GRID),
    "rollout": lambda a, g, m, x, t: f.rollout(list_of(a), GRID, [2, 3], residual=0.7),
    "rollout_discard": lambda a, g, m, x, t: f.rollout_discard(list_of(a), GRID, fusion="max", discard=0.5),
    "rollout_vit_explain": lambda a, g, m, x, t: f.rollout_vit_explain(list_of(a), GRID, discard=0.5),
    "row_entropy": lambda a, g, m, x, t: f.row_entropy(a),
    "rows_without_patch_mass": lambda a, g, m, x, t: f.rows_without_patch_mass(a, PREFIX),
    "score_matrix": lambda a, g, m, x, t: f.score_matrix(a, GRID, reading="head"),
    "self_mass": lambda a, g, m, x, t: f.self_mass(a, GRID),
    "sink_mask": lambda a, g, m, x, t: f.sink_mask(a, GRID, times=1.5),
    "sink_share": lambda a, g, m, x, t: f.sink_share(a, GRID, times=1.5),
    "summed_norm": lambda a, g, m, x, t: f.summed_norm(a, x),
}
# Of numbers and not of arrays, and what takes codes or moments.
OTHERS = {
    "Box", "Compared", "Difference", "Paired", "border_patches", "effective_number", "interval", "paired",
    "Fusion", "BINS", "benjamini_hochberg", "box_jaccard", "centre_box", "cover", "decode_codes",
    "Marked", "distance_edges", "entropy_edges", "group_differences", "patch_distances", "read_coco", "readout_rows",
    "rescaled", "uniform_distance", "uniform_entropy", "uniform_rollout", "welch",
}  # fmt: skip


def list_of(a: Any) -> list[Any]:
    return [a[0, ...], a[1, ...]]


def test_no_plain_function_is_left_out() -> None:
    """Whoever adds a formula adds its call."""
    named: set[str] = set()
    for home in attlas.analysis._FORMULAS:
        named |= set(importlib.import_module(f"attlas.analysis.{home}").__all__)
    assert named == CALLS.keys() | OTHERS


@pytest.mark.parametrize("library", ["torch", "array_api_strict"])
@pytest.mark.parametrize("name", CALLS)
def test_numbers_are_numpys(name: str, library: str) -> None:
    """In float64, equal but for rounding, and arrays of the library that was given."""
    module = pytest.importorskip(library)
    arrays = (ATTENTION, GRADIENT, NORMS, VECTORS, TOKENS)
    got = CALLS[name](*(module.asarray(a) for a in arrays))
    wanted = CALLS[name](*arrays)
    assert type(got).__module__.startswith(library)
    np.testing.assert_allclose(np.asarray(got), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("library", ["torch", "array_api_strict"])
def test_codes_decode_in_any_library(library: str) -> None:
    module = pytest.importorskip(library)
    np.testing.assert_allclose(np.asarray(f.decode_codes(module.asarray(CODES))), f.decode_codes(CODES), rtol=1e-6)


# -- norms and baselines, by plain loops ------------------------------------------------------------------------------


def test_norms_equal_the_vectors_that_are_handed_over() -> None:
    """||alpha f(x)|| and ||sum over heads|| against the vectors themselves, one loop per entry."""
    a, x = ATTENTION[0], VECTORS[0]
    norms = np.linalg.norm(x, axis=-1)
    weighted, summed = f.norm_weighted(a, norms), f.summed_norm(a, x)
    for i in range(8):
        for j in range(8):
            parts = [a[h, i, j] * x[h, j] for h in range(3)]
            for h in range(3):
                assert weighted[h, i, j] == pytest.approx(np.linalg.norm(parts[h]))
            assert summed[i, j] == pytest.approx(np.linalg.norm(sum(parts)))
            assert summed[i, j] <= weighted[:, i, j].sum() + 1e-12
    p = weighted / weighted.sum(-1, keepdims=True)
    np.testing.assert_allclose(f.norm_weighted_entropy(a, norms), -(p * np.log(p)).sum(-1).mean(-1))
    equal = f.norm_weighted_distance(a, np.ones((3, 8)), GRID, PIXELS)
    np.testing.assert_allclose(equal, f.distance_renormalized(a, GRID, PIXELS))


def test_baselines_are_what_uniform_attention_gives() -> None:
    uniform = np.full((4, 3, 8, 8), 1 / 8)
    assert f.uniform_entropy(8) == pytest.approx(f.entropy(uniform)[0, 0])
    assert f.uniform_entropy(6) == pytest.approx(f.entropy_patch(uniform, PREFIX)[0, 0])
    assert f.uniform_distance(GRID, PIXELS) == pytest.approx(f.distance_renormalized(uniform, GRID, PIXELS)[0, 0])
    for readout in (0, 4, tuple(range(2, 8)), (0, 1)):
        for residual in (0.5, 0.9, 1.0):
            got = f.uniform_rollout(GRID, PREFIX, 4, readout, residual=residual)
            np.testing.assert_allclose(got, f.rollout(list(uniform), GRID, readout, residual=residual))


@pytest.mark.parametrize(
    "call",
    [
        lambda: f.uniform_entropy(0),
        lambda: f.uniform_rollout(GRID, PREFIX, 4, 8),
        lambda: f.uniform_rollout(GRID, PREFIX, 4, residual=0),
        lambda: f.norm_weighted(ATTENTION, NORMS[:, :2]),
    ],
)
def test_what_makes_no_sense_is_refused(call: Callable[[], Any]) -> None:
    with pytest.raises(attlas.AttlasError):
        call()

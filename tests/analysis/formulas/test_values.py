"""Values worked out by hand, and those of plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from attlas.analysis import formulas as f
from hypothesis import given, settings
from hypothesis import strategies as st
from support_formulas import PIXELS, attention, grids, seeds

# -- worked by hand -------------------------------------------------------------------------------------------------


def test_rollout_of_one_layer_is_half_attention_half_identity() -> None:
    a = np.array([[[0.2, 0.3, 0.5], [0.1, 0.6, 0.3], [0.0, 0.5, 0.5]]])
    np.testing.assert_allclose(f.rollout([a], (1, 2)), [[0.15, 0.25]])
    np.testing.assert_allclose(f.rollout([a], (1, 2), 1), [[0.8, 0.15]])
    np.testing.assert_allclose(f.rollout([a], (1, 2), residual=1.0), [[0.3, 0.5]])


def test_distance_of_two_patches() -> None:
    # One class token, two patches 16 px apart; half of each row's patch mass looks across.
    a = np.array([[1.0, 0.0, 0.0], [0.5, 0.25, 0.25], [0.0, 0.5, 0.5]])
    assert f.distance(a, (1, 2), PIXELS) == pytest.approx((0.25 + 0.5) / 2 * 16)
    assert f.distance_renormalized(a, (1, 2), PIXELS) == pytest.approx(8)
    assert f.rows_without_patch_mass(a, 1) == 1
    np.testing.assert_allclose(f.prefix_mass(a, 1), [0.25])


def test_border_mass_is_the_share_on_the_outer_ring() -> None:
    """Of 3 x 3 patches only the middle one is inside; uniform attention gives 8 of 9; prefix columns do not count."""
    a = np.zeros((10, 10))
    a[:, 0], a[:, 5], a[:, 1] = 0.5, 0.125, 0.375  # class token, middle, corner
    a[4] = np.eye(10)[0]  # no mass on patches
    assert f.border_mass(a, (3, 3)) == pytest.approx(0.75)
    assert f.border_mass(np.full((9, 9), 1 / 9), (3, 3)) == pytest.approx(8 / 9)
    assert f.border_mass(np.full((4, 4), 0.25), (2, 2)) == 1


def test_norm_outliers_are_above_a_multiple_of_the_median_or_a_cut_of_ones_own() -> None:
    """Medians over patches 2 and 2.5; the prefix token's norm does not count."""
    norms = np.array([[90.0, 1, 2, 2, 2, 7, 8], [90.0, 1, 2, 2, 3, 7.4, 7.6]])
    np.testing.assert_array_equal(f.norms.norm_outlier_map(norms, (2, 3))[0], [[0, 0, 0], [0, 1, 1]])
    np.testing.assert_allclose(f.norms.norm_outlier_share(norms, (2, 3)), [2 / 6, 1 / 6])
    np.testing.assert_allclose(f.norms.norm_outlier_share(norms, (2, 3), above=2.5), [2 / 6, 3 / 6])
    np.testing.assert_allclose(f.norms.norm_outlier_share(norms, (2, 3), times=10), 0)


def test_divergence_of_two_models_is_scipys_and_leaves_prefix_tokens_out() -> None:
    """With a class token and with two registers; 0 for the same rows, ln 2 for rows that have nothing in common."""
    distance = pytest.importorskip("scipy.spatial.distance")
    one, other = attention(3, 7, 7), attention(3, 8, 8, seed=1)
    p, q = (a[..., -6:, -6:] / a[..., -6:, -6:].sum(-1, keepdims=True) for a in (one, other))
    wanted = (distance.jensenshannon(p, q, axis=-1) ** 2).mean(-1)
    np.testing.assert_allclose(f.divergence(one, other, (2, 3)), wanted, rtol=1e-9)
    np.testing.assert_allclose(f.divergence(one, one, (2, 3)), 0, atol=1e-15)
    apart = f.divergence(np.array([[1.0, 0], [1, 0]]), np.array([[0, 1.0], [0, 1]]), (1, 2))
    assert apart == pytest.approx(math.log(2))


def test_divergence_of_rows_that_differ_by_rounding_is_not_below_zero() -> None:
    """The difference of two entropies is, in float32, for a third of such rows."""
    rows = np.exp(np.random.default_rng(0).normal(size=(50, 13, 13)) * 3)
    rows = (rows / rows.sum(-1, keepdims=True)).astype(np.float32)
    found = f.divergence(rows, rows.astype(np.float16).astype(np.float32), (3, 4))
    assert found.min() >= 0
    assert found.max() < 1e-6


def test_entropy_of_certain_and_of_even_rows() -> None:
    a = np.array([[1.0, 0.0], [0.5, 0.5]])
    assert f.entropy(a) == pytest.approx(math.log(2) / 2)
    assert f.entropy(a, unit="bits") == pytest.approx(0.5)
    assert f.entropy(a, rows=[1], normalized=True) == pytest.approx(1)
    assert f.effective_tokens(a) == pytest.approx(1.5)


def test_discard_keeps_ties_together_and_vit_explain_keeps_the_first_entry() -> None:
    fused = np.array([[0.0, 0.2], [0.2, 0.6]])
    np.testing.assert_array_equal(f.discard_smallest(fused, 0.75), [[0, 0.2], [0.2, 0.6]])
    np.testing.assert_array_equal(f.discard_smallest(fused + 1, 0.75, ties=False), [[1.0, 0], [0, 1.6]])


def test_score_matrix_reads_the_maximum_over_queries_keys_or_heads() -> None:
    a = np.array([[[0.9, 0.1], [0.4, 0.6]], [[0.2, 0.8], [0.7, 0.3]]])
    np.testing.assert_allclose(f.score_matrix(a, (1, 2)), [[(0.9 + 0.7) / 2, (0.6 + 0.8) / 2]])
    np.testing.assert_allclose(f.score_matrix(a, (1, 2), reading="key"), [[(0.9 + 0.8) / 2, (0.6 + 0.7) / 2]])
    np.testing.assert_allclose(f.score_matrix(a, (1, 2), reading="head"), [[(0.9 + 0.7) / 2, (0.8 + 0.6) / 2]])


def test_mass_mask_is_the_smallest_set_that_reaches_the_threshold() -> None:
    maps = np.array([[0.05, 0.3], [0.05, 0.1]])
    np.testing.assert_array_equal(f.mass_mask(maps, 0.6), [[False, True], [False, False]])
    np.testing.assert_array_equal(f.mass_mask(maps, 0.7), [[False, True], [False, True]])


def test_chefer_and_gradient_rollout_of_one_layer() -> None:
    a, g = np.array([[[0.5, 0.5], [0.25, 0.75]]]), np.array([[[1.0, 2.0], [-4.0, 0.0]]])
    np.testing.assert_allclose(f.gradient_mean(a, g), [[0.5, 1.0], [-1.0, 0.0]])
    np.testing.assert_allclose(f.gradient_positive(a, g), [[0.5, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(f.chefer([f.gradient_positive(a, g)], (1, 2)), [[1.5, 1.0]])
    np.testing.assert_allclose(f.gradient_rollout([f.gradient_mean(a, g)], (1, 2)), [[1.5 / 2.5, 1 / 2.5]])
    np.testing.assert_allclose(f.head_importance(a, g), [0.5])


def test_codes_decode_to_rows_that_sum_to_one_and_empty_rows_to_nan() -> None:
    decoded = f.decode_codes(np.array([[3, 4], [0, 0]], np.uint8))
    np.testing.assert_allclose(decoded, [[9 / 25, 16 / 25], [np.nan, np.nan]])
    assert decoded.dtype == np.float32


def test_uniform_distance_is_the_known_reference() -> None:
    """The dashed line of the published figures: 116.5 px for 14 x 14 patches of 16 px."""
    assert f.uniform_distance((14, 14), (16, 16)) == pytest.approx(116.49, abs=0.01)
    uniform = np.full((12, 12), 1 / 12)
    assert f.distance_renormalized(uniform, (3, 4), (8, 16)) == pytest.approx(f.uniform_distance((3, 4), (8, 16)))


# -- slow references in plain loops -----------------------------------------------------------------------------------


def slow_rollout(a: np.ndarray, start: int, residual: float) -> np.ndarray:
    product = np.eye(a.shape[-1])
    for layer in a[start:]:
        m = residual * layer.mean(0) + (1 - residual) * np.eye(a.shape[-1])
        product = (m / m.sum(1, keepdims=True)) @ product
    return product


@pytest.mark.parametrize(("start", "residual"), [(0, 0.5), (1, 0.5), (0, 0.9), (2, 1.0)])
def test_rollout_equals_the_product_of_whole_matrices(start: int, residual: float) -> None:
    a = attention(4, 3, 8, 8)
    product = slow_rollout(a, start, residual)
    for readout in (0, 5):
        got = f.rollout(list(a), (2, 3), readout, residual=residual, start_layer=start)
        np.testing.assert_allclose(got.ravel(), product[readout, 2:], rtol=1e-12)
    mean = f.rollout(list(a), (2, 3), range(2, 8), residual=residual, start_layer=start)
    np.testing.assert_allclose(mean.ravel(), product[2:, 2:].mean(0), rtol=1e-12)
    weights = attention(8)
    pooled = f.rollout(list(a), (2, 3), weights, residual=residual, start_layer=start)
    np.testing.assert_allclose(pooled.ravel(), (weights @ product)[2:], rtol=1e-12)


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_discarding_rollouts_equal_whole_matrices(fusion: Any) -> None:
    a, n, k = attention(3, 2, 7, 7), 7, int(49 * 0.6)
    seed, explain = np.eye(n), np.eye(n)
    for layer in a:
        fused = getattr(layer, fusion)(0)
        kept = np.where(fused >= np.sort(fused.ravel())[k - 1], fused, 0)
        m = (kept + np.eye(n)) / 2
        seed = m / m.sum(1, keepdims=True) @ seed
        flat = fused.ravel().copy()
        smallest = np.argsort(flat, kind="stable")[:k]
        flat[smallest[smallest != 0]] = 0
        m = (flat.reshape(n, n) + np.eye(n)) / 2
        explain = m / m.sum(-1) @ explain
    got = f.rollout_discard(list(a), (2, 3), fusion=fusion, discard=0.6)
    np.testing.assert_allclose(got.ravel(), seed[0, 1:], rtol=1e-12)
    got = f.rollout_vit_explain(list(a), (2, 3), fusion=fusion, discard=0.6)
    np.testing.assert_allclose(got.ravel(), explain[0, 1:] / explain[0, 1:].max(), rtol=1e-12)


@given(grids, st.integers(0, 2), seeds)
@settings(max_examples=30, deadline=None)
def test_scalars_equal_plain_loops(grid: tuple[int, int], prefix: int, seed: int) -> None:
    """Distance, masses, entropies, received attention and deviations against one loop per entry."""
    (rows, columns), n = grid, prefix + grid[0] * grid[1]
    a = attention(n, n, seed=seed)
    far, near, there = np.zeros(n), np.zeros(n), np.zeros(n)
    masses = np.zeros(3)
    offsets = np.zeros((2 * rows - 1, 2 * columns - 1))
    for i in range(prefix, n):
        for j in range(prefix, n):
            dy, dx = (j - prefix) // columns - (i - prefix) // columns, (j - prefix) % columns - (i - prefix) % columns
            far[i] += a[i, j] * math.hypot(8 * dy, 16 * dx)
            masses[min(2, max(abs(dy), abs(dx)))] += a[i, j] / (n - prefix)
            offsets[dy + rows - 1, dx + columns - 1] += a[i, j]
            there[i] += a[i, j]
            near[j] += a[i, j] / (n - prefix)
    inside = slice(prefix, None)
    assert f.distance(a, grid, (8, 16)) == pytest.approx(far[inside].mean(), rel=1e-9)
    assert f.distance_renormalized(a, grid, (8, 16)) == pytest.approx((far[inside] / there[inside]).mean(), rel=1e-9)
    got = [f.self_mass(a, grid), f.neighbour_mass(a, grid), f.rest_mass(a, grid)]
    np.testing.assert_allclose(got, masses, atol=1e-12)
    assert sum(got) + f.prefix_mass(a, prefix).sum() == pytest.approx(1)
    np.testing.assert_allclose(f.received_attention(a, grid).ravel(), near[inside], rtol=1e-9)
    np.testing.assert_allclose(f.offset_map(a, grid, form="pooled", renormalized=False), offsets / (n - prefix))
    assert f.offset_map(a, grid, form="pooled").sum() == pytest.approx(1)
    part = a[inside, inside]
    assert f.position_deviation(a, grid) == pytest.approx(part.std(0, ddof=1).mean())
    uniform = np.full((n, n), 1 / (n - prefix))
    np.testing.assert_allclose(f.offset_map(uniform, grid), 1 / (n - prefix), rtol=1e-9)


def test_head_statistics_equal_plain_loops() -> None:
    a = attention(3, 5, 5)
    for i in range(3):
        for j in range(3):
            p, q = a[i], a[j]
            m = (p + q) / 2
            divergence = (p * np.log(p / m) + q * np.log(q / m)).sum(-1).mean() / 2
            assert f.head_similarity(a)[i, j] == pytest.approx(divergence, abs=1e-12)
    assert f.head_deviation(a, (2, 2)) == pytest.approx(a[:, 1:, 1:].std(0, ddof=1).mean())


def test_mutual_information_is_zero_for_equal_and_one_for_private_keys() -> None:
    a = attention(9, 9)
    p = a[1:, 1:] / a[1:, 1:].sum(-1, keepdims=True) / 8
    key = p.sum(0)
    information = (p * np.log(p / (key[None] / 8))).sum()
    expected = information / math.sqrt(math.log(8) * -(key * np.log(key)).sum())
    assert f.normalized_mutual_information(a, (2, 4)) == pytest.approx(expected)
    assert f.normalized_mutual_information(np.eye(9), (3, 3)) == pytest.approx(1)
    assert f.normalized_mutual_information(np.full((9, 9), 1 / 9), (3, 3)) == pytest.approx(0, abs=1e-12)
    assert f.normalized_mutual_information(np.eye(9)[[0] * 9], (3, 3)) == 0

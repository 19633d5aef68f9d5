"""The formulas: worked cases, slow references, properties, and what the authors' own code gives."""

from __future__ import annotations

import math
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attlas.analysis import formulas as f
from attlas.errors import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st

PIXELS = (16, 16)
SHARED = os.environ.get("ATTLAS_SHARED", "")


def attention(*shape: int, seed: int = 0, sharp: float = 2.0) -> np.ndarray:
    """Random rows that sum to 1, float64."""
    scores = np.random.default_rng(seed).normal(size=shape) * sharp
    e = np.exp(scores)
    return e / e.sum(-1, keepdims=True)


grids = st.tuples(st.integers(1, 4), st.integers(1, 4)).filter(lambda g: g[0] * g[1] > 1)
seeds = st.integers(0, 2**16)


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


# -- properties -------------------------------------------------------------------------------------------------------


@given(grids, st.integers(1, 5), seeds)
@settings(max_examples=25, deadline=None)
def test_rollout_rows_stay_distributions(grid: tuple[int, int], layers: int, seed: int) -> None:
    n = grid[0] * grid[1]
    a = attention(layers, 2, n, n, seed=seed)
    got = f.rollout(list(a), grid, 1)
    assert got.sum() == pytest.approx(1)
    assert (got >= 0).all()
    identity = np.broadcast_to(np.eye(n), a.shape)
    np.testing.assert_allclose(f.rollout(list(identity), grid, 1).ravel(), np.eye(n)[1])


@given(grids, st.integers(1, 3), seeds, st.floats(0.1, 8))
@settings(max_examples=40, deadline=None)
def test_entropy_is_bounded_and_obeys_the_chain_rule(
    grid: tuple[int, int], prefix: int, seed: int, sharp: float
) -> None:
    """H = H2(m) + m H_prefix + (1 - m) H_patch in every row, and 0 <= H <= ln N."""
    n = prefix + grid[0] * grid[1]
    a = attention(n, n, seed=seed, sharp=sharp)
    h = f.row_entropy(a)
    assert (h >= -1e-12).all()
    assert (h <= math.log(n) + 1e-12).all()
    assert f.entropy(a) == pytest.approx(h.mean())
    for i in range(n):
        m = a[i, :prefix].sum()
        two = -m * math.log(m) - (1 - m) * math.log1p(-m)
        first = a[i, :prefix] / m
        of_prefix = -(first * np.log(first)).sum()
        of_patch = f.entropy_patch(a, prefix, rows=[i])
        assert h[i] == pytest.approx(two + m * of_prefix + (1 - m) * of_patch, abs=1e-9)


@given(st.integers(2, 5), seeds)
@settings(max_examples=20, deadline=None)
def test_unit_square_is_renormalized_distance_in_grid_widths(edge: int, seed: int) -> None:
    a = attention(2, edge**2 + 1, edge**2 + 1, seed=seed)
    pixels = f.distance_renormalized(a, (edge, edge), PIXELS)
    np.testing.assert_allclose(f.distance_unit_square(a, (edge, edge)) * 16 * (edge - 1), pixels)


@given(grids, seeds)
@settings(max_examples=20, deadline=None)
def test_mirroring_the_grid_mirrors_maps_and_keeps_scalars(grid: tuple[int, int], seed: int) -> None:
    n = grid[0] * grid[1] + 1
    a = attention(2, 3, n, n, seed=seed)
    order = np.concatenate([[0], 1 + np.arange(n - 1).reshape(grid)[:, ::-1].ravel()])
    mirrored = a[..., order, :][..., order]
    np.testing.assert_allclose(f.rollout(list(mirrored), grid), f.rollout(list(a), grid)[:, ::-1], rtol=1e-9)
    np.testing.assert_allclose(f.offset_map(mirrored, grid), f.offset_map(a, grid)[..., ::-1], atol=1e-12)
    for name in ("distance_renormalized", "distance"):
        got = [getattr(f, name)(x, grid, PIXELS) for x in (a, mirrored)]
        np.testing.assert_allclose(*got, rtol=1e-9)
    np.testing.assert_allclose(f.entropy(mirrored), f.entropy(a), rtol=1e-9)


def test_permuting_heads_permutes_their_numbers_and_keeps_the_rollout() -> None:
    a = attention(3, 4, 10, 10)
    order = [2, 0, 3, 1]
    np.testing.assert_array_equal(f.entropy(a[:, order]), f.entropy(a)[:, order])
    np.testing.assert_allclose(f.rollout(list(a[:, order]), (3, 3)), f.rollout(list(a), (3, 3)), rtol=1e-12)


def test_an_image_alone_has_the_numbers_it_has_in_a_batch() -> None:
    a = attention(5, 3, 2, 10, 10).astype(np.float32)
    alone = f.rollout(list(np.moveaxis(a[2:3], 1, 0)), (3, 3))
    np.testing.assert_array_equal(f.rollout(list(np.moveaxis(a, 1, 0)), (3, 3))[2:3], alone)
    np.testing.assert_array_equal(f.entropy(a)[2:3], f.entropy(a[2:3]))


def test_head_importance_and_relevance_follow_autograd() -> None:
    """In a small attention network only the readout row feeds the logit, so the last layer's other rows get 0."""
    torch = pytest.importorskip("torch")
    maps = [torch.tensor(attention(2, 5, 5, seed=s), requires_grad=True) for s in (1, 2, 3)]
    x = torch.tensor(np.random.default_rng(0).normal(size=(5, 4)))
    for a in maps:
        x = x + torch.tanh(torch.cat([a[h] @ x[:, 2 * h : 2 * h + 2] for h in range(2)], 1))
    gradients = torch.autograd.grad(x[0].sum(), maps)
    assert not gradients[-1][:, 1:].any()
    relevance = np.eye(5)
    for a, g in zip(maps, gradients, strict=True):
        relevance = relevance + (a * g).clamp(min=0).mean(0).detach().numpy() @ relevance
    positive = [f.gradient_positive(a.detach().numpy(), g.numpy()) for a, g in zip(maps, gradients, strict=True)]
    np.testing.assert_allclose(f.chefer(positive, (2, 2)).ravel(), relevance[0, 1:], rtol=1e-12)
    # Scaling one head of a layer by 1 + e changes the logit by e times the sum of A x G.
    expected = [abs(float((a * g)[1].sum().detach())) for a, g in zip(maps, gradients, strict=True)]
    got = [f.head_importance(a.detach(), g)[1] for a, g in zip(maps, gradients, strict=True)]
    np.testing.assert_allclose([float(v) for v in got], expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_arrays_give_numpys_numbers(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    a = attention(2, 3, 10, 10).astype(dtype)
    t, grid = torch.from_numpy(a), (3, 3)
    pairs = [
        (fn(a), fn(t))
        for fn in (
            lambda x: f.entropy_patch(x, 1), lambda x: f.distance_renormalized(x, grid, PIXELS),
            lambda x: f.offset_map(x, grid), lambda x: f.score_matrix(x, grid, reading="head"),
            lambda x: f.rollout(list(x), grid), lambda x: f.rollout_vit_explain(list(x), grid),
            lambda x: f.rollout_discard(list(x), grid, fusion="max", discard=0.5),
            lambda x: f.mass_mask(f.readout_map(x, grid)), lambda x: f.normalized_mutual_information(x, grid),
            lambda x: f.head_similarity(x), lambda x: f.sink_share(x, grid, times=1.5), lambda x: f.fuse(x, "min"),
            lambda x: f.class_token_weight(x, grid), lambda x: f.query_map(x, grid, 1, 2),
            lambda x: f.effective_tokens(x), lambda x: f.head_deviation(x, grid),
        )
    ]  # fmt: skip
    for plain, other in pairs:
        assert type(other).__module__ == "torch"
        np.testing.assert_allclose(plain, other.numpy(), rtol=2e-5, atol=1e-7)


def test_float16_is_summed_in_float32() -> None:
    a = attention(1, 300, 300).astype(np.float16)
    assert f.entropy(a).dtype == np.float32
    np.testing.assert_allclose(f.entropy(a), f.entropy(a.astype(np.float64)), rtol=1e-6)


def test_rows_without_patch_mass_are_left_out_and_counted() -> None:
    a = attention(5, 5)
    a[2] = np.eye(5)[0]
    assert f.rows_without_patch_mass(a, 1) == 1
    d = np.asarray(f.patch_distances((2, 2), PIXELS))
    expected = np.mean([(a[i, 1:] * d[i - 1]).sum() / a[i, 1:].sum() for i in (1, 3, 4)])
    assert f.distance_renormalized(a, (2, 2), PIXELS) == pytest.approx(expected)
    nothing = np.eye(5)[[0] * 5]
    assert np.isnan(f.distance_renormalized(nothing, (2, 2), PIXELS))
    assert np.isnan(f.entropy_patch(nothing, 1))


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_what_is_no_distribution_has_no_entropy() -> None:
    a = attention(2, 5, 5)
    for refuse in (f.entropy, f.effective_tokens, f.head_similarity):
        with pytest.raises(UsageError, match="mixed"):
            refuse(a, kind="mixed")
    with pytest.raises(UsageError, match="mixed"):
        f.entropy_patch(a, 1, kind="mixed")


def test_codes_are_refused_where_single_values_decide() -> None:
    codes = np.ones((1, 5, 5), np.uint8)
    with pytest.raises(UsageError, match="uint8"):
        f.rollout_discard([codes], (2, 2), fusion="mean", discard=0.5)
    with pytest.raises(UsageError, match="uint8"):
        f.rollout_vit_explain([codes], (2, 2))
    with pytest.raises(UsageError, match="uint8"):
        f.chefer([codes[0]], (2, 2))
    with pytest.raises(UsageError, match="uint8"):
        f.gradient_rollout([codes[0]], (2, 2))
    with pytest.raises(UsageError, match="uint8"):
        f.mass_mask(codes[..., 0, 1:].reshape(1, 2, 2))
    with pytest.raises(UsageError, match="decode"):
        f.head_importance(codes, codes)
    with pytest.raises(UsageError, match="decode"):
        f.entropy(codes)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda a: f.rollout([a], (3, 3)), "does not fit"),
        (lambda a: f.rollout([a], (2, 2), 7), "readout rows"),
        (lambda a: f.rollout([a], (2, 2), residual=0), "residual"),
        (lambda a: f.rollout([a], (2, 2), start_layer=1), "start_layer"),
        (lambda a: f.discard_smallest(a, 1.0), "discard ratio"),
        (lambda a: f.score_matrix(a, (2, 2), reading="row"), "reading"),
        (lambda a: f.query_map(a, (2, 2), 2, 0), "does not lie"),
        (lambda a: f.readout_rows(("register",), (2, 2), "class"), "no class token"),
        (lambda a: f.position_similarity(a[0], (2, 2), position="rotary"), "rotary"),
        (lambda a: f.entropy([[1.0]]), "no array"),
    ],
)
def test_wrong_requests_say_what_was_found(call: Any, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        call(attention(2, 5, 5))


def test_readout_rows_are_found_by_kind_not_by_place() -> None:
    """Some models place registers before the class token, and many have no class token at all."""
    assert f.readout_rows(("register", "class"), (2, 2), "class") == (1,)
    assert f.readout_rows(("class", "distillation"), (2, 2), "distilled") == (0, 1)
    assert f.readout_rows(("register",), (1, 2), "mean") == (1, 2)


# -- what the authors' code gives -------------------------------------------------------------------------------------


@cache
def golden() -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Golden arrays, and attention, gradient (image, layer, head, query, key) and logits of their images."""
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    from PIL import Image
    from safetensors.torch import load_file

    set_fused = timm.layers.use_fused_attn()
    timm.layers.set_fused_attn(False)
    try:
        model = timm.create_model("deit_tiny_patch16_224", pretrained=False)
    finally:
        timm.layers.set_fused_attn(bool(set_fused))
    model.load_state_dict(load_file(f"{SHARED}/models/deit_tiny_patch16_224.safetensors"))
    model.eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    with np.load(f"{SHARED}/golden/deit_tiny.npz") as file:
        data = dict(file)
    pictures = [Image.open(f"{SHARED}/images/{name}").convert("RGB") for name in data["files"]]
    maps: list[Any] = []
    for block in model.blocks:
        block.attn.attn_drop.register_forward_hook(lambda module, given, out: maps.append(out))
    logits = model(torch.stack([transform(p) for p in pictures]))
    gradients = torch.autograd.grad(logits[torch.arange(len(logits)), logits.argmax(-1)].sum(), maps)
    a, g = (torch.stack(list(x), 1).detach().numpy() for x in (maps, gradients))
    return data, a, g, logits.detach().numpy()


GOLDEN = {
    "entropy": lambda a, g: f.entropy(a),
    "distance_raghu_px": lambda a, g: f.distance(a, (14, 14), PIXELS),
    "distance_renormalized_px": lambda a, g: f.distance_renormalized(a, (14, 14), PIXELS),
    "distance_unit_square": lambda a, g: f.distance_unit_square(a, (14, 14)),
    "abnar_start0": lambda a, g: f.rollout(list(np.moveaxis(a, 1, 0)), (14, 14)),
    "abnar_start1": lambda a, g: f.rollout(list(np.moveaxis(a, 1, 0)), (14, 14), start_layer=1),
    "chefer": lambda a, g: f.chefer(list(np.moveaxis(f.gradient_positive(a, g), 1, 0)), (14, 14)),
    "head_importance": lambda a, g: f.head_importance(a, g),
    "dino_heads": lambda a, g: f.readout_map(a[:, -1], (14, 14)),
} | {
    f"vit_explain_{fusion}_{discard}": lambda a, g, fusion=fusion, discard=discard: f.rollout_vit_explain(
        list(np.moveaxis(a, 1, 0)), (14, 14), fusion=fusion, discard=discard
    )
    for fusion, discard in [("mean", 0.0), ("mean", 0.9), ("max", 0.9), ("min", 0.9)]
}


@pytest.mark.skipif(
    not Path(SHARED, "golden", "deit_tiny.npz").is_file() or not SHARED,
    reason="ATTLAS_SHARED names no folder with golden/deit_tiny.npz",
)
@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_equals_what_the_authors_code_gives(name: str) -> None:
    data, a, g, logits = golden()
    np.testing.assert_array_equal(logits.argmax(-1), data["target"])
    got, expected = GOLDEN[name](a, g), data[name]
    assert got.shape == expected.shape
    # The formulas agree far better (above). Both sides rest on a float32 network, whose rounding differs between
    # processors by 7e-6 of these maxima.
    worst = np.sort([np.abs(one - its).max() / np.abs(expected).max() for one, its in zip(got, expected, strict=True)])
    if name.endswith("_0.9"):
        # Such a difference may carry an entry of the attention over the edge of what is discarded, which moves the map
        # of its image by up to 1.3e-3: in some of the images.
        assert worst[2] <= 2e-5
        assert worst[-1] <= 5e-3
    else:
        assert worst[-1] <= 2e-5

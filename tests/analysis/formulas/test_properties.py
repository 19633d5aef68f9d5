"""What holds for any attention, and for arrays of any library."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from attlas.analysis import formulas as f
from attlas.errors import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st
from support_formulas import PIXELS, attention, grids, seeds

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


def network(torch: Any) -> tuple[list[Any], list[Any], list[Any], Any]:
    """Scores, maps and context vectors of three layers of two heads, and the logits of three classes."""
    random = np.random.default_rng(2)
    scores = [torch.tensor(random.normal(size=(1, 2, 5, 5)) * 2, requires_grad=True) for _ in range(3)]
    maps, contexts = [], []
    x = torch.tensor(random.normal(size=(1, 5, 4)))
    for s in scores:
        maps.append(torch.softmax(s, -1))
        contexts.append(maps[-1] @ x.reshape(1, 5, 2, 2).transpose(1, 2))
        x = x + torch.tanh(contexts[-1].transpose(1, 2).reshape(1, 5, 4))
    return scores, maps, contexts, x[:, 0] @ torch.tensor(random.normal(size=(4, 3)))


def test_importance_of_the_loss_and_of_michels_code() -> None:
    """That code (pmichel31415/are-16-heads-really-better-than-1): context times its gradient, |.|, over queries."""
    torch = pytest.importorskip("torch")
    _, maps, contexts, logits = network(torch)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([1]))
    found = torch.autograd.grad(loss, [*maps, *contexts])
    for a, g, context, grad in zip(maps, found[:3], contexts, found[3:], strict=True):
        dot = torch.einsum("bhli,bhli->bhl", [grad, context])
        got = f.head_importance(a[0].detach(), g[0], form="michel")
        np.testing.assert_allclose(got.numpy(), dot.abs().sum(-1)[0].detach().numpy(), rtol=1e-12)
        # Eq. 2: the head's whole output times the gradient by it.
        whole = (grad * context).sum((-2, -1)).abs()[0].detach().numpy()
        np.testing.assert_allclose(f.head_importance(a[0].detach(), g[0], form="loss").numpy(), whole, rtol=1e-12)


@pytest.mark.parametrize("discard", [0.0, 0.5, 0.9])
def test_gradient_rollout_of_vit_explain_is_its_code(discard: float) -> None:
    """Its grad_rollout, with the gradients by the scores that its hooks collect from the last block to the first."""
    torch = pytest.importorskip("torch")
    scores, maps, _, logits = network(torch)
    by_maps = torch.autograd.grad(logits[0, 1], maps, retain_graph=True)
    collected = torch.autograd.grad(logits[0, 1], scores)[::-1]
    result = torch.eye(5, dtype=torch.float64)
    with torch.no_grad():
        for attention_map, weights in zip(maps, collected, strict=True):
            fused = (attention_map * weights).mean(axis=1)
            fused[fused < 0] = 0
            flat = fused.view(1, -1)
            _, indices = flat.topk(int(flat.size(-1) * discard), -1, False)
            flat[0, indices[indices != 0]] = 0
            a = (fused + torch.eye(5)) / 2
            result = (a / a.sum(dim=-1)) @ result
    mask = result[0, 0, 1:].reshape(2, 2).numpy()
    a, g = ([x[0].detach() for x in given] for given in (maps, by_maps))
    got = f.gradient_rollout_vit_explain(a, g, (2, 2), discard=discard)
    np.testing.assert_allclose(got.numpy(), mask / mask.max(), rtol=1e-9)


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

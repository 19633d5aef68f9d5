"""Heads silenced one after another, against PyTorch with the head's columns of the output projection set to 0."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import attlas
import numpy as np
import onnxruntime
import pytest
from attlas.analysis.statistics.inference import interval
from attlas.engine.runtime.pictures import crop_of
from attlas.engine.store.store import Store
from attlas.errors import AttlasError, UsageError
from support import make_images

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
gradients = pytest.importorskip("support_gradients")
export = pytest.importorskip("attlas.exporter.trace.export")
judging = pytest.importorskip("attlas.analysis.judge")
heads = pytest.importorskip("attlas.analysis.judge.heads")
writing = pytest.importorskip("attlas.analysis.statistics.writing").writing


class Silent(NamedTuple):
    built: Any
    graph: Path
    images: Path
    store: Path


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Silent:
    """A small deit whose heads can be silenced, and a store of 5 pictures that the same graph made."""
    place = tmp_path_factory.mktemp("heads")
    built = gradients.make()
    export.export_model(built, place / "g.onnx", ablate=True)
    make_images(place / "images", 5)
    attlas.run(place / "g.onnx", place / "images", place / "s.zarr")
    return Silent(built, place / "g.onnx", place / "images", place / "s.zarr")


def without(built: Any, pixels: np.ndarray, layer: int, head: int, fill: np.ndarray) -> np.ndarray:
    """Logits of the torch model with one head's output replaced by `fill` (channel)."""
    projection, size = built.module.blocks[layer].attn.proj, len(fill)
    columns = slice(head * size, (head + 1) * size)
    weight, bias = projection.weight.detach().clone(), projection.bias.detach().clone()
    with torch.no_grad():
        projection.bias += projection.weight[:, columns] @ torch.from_numpy(fill).float()
        projection.weight[:, columns] = 0
        found = built.module(normalised(built, pixels)).numpy()
        projection.weight[:], projection.bias[:] = weight, bias
    return np.asarray(found)


def normalised(built: Any, pixels: np.ndarray) -> Any:
    mean, std = (np.array(values, np.float32) for values in (built.recipe.mean, built.recipe.std))
    return torch.from_numpy(np.moveaxis((pixels.astype(np.float32) / 255 - mean) / std, -1, 1).copy())


def written(built: Any, pixels: np.ndarray) -> np.ndarray:
    """What each head writes, mean over tokens and images: (layer, head, channel)."""
    seen: list[Any] = []
    blocks = built.module.blocks
    hooks = [b.attn.proj.register_forward_pre_hook(lambda _m, given: seen.append(given[0])) for b in blocks]
    with torch.no_grad():
        built.module(normalised(built, pixels))
    for hook in hooks:
        hook.remove()
    return np.stack([x.double().mean((0, 1)).numpy().reshape(blocks[0].attn.num_heads, -1) for x in seen])


@pytest.mark.parametrize("silence", ["zero", "mean"])
def test_losses_are_those_of_the_model_without_the_head(silent: Silent, tmp_path: Path, silence: str) -> None:
    path = Path(shutil.copytree(silent.store, tmp_path / "s.zarr"))
    result = judging.judge_heads(path, silent.graph, silent.images, silence=silence)
    store = Store(path)
    rows, spec = store.read(f"judged_heads.{silence}"), store.spec
    pixels = np.stack([crop_of(silent.images / str(p), spec) for p in store.read("path")])
    whole = store.read("logits").astype(np.float64)
    fill = written(silent.built, pixels)
    at, best = np.arange(5), whole.argmax(-1)
    for layer, head in np.ndindex(2, 3):
        own = fill[layer, head] if silence == "mean" else np.zeros_like(fill[layer, head])
        less = without(silent.built, pixels, layer, head, own).astype(np.float64)
        np.testing.assert_allclose(rows[:, layer, head, 0], whole[at, best] - less[at, best], atol=1e-4)
        p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (whole, less))
        np.testing.assert_allclose(rows[:, layer, head, 1], (p * np.log(p / q)).sum(-1), atol=1e-4)
    np.testing.assert_allclose(result.loss[..., :2], rows[..., :2].astype(float).mean(0), rtol=1e-6)
    assert np.abs(rows[..., 0]).max() > 1e-3
    assert result.rank is None  # no gradients were kept
    assert result.notes == ("effective n = 5 images: with fewer than 20, intervals are wide and rough",)
    bounds = np.stack(interval(rows.astype(float), within=((-np.inf, 0, -1), (np.inf, np.inf, 1))))
    np.testing.assert_allclose(result.bounds, bounds, rtol=1e-6)
    again = judging.judge_heads(path, silent.graph, silent.images, silence=silence)
    assert again.forwards == 0


def test_such_a_graph_runs_everywhere_with_every_head(silent: Silent) -> None:
    """A run, a session and plain onnxruntime with ones; the run keeps what heads write."""
    store = Store(silent.store)
    pixels = np.stack([crop_of(silent.images / str(p), store.spec) for p in store.read("path")])
    with torch.no_grad():
        wanted = silent.built.module(normalised(silent.built, pixels)).numpy()
    np.testing.assert_allclose(store.read("logits"), wanted, atol=1e-4)
    np.testing.assert_allclose(attlas.Session(silent.graph)(pixels)["logits"], wanted, atol=1e-4)
    given = {"image": pixels, "head_mask": np.ones((2, 3), np.float32), "head_fill": np.ones((2, 3, 16), np.float32)}
    session = onnxruntime.InferenceSession(str(silent.graph), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(["logits"], given)[0], wanted, atol=1e-4)
    np.testing.assert_allclose(store.read("head_output").mean(0), written(silent.built, pixels), atol=1e-5)


def test_accuracy_is_of_labelled_images_alone() -> None:
    whole, less = np.eye(3)[[0, 1, 2]], np.eye(3)[[1, 1, 0]]
    found = heads.losses(whole, less, np.array([0, 1, -1]))
    np.testing.assert_array_equal(found[:, 2], [1, 0, np.nan])
    np.testing.assert_array_equal(found[:, 0], [1, 0, 1])


def test_rank_correlation_is_spearman_s() -> None:
    random = np.random.default_rng(0)
    importance = np.abs(random.normal(size=(40, 2, 3))) * np.arange(1, 7).reshape(2, 3)
    rows = np.stack([importance, -importance, np.full_like(importance, np.nan)], axis=-1)
    whole, bounds = heads.rank_correlation(importance, rows)
    np.testing.assert_allclose(whole[:2], [1, -1])
    np.testing.assert_allclose(bounds[:, 0], [1, 1])
    assert np.isnan(whole[2])
    assert np.isnan(bounds[:, 2]).all()
    noisy = rows[..., :1] + 3 * random.normal(size=(40, 2, 3, 1))
    from scipy.stats import spearmanr

    one, edges = heads.rank_correlation(importance, noisy)
    assert one[0] == pytest.approx(spearmanr(importance.mean(0).ravel(), noisy.mean(0).ravel()).statistic)
    assert edges[0, 0] <= one[0] <= edges[1, 0]


def test_refuses_what_cannot_be_silenced(silent: Silent, tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    attlas.run(tiny_graph, pictures, tmp_path / "s.zarr", limit=3)
    with pytest.raises(UsageError, match="attlas export --ablate"):
        judging.judge_heads(tmp_path / "s.zarr", tiny_graph, pictures)
    with pytest.raises(UsageError, match="there are zero, mean"):
        judging.judge_heads(silent.store, silent.graph, silent.images, silence="loud")
    with writing(silent.store), ThreadPoolExecutor(1) as other:
        judged = other.submit(judging.judge_heads, silent.store, silent.graph, silent.images)
        with pytest.raises(AttlasError, match="another analysis or judgement is writing it"):
            judged.result()
    with pytest.raises(UsageError, match="--ablate: not with --gradients"):
        export.export_model(silent.built, tmp_path / "g.onnx", ablate=True, gradients=True)
    with pytest.raises(UsageError, match="--ablate: not with --layers"):
        export.export_model(silent.built, tmp_path / "g.onnx", ablate=True, layers=[0])
    assert not list(tmp_path.glob("g*"))

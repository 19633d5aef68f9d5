"""Gradients in a store: what a run derives, and the maps that an analysis makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("timm")


from attlas.analysis import formulas
from attlas.analysis.dataset import open as attlas_open
from attlas.analysis.formulas import rollouts
from attlas.analysis.statistics import analyze
from attlas.engine.runner import run as run_images
from attlas.engine.runtime.pictures import crop_of
from attlas.engine.runtime.session import Session
from attlas.engine.store.store import Store
from attlas.errors import AttlasError, UsageError
from attlas.exporter import export
from attlas.exporter.libraries.build import build
from attlas.exporter.taps.pictures import pictures as synthetic
from attlas.exporter.trace.parity import relative_difference
from support import make_picture
from support_gradients import DEIT, derive, run

# A run ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine pictures in three folders named like classes, and one file that is no picture."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(9):
        place = folder / ("tench", "n01514859", "great_white_shark")[i % 3]
        place.mkdir(exist_ok=True)
        make_picture(i).save(place / f"{i}.png")
    (folder / "tench" / "x.png").write_bytes(b"no picture")
    return folder


ALL = ("attention", "gradient", "gradient_mean", "gradient_positive")


def test_run_stores_gradients_and_both_products_as_float32(exported: Any, photos: Path, tmp_path: Path) -> None:
    """Equal to autograd and to the formulas; the class of each image stands beside them, fill where there is none."""
    built, result = exported
    run_images(result.path, photos, tmp_path / "s.zarr", keep=ALL, batch_size=2)
    store = Store(tmp_path / "s.zarr")
    valid = store.read("valid").astype(bool)
    assert valid.sum() == 9
    crops = store.read("pixels")[np.argsort(store.read("sample"))][valid]
    expected = derive(built).run(crops, np.full(9, -1))
    logits, target = store.read("logits"), store.read("target")
    np.testing.assert_array_equal(target[valid], logits[valid].argmax(-1))
    assert target[~valid].tolist() == [-1]
    for layer in result.spec.layers:
        a, g = expected[f"attention.{layer}"], expected[f"gradient.{layer}"]
        wanted = {
            "gradient": g, "gradient_mean": rollouts.gradient_mean(a, g),
            "gradient_positive": rollouts.gradient_positive(a, g),
        }  # fmt: skip
        for name, values in wanted.items():
            stored = store.read(name)
            assert stored.dtype == np.float32
            assert np.isnan(stored[~valid]).all()
            assert np.abs(stored[valid, layer] - values).max() <= 1e-4 * np.abs(values).max()


def test_run_derives_the_label_the_folders_name(exported: Any, photos: Path, tmp_path: Path) -> None:
    """Folders are read as class names or ids, as for top-1."""
    _, result = exported
    run_images(result.path, photos, tmp_path / "s.zarr", keep=["gradient_positive"], target="label")
    store = Store(tmp_path / "s.zarr")
    valid = store.read("valid").astype(bool)
    np.testing.assert_array_equal(store.read("target")[valid], store.read("label_class")[valid])
    assert set(store.read("target")[valid].tolist()) == {0, 2, 8}
    assert "target" in attlas_open(tmp_path / "s.zarr").coords


def test_run_derives_one_class_for_all_images(exported: Any, photos: Path, tmp_path: Path) -> None:
    """A number is a class; the layers that are not kept stay empty."""
    built, result = exported
    run_images(result.path, photos, tmp_path / "s.zarr", keep=["gradient"], target="7", layers=[1])
    store = Store(tmp_path / "s.zarr")
    valid = store.read("valid").astype(bool)
    crops = store.read("pixels")[np.argsort(store.read("sample"))][valid]
    expected = derive(built).run(crops, np.full(9, 7))["gradient.1"]
    assert set(store.read("target")[valid].tolist()) == {7}
    assert np.isnan(store.read("gradient")[:, 0]).all()
    assert np.abs(store.read("gradient")[valid, 1] - expected).max() <= 1e-4 * np.abs(expected).max()


def test_another_target_is_another_run(exported: Any, photos: Path, tmp_path: Path) -> None:
    """A store is resumed for its own classes alone."""
    _, result = exported
    run_images(result.path, photos, tmp_path / "s.zarr", keep=["gradient_mean"])
    with pytest.raises(AttlasError, match="target predicted there, 7 now"):
        run_images(result.path, photos, tmp_path / "s.zarr", keep=["gradient_mean"], target="7")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"keep": ["gradient"], "target": "label"}, "the labels of 50 of 50 images name no class"),
        ({"keep": ["gradient"], "target": "1000"}, "the model has classes 0 to 999"),
        ({"keep": ["gradient"], "target": "best"}, "choose predicted, label, or a class's number"),
        ({"keep": ["attention"], "target": "7"}, "--keep gradient, gradient_mean, gradient_positive keeps them"),
    ],
)
def test_wrong_target_is_refused_before_the_first_image(
    exported: Any, pictures: Path, tmp_path: Path, choices: dict[str, Any], message: str
) -> None:
    """One line, and no store."""
    with pytest.raises(UsageError, match=message):
        run_images(exported[1].path, pictures, tmp_path / "s.zarr", **choices)
    assert list(tmp_path.iterdir()) == []


def test_graph_with_gradients_runs_as_one_without(
    exported: Any, export_once: Any, photos: Path, tmp_path: Path
) -> None:
    """Where no gradient is kept no class is asked for, and the attention is the same."""
    built, result = exported
    plain = export_once("plain", built)
    for name, graph in (("a", result.path), ("b", plain.path)):
        run_images(graph, photos, tmp_path / f"{name}.zarr")
    a, b = (Store(tmp_path / f"{name}.zarr").read("attention") for name in "ab")
    # float16 rounds the last bits of float32 to either side.
    np.testing.assert_allclose(a, b, rtol=1e-3)


@pytest.mark.parametrize("device", [None, "cpu"])
def test_session_takes_classes(exported: Any, device: str | None) -> None:
    """One for all images or one each, on the host and by the way of an accelerator."""
    built, result = exported
    session = Session(result.path, provider="cpu", device=device)
    images = synthetic(3, result.spec.image_size)
    expected = derive(built).run(images, np.array([4, -1, 9]))
    found = session(list(images), target=[4, -1, 9])["gradient"]
    assert found.shape == (3, 2, 3, 17, 17)
    assert np.abs(found[:, 0] - expected["gradient.0"]).max() <= 1e-4 * np.abs(expected["gradient.0"]).max()
    np.testing.assert_array_equal(session(list(images), target=9)["gradient"][2], found[2])


@pytest.mark.parametrize("target", [1000, -2, [1, 2]])
def test_session_refuses_classes_that_there_are_not(exported: Any, target: Any) -> None:
    """The graph would give zeros without a word."""
    session = Session(exported[1].path, provider="cpu")
    with pytest.raises(UsageError, match="from 0 to 999"):
        session(list(synthetic(3, exported[1].spec.image_size)), target=target)


def test_session_without_gradients_takes_no_class(tiny_graph: Path) -> None:
    """A class that would change nothing is refused."""
    with pytest.raises(UsageError, match="gives no gradients"):
        Session(tiny_graph, provider="cpu")([np.zeros((16, 24, 3), np.uint8)], target=1)


# An analysis ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [("attention", "gradient"), ("gradient_mean", "gradient_positive")])
def test_analysis_gives_the_published_maps(exported: Any, photos: Path, tmp_path: Path, keep: tuple[str, ...]) -> None:
    """From attention and gradient, or from their products alone; an unreadable image has none."""
    built, result = exported
    run_images(result.path, photos, tmp_path / "s.zarr", keep=keep, store_dtype="float32", batch_size=2)
    both = keep[0] == "attention"
    names = ["gradient_rollout", "chefer", *(["head_importance", "gradient_rollout_vit_explain"] if both else [])]
    analyzed = analyze(tmp_path / "s.zarr", names)
    assert set(analyzed.made) == set(names)
    store = Store(tmp_path / "s.zarr")
    valid = store.read("valid").astype(bool)
    crops = store.read("pixels")[np.argsort(store.read("sample"))][valid]
    values = derive(built).run(crops, np.full(9, -1))
    layers = [(values[f"attention.{i}"], values[f"gradient.{i}"]) for i in result.spec.layers]
    wanted = {
        "gradient_rollout": rollouts.gradient_rollout([rollouts.gradient_mean(a, g) for a, g in layers], (4, 4)),
        "chefer": rollouts.chefer([rollouts.gradient_positive(a, g) for a, g in layers], (4, 4)),
        "head_importance": np.stack([formulas.head_importance(a, g) for a, g in layers], axis=1),
        "gradient_rollout_vit_explain": rollouts.gradient_rollout_vit_explain(*zip(*layers, strict=True), (4, 4)),
    }
    for name in names:
        stored = store.read(name)
        assert np.isnan(stored[~valid]).all()
        assert np.abs(stored[valid] - wanted[name]).max() <= 1e-4 * np.abs(wanted[name]).max()
        assert np.abs(store.read(f"{name}_mean") - wanted[name].mean(0)).max() <= 1e-4 * np.abs(wanted[name]).max()


def test_analysis_says_what_the_run_would_have_to_keep(exported: Any, photos: Path, tmp_path: Path) -> None:
    """Without gradients, or without all layers, in one line."""
    _, result = exported
    run_images(result.path, photos, tmp_path / "a.zarr", keep=["gradient_mean"])
    with pytest.raises(AttlasError, match="chefer needs gradient_positive, or attention and gradient"):
        analyze(tmp_path / "a.zarr", ["chefer"])
    run_images(result.path, photos, tmp_path / "l.zarr", keep=["attention", "gradient"])
    with pytest.raises(AttlasError, match=r"gives gradients of the logit; a graph of .* --loss-gradients"):
        analyze(tmp_path / "l.zarr", ["head_importance_michel"])
    before = Store(tmp_path / "a.zarr").names
    with pytest.raises(AttlasError, match="head_importance needs attention and gradient"):
        analyze(tmp_path / "a.zarr", ["head_importance"])
    assert Store(tmp_path / "a.zarr").names == before
    run_images(result.path, photos, tmp_path / "b.zarr", keep=["gradient_positive"], layers=[0])
    with pytest.raises(AttlasError, match="chefer follows all 2 layers"):
        analyze(tmp_path / "b.zarr", ["chefer"])


# Real weights and images ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_gradients_equal_autograd_and_give_the_published_maps(tmp_path: Path, shared: Path) -> None:
    """deit_tiny on photographs: gradients, Chefer's relevance and the heads' importance."""
    result = export(DEIT, tmp_path / "deit.onnx", checkpoint=shared / "models" / f"{DEIT}.safetensors", gradients=True)
    built = build(DEIT, checkpoint=shared / "models" / f"{DEIT}.safetensors")
    with np.load(shared / "golden" / "deit_tiny.npz") as file:
        golden = dict(file)
    plain = Session(result.path, provider="cpu")
    images = np.stack([crop_of(shared / "images" / str(name), plain.spec) for name in golden["files"]])
    target = np.full(len(images), -1)
    outputs = run(result.path, images, target)
    each = relative_difference(outputs, derive(built).run(images, target), "gradient")
    assert each.max() <= 5e-4
    assert np.median(each) <= 5e-5
    layers = [(outputs[f"attention.{i}"], outputs[f"gradient.{i}"]) for i in result.spec.layers]
    relevance = rollouts.chefer([rollouts.gradient_positive(a, g) for a, g in layers], (14, 14))
    importance = np.stack([formulas.head_importance(a, g) for a, g in layers], axis=1)
    for got, expected in ((relevance, golden["chefer"]), (importance, golden["head_importance"])):
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()

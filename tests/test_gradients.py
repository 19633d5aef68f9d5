"""Gradients in the graph: against autograd, against finite differences, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from attlas.analysis import formulas  # noqa: E402
from attlas.analysis.dataset import open as attlas_open  # noqa: E402
from attlas.analysis.formulas import rollouts  # noqa: E402
from attlas.analysis.statistics import analyze  # noqa: E402
from attlas.engine.runner import run as run_images  # noqa: E402
from attlas.engine.runtime.session import Session  # noqa: E402
from attlas.engine.store.store import Store  # noqa: E402
from attlas.errors import AttlasError, UsageError  # noqa: E402
from attlas.exporter import GraphSpec, export  # noqa: E402
from attlas.exporter.models.build import Model, build  # noqa: E402
from attlas.exporter.taps.attention import Taps  # noqa: E402
from attlas.exporter.taps.facts import describe  # noqa: E402
from attlas.exporter.taps.gradients import Gradients  # noqa: E402
from attlas.exporter.taps.pictures import pictures as synthetic  # noqa: E402
from attlas.exporter.taps.tapped import Tapped  # noqa: E402
from attlas.exporter.trace.export import ExportResult, export_model  # noqa: E402
from attlas.exporter.trace.parity import compare, example, relative_difference  # noqa: E402
from support import make_picture  # noqa: E402

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 64}
DEIT = "deit_tiny_patch16_224"
# A class token, two read tokens, registers and a mean, relative positions, parallel attention, a difference of maps, a
# stem of convolutions.
KINDS = (
    DEIT, "deit_tiny_distilled_patch16_224", "vit_medium_patch16_reg4_gap_256", "vit_relpos_small_patch16_224",
    "vit_small_patch16_18x2_224", "vit_dpwee_patch16_reg1_gap_256", "vit_tiny_r_s16_p8_224",
)  # fmt: skip


def make(name: str = DEIT, **kwargs: Any) -> Model:
    """A small model with random weights, its queries scaled so that attention is far from uniform."""
    built = build(name, random_init=True, seed=3, model_kwargs={**SMALL, **kwargs})
    for owners in Taps(built.module, name).owners.values():
        for owner in owners:
            owner.scale = owner.scale * 30
    return built


def derive(built: Model, layers: tuple[int, ...] | None = None) -> Gradients:
    taps = Taps(built.module, built.name)
    chosen = tuple(range(taps.depth)) if layers is None else layers
    return Gradients(Tapped(built, taps, describe(built, taps), chosen), built.name)


def run(path: Path, images: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    values = session.run(None, {"image": images, "target": target})
    return dict(zip([o.name for o in session.get_outputs()], values, strict=True))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, ExportResult]:
    """A small deit with gradients, made once for all tests."""
    built = make()
    return built, export_model(built, tmp_path_factory.mktemp("graph") / "deit.onnx", gradients=True)


# What the graph gives ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_gradients_equal_autograd_for_any_batch_and_target(name: str, tmp_path: Path) -> None:
    """Predicted and given classes in one batch of another size than the traced one."""
    built = make(name)
    result = export_model(built, tmp_path / "graph.onnx", gradients=True)
    images = synthetic(5, built.image_size, seed=9)
    target = np.array([-1, 7, 0, 999, -1])
    outputs = run(result.path, images, target)
    expected = derive(built).run(images, target)
    assert list(outputs) == list(expected) == [o.name for o in result.spec.outputs]
    assert relative_difference(outputs, expected, "gradient").max() <= 1e-4
    assert all(np.abs(expected[f"gradient.{layer}"]).max() > 0 for layer in result.spec.layers)


@pytest.mark.parametrize("name", [DEIT, "vit_small_patch16_18x2_224", "vit_dpwee_patch16_reg1_gap_256"])
def test_gradient_is_the_logits_change_when_attention_changes(name: str) -> None:
    """Central differences in float64 of every head's entry in turn: no autograd, no map confused with another."""
    built = make(name)
    derived = derive(built)
    derived.tapped.double()
    image = torch.from_numpy(synthetic(1, built.image_size))
    target = torch.tensor([5])
    with torch.no_grad():
        pixels = derived.tapped.pixels(image).double()
    analytic = _gradients(derived, pixels, target)
    row, column, step = 0, 3, 1e-4
    for layer, found in analytic.items():
        for head in range(found.shape[1]):
            change = [_logit(derived, pixels, 5, layer, head, row, column, sign * step) for sign in (1, -1)]
            numeric = (change[0] - change[1]) / (2 * step)
            assert abs(numeric - found[0, head, row, column]) <= 1e-5 * np.abs(found).max() + 1e-9


def _gradients(derived: Gradients, pixels: Any, target: Any) -> dict[int, np.ndarray]:
    """By the code under test, from pixels in float64: what the uint8 path would round to float32."""
    derived.tapped.pixels = lambda image: pixels.clone()  # type: ignore[method-assign]
    values = dict(zip(derived.names, derived(pixels, target), strict=True))
    return {layer: values[f"gradient.{layer}"].numpy() for layer in derived.tapped.layers}


def _logit(
    derived: Gradients, pixels: Any, target: int, layer: int, head: int, row: int, column: int, step: float
) -> float:
    """One logit with one entry of what multiplies the values moved; heads counted over the block's attentions."""
    owners = derived.tapped.taps.owners[layer]
    each = derived.tapped.examples[f"attention.{layer}"].shape[1] // len(owners)
    owner = owners[head // each]
    # Of a differential pair the first map is moved, by which the difference moves as much.
    place = (head % each) * (2 if hasattr(owner, "_compute_lambda") else 1)

    def move(module: Any, given: Any, out: Any) -> Any:
        out = out.clone()
        out[:, place, row, column] += step
        return out

    hook = owner.get_submodule("attn_drop").register_forward_hook(move)
    with torch.no_grad():
        logits = derived.tapped.model(pixels)
    hook.remove()
    return float(logits[0, target])


def test_minus_one_is_the_predicted_class(exported: Any) -> None:
    """The same gradients as with the class of the largest logit written out."""
    _, result = exported
    images = synthetic(3, result.spec.image_size)
    asked = run(result.path, images, np.full(3, -1))
    given = run(result.path, images, asked["logits"].argmax(-1))
    np.testing.assert_array_equal(asked["gradient.0"], given["gradient.0"])


def test_image_alone_has_the_gradients_it_has_in_a_batch(exported: Any) -> None:
    """The sum over a batch that is derived has each image's own gradient."""
    _, result = exported
    images, target = synthetic(4, result.spec.image_size), np.array([-1, 1, 2, 3])
    together = run(result.path, images, target)["gradient.0"]
    alone = np.concatenate([run(result.path, images[i : i + 1], target[i : i + 1])["gradient.0"] for i in range(4)])
    assert np.abs(alone - together).max() <= 1e-5 * np.abs(together).max()


def test_last_layer_has_gradients_in_the_row_that_is_read_alone(exported: Any) -> None:
    """Only the class token's row of the last block feeds the logit."""
    _, result = exported
    gradient = run(result.path, synthetic(2, result.spec.image_size), np.array([-1, 3]))["gradient.1"]
    assert np.abs(gradient[:, :, 0]).max() > 0
    assert np.abs(gradient[:, :, 1:]).max() == 0


def test_chosen_layers_have_gradients_under_their_own_numbers(tmp_path: Path) -> None:
    """A subset of layers gives a subset of gradients, unchanged."""
    built = make(depth=3)
    result = export_model(built, tmp_path / "graph.onnx", gradients=True, layers=[1])
    images, target = synthetic(2, built.image_size), np.array([4, -1])
    outputs, expected = run(result.path, images, target), derive(built).run(images, target)
    assert [n for n in outputs if n.startswith("gradient")] == ["gradient.1"]
    assert relative_difference(outputs, {"gradient.1": expected["gradient.1"]}, "gradient").max() <= 1e-4


# The file and its spec -----------------------------------------------------------------------------------------------


def test_spec_says_that_there_are_gradients(exported: Any) -> None:
    """The input and the outputs of the file are those that the spec promises; the batch has one name."""
    _, result = exported
    graph = onnx.load(result.path).graph
    assert [i.name for i in graph.input] == ["image", "target"]
    assert {i.type.tensor_type.shape.dim[0].dim_param for i in graph.input} == {"batch"}
    assert result.spec.gradients
    output = result.spec.output("gradient.1")
    assert output is not None
    assert output.dims == ("image", "head", "query", "key")
    assert GraphSpec.from_json(result.spec.to_json(), "here") == result.spec


def test_spec_of_a_graph_from_before_gradients_reads_as_without(exported: Any) -> None:
    """Metadata that does not know the key still reads."""
    data = {k: v for k, v in exported[1].spec.to_dict().items() if k != "gradients"}
    assert not GraphSpec.from_dict(data, "here").gradients


def test_two_exports_with_gradients_are_identical(tmp_path: Path, exported: Any) -> None:
    """Bytes depend on the weights alone, the traced backward pass included."""
    again = export_model(make(), tmp_path / "deit.onnx", gradients=True)
    assert again.path.read_bytes() == exported[1].path.read_bytes()
    for text in (str(Path.home()), "site-packages", "stack_trace", ".py"):
        assert text.encode() not in again.path.read_bytes()


def test_parity_names_the_gradients_figures(exported: Any) -> None:
    """What was measured stands in the result."""
    figures = exported[1].parity
    assert 0 < figures.gradient_median <= figures.gradient_max <= 1e-4


def test_graph_with_wrong_gradients_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backward pass that is not autograd's is found before the file is in place."""
    own = Gradients.run

    def wrong(self: Gradients, images: Any, target: Any) -> dict[str, Any]:
        values = own(self, images, target)
        return values | {"gradient.1": values["gradient.1"] * 1.001}

    monkeypatch.setattr(Gradients, "run", wrong)
    with pytest.raises(AttlasError, match=r"gradients differ from autograd by up to 0\.001.* in layer 1"):
        export_model(make(), tmp_path / "graph.onnx", gradients=True)
    assert list(tmp_path.iterdir()) == []


def test_gradients_that_are_no_numbers_fail(exported: Any) -> None:
    """NaN compares with nothing, and must not pass."""
    _, result = exported
    given = example(2, result.spec)
    outputs = run(result.path, *given.values())
    broken = outputs | {"gradient.0": outputs["gradient.0"] * np.nan}
    with pytest.raises(AttlasError, match="gradients differ"):
        compare(broken, outputs, result.spec)


# What is refused -----------------------------------------------------------------------------------------------------


def test_headless_model_has_no_logit_to_derive(tmp_path: Path) -> None:
    """Features are no classes: one line says so."""
    with pytest.raises(UsageError, match="has no classes, so there is no logit"):
        export_model(make(num_classes=0), tmp_path / "graph.onnx", gradients=True)


def test_float16_gradients_are_refused(tmp_path: Path) -> None:
    """They would be zeros for the most part."""
    with pytest.raises(UsageError, match="float16's smallest numbers"):
        export_model(make(), tmp_path / "graph.onnx", gradients=True, dtype="float16")


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


def test_graph_with_gradients_runs_as_one_without(exported: Any, photos: Path, tmp_path: Path) -> None:
    """Where no gradient is kept no class is asked for, and the attention is the same."""
    built, result = exported
    plain = export_model(built, tmp_path / "plain.onnx")
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
    names = ["gradient_rollout", "chefer", *(["head_importance"] if both else [])]
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
    images = np.stack([plain._pixels(shared / "images" / str(name)) for name in golden["files"]])
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

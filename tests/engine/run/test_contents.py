"""A store holds what the graph gives."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import pytest
from attlas.engine import Session, Store
from attlas.engine.runner import run
from attlas.errors import AttlasError, UsageError
from support import chunk_files, make_images
from support_run import paths


class NoProvider:
    """A reducer that marks attention as it likes."""

    templates = ()

    def __init__(self, spec: Any) -> None:
        self.spec = spec

    def __call__(self, attention: Any, pool: Any = None) -> dict[str, Any]:
        """No statistics, and everything is finite but the second layer of the first image."""
        finite = np.ones((len(attention[0]), len(attention)), bool)
        finite[0, 1] = False
        return {"_finite": finite}


def test_the_store_holds_what_the_session_gives(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Attention in float16, logits, prefix rows, paths, labels and sizes, image by image."""
    result = run(tiny_graph, pictures, tmp_path / "s.zarr")
    store = Store(result.path)
    assert result.finished
    assert (result.done, result.errors, result.labelled) == (50, 0, 50)
    keys = paths(store)
    assert keys == sorted(p.relative_to(pictures).as_posix() for p in pictures.rglob("*.*"))
    arrays = Session(tiny_graph)([pictures / key for key in keys])
    np.testing.assert_array_equal(store.read("attention"), arrays["attention"].astype(np.float16))
    np.testing.assert_array_equal(store.read("prefix_attention"), arrays["attention"][:, :, :, :1].astype(np.float16))
    np.testing.assert_array_equal(store.read("logits"), arrays["logits"])
    assert list(store.read("label")) == [key.split("/")[0] for key in keys]
    assert list(store.read("label_class")) == [int(key[1:9]) for key in keys]
    assert result.top1 == (arrays["logits"].argmax(1) == store.read("label_class")).sum()
    assert store.read("valid").all()
    from PIL import Image

    assert [(h, w) for h, w in zip(store.read("height"), store.read("width"), strict=True)] == [
        Image.open(pictures / key).size[::-1] for key in keys
    ]


def test_all_that_describes_an_image_is_a_coordinate(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """When the store is opened, in its `coordinates` for readers of Zarr, and as names that no column gets."""
    xarray = pytest.importorskip("xarray")
    from attlas.engine.store import coordinates, schema

    path = run(tiny_graph, pictures, tmp_path / "s.zarr", limit=2).path
    describing = {entry.name for entry in schema.DESCRIBING}
    assert describing <= coordinates.OWN
    assert describing <= set(attlas.open(path).coords)
    assert describing <= set(xarray.open_zarr(path).coords)


def test_an_array_that_a_run_stores_is_one_entry_of_the_schema(
    tiny_graph: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is planned, laid out, filled, and verified, and nothing else names it."""
    from attlas.engine import contents, unit
    from attlas.engine.runtime.outputs import Wanted
    from attlas.engine.store import schema, store, verify

    entry = schema.Entry("mean_twice", schema.MEAN, "as an example", Wanted("attention", head_mean=True), chunk="layer")
    small = schema.Entry("tokens_too", (), "as another", Wanted("tokens"))
    monkeypatch.setattr(contents, "FROM_GRAPH", (*schema.FROM_GRAPH, entry, small))
    layered, large = (*schema.LAYERED, "mean_twice"), (*schema.LARGE, "mean_twice")
    for module in (schema, contents, store, unit, verify):  # what is derived from the entries when they are loaded
        monkeypatch.setattr(module, "LAYERED", layered)
        monkeypatch.setattr(module, "LARGE", large, raising=False)
    made = Store(run(tiny_graph, pictures, tmp_path / "s.zarr", keep=("none",), limit=12, batch_size=4).path)
    assert attlas.verify(made.path).faults == {}
    arrays = Session(tiny_graph)([pictures / key for key in paths(made)])
    assert made.dims("mean_twice") == ("image", "layer", "query", "key")
    np.testing.assert_allclose(made.read("mean_twice"), arrays["attention"].mean(2), atol=1e-6)
    np.testing.assert_array_equal(made.read("tokens_too"), arrays["tokens"])


def test_the_sample_holds_the_crops_the_model_saw(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Exactly the decoder's pixels."""
    from attlas.engine.runtime.decode import decode

    store = Store(run(tiny_graph, pictures, tmp_path / "s.zarr").path)
    keys = paths(store)
    for place, image in enumerate(store.read("sample")):
        expected = decode((pictures / keys[image]).read_bytes(), store.spec.recipe).pixels
        np.testing.assert_array_equal(store.read("pixels", place), expected)


def test_an_image_alone_equals_the_image_in_any_batch(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """At either end of a batch, beside a broken one, in a tail: the same bits."""
    folder = tmp_path / "mixed"
    shutil.copytree(pictures, folder)
    (folder / "n00000000" / "00004a.jpg").write_bytes(b"broken")
    stores = [
        Store(run(tiny_graph, place, tmp_path / f"{n}.zarr", batch_size=batch).path)
        for n, (place, batch) in enumerate([(pictures, 1), (pictures, 7), (folder, 4)])
    ]
    found = [dict(zip(paths(s), s.read("attention"), strict=True)) for s in stores]
    for key, attention in found[0].items():
        np.testing.assert_array_equal(attention, found[1][key])
        np.testing.assert_array_equal(attention, found[2][key])


def test_an_unreadable_image_keeps_its_place_as_fill(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Its rows are NaN, `error` says why, and every other row is as if it were not there."""
    folder = tmp_path / "images"
    shutil.copytree(pictures, folder)
    (folder / "n00000001" / "00000.jpg").write_bytes(b"no picture at all")
    whole = (folder / "n00000002" / "00002.jpg").read_bytes()
    (folder / "n00000002" / "00002.jpg").write_bytes(whole[: len(whole) // 2])
    result = attlas.run(tiny_graph, folder, tmp_path / "s.zarr")
    store = Store(result.path)
    keys, valid, errors = paths(store), store.read("valid"), store.read("error")
    assert result.errors == 2
    bad = [keys.index("n00000001/00000.jpg"), keys.index("n00000002/00002.jpg")]
    assert list(np.flatnonzero(~valid)) == bad
    assert all(errors[i] for i in bad)
    assert not any(errors[i] for i in np.flatnonzero(valid))
    for name in ("attention", "logits", "prefix_attention", "rollout", "distance", "entropy", "prefix_mass"):
        values = store.read(name)
        assert np.isnan(values[bad]).all(), name
        assert np.isfinite(values[valid]).all(), name


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_no_byte(tiny_graph: Path, pictures: Path, tmp_path: Path, threads: int) -> None:
    """However the units are divided."""
    attlas.run(tiny_graph, pictures, tmp_path / "a.zarr")
    attlas.run(tiny_graph, pictures, tmp_path / "b.zarr", threads=threads)
    assert chunk_files(tmp_path / "a.zarr") == chunk_files(tmp_path / "b.zarr")


def test_non_finite_attention_ends_the_run_and_names_it(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """The layer and the image, and no unit is marked done with it."""
    with pytest.raises(AttlasError, match=r"\.(jpg|png): attention of layer 1 is not finite"):
        run(tiny_graph, pictures, tmp_path / "s.zarr", reducer=NoProvider)
    assert not Store(tmp_path / "s.zarr").done.any()


def test_a_graph_that_overflows_ends_the_run(
    graph_factory: Callable[..., Path], pictures: Path, tmp_path: Path
) -> None:
    """Found without any statistics."""
    with pytest.raises(AttlasError, match="not finite"):
        run(graph_factory(sharpness=float("inf")), pictures, tmp_path / "s.zarr")


def test_the_position_embedding_travels_into_the_store(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """What no image changes stands in the store once, as the graph gives it."""
    run(tiny_graph, pictures, tmp_path / "s.zarr", limit=2, keep=("none",))
    store = Store(tmp_path / "s.zarr")
    assert store.dims("position_embedding") == ("token", "channel")
    expected = attlas.Session(tiny_graph, provider="cpu").constant("position_embedding")
    assert np.array_equal(store.read("position_embedding"), expected)


def test_plain_xarray_reads_the_store_without_attlas(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Dimensions have their names, and a mean over images is right, though the store is float16."""
    pytest.importorskip("xarray")
    folder = make_images(tmp_path / "images", 120)
    store = Store(run(tiny_graph, folder, tmp_path / "s.zarr").path)
    code = (
        "import sys; sys.modules['attlas'] = None\n"
        "import json, xarray\n"
        "ds = xarray.open_zarr('s.zarr')\n"
        "mean = ds['attention'].mean('image')\n"
        "print(json.dumps([list(ds['attention'].dims), mean.values.tolist()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    dims, mean = json.loads(done.stdout)
    assert dims == ["image", "layer", "head", "query", "key"]
    np.testing.assert_allclose(mean, store.read("attention").astype(np.float64).mean(axis=0), rtol=1e-6)


def test_a_session_takes_what_a_notebook_has(tiny_graph: Path, pictures: Path) -> None:
    """Paths, bytes, Pillow images and arrays give the same numbers."""
    from PIL import Image

    path = next(pictures.rglob("*.jpg"))
    session = Session(tiny_graph)
    expected = session(path)["attention"]
    assert expected.shape == (1, 2, 2, 7, 7)
    assert expected.dtype == np.float32
    np.testing.assert_allclose(expected.sum(-1), 1, rtol=1e-5)
    with Image.open(path) as picture:
        np.testing.assert_array_equal(session([picture])["attention"], expected)
    np.testing.assert_array_equal(session(path.read_bytes())["attention"], expected)
    with pytest.raises(UsageError, match="takes uint8 pixels of shape"):
        session(np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(AttlasError, match="cannot be decoded"):
        session(b"nothing")
    with pytest.raises(AttlasError, match="cannot be read"):
        session(pictures / "absent.jpg")


def test_a_provider_that_falls_back_is_an_error(tiny_graph: Path) -> None:
    """Silence would mean a GPU run on the CPU."""
    import onnxruntime
    from attlas.engine.runtime.providers import _has_driver

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers() or _has_driver():
        pytest.skip("needs onnxruntime's CUDA build on a machine without a GPU")
    with pytest.raises(AttlasError, match="CUDAExecutionProvider was asked for, but onnxruntime fell back"):
        Session(tiny_graph, provider="cuda")
    assert Session(tiny_graph, provider="auto").provider == "CPUExecutionProvider"


def test_real_weights_classify_the_real_images(deit: Path, shared: Path, tmp_path: Path) -> None:
    """deit_tiny's store gives PyTorch's own predictions, 132 of 167 right; rows and statistics are within 1e-3."""
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    from attlas.analysis import formulas
    from PIL import Image
    from safetensors.torch import load_file

    weights = shared / "models" / "deit_tiny_patch16_224.safetensors"
    result = attlas.run(deit, shared / "images", tmp_path / "s.zarr")
    assert (result.labelled, result.top1, result.errors) == (167, 132, 0)
    store = Store(result.path)
    timm.layers.set_fused_attn(False)
    model = timm.create_model("deit_tiny_patch16_224").eval()
    model.load_state_dict(load_file(weights))
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model.pretrained_cfg))
    taps: list[Any] = []
    for block in model.blocks:
        block.attn.attn_drop.register_forward_hook(lambda _m, _i, out: taps.append(out.numpy()))
    worst, same = 0.0, 0
    names = ("distance", "distance_renormalized", "entropy", "entropy_patch")
    errors = dict.fromkeys((*names, "rollout"), 0.0)
    predicted = store.read("logits").argmax(-1)
    for i, key in enumerate(store.read("path")):
        taps.clear()
        with torch.no_grad():
            logits = model(transform(Image.open(shared / "images" / key).convert("RGB"))[None])
        same += int(logits.argmax()) == int(predicted[i])
        variation = np.abs(store.read("attention", i).astype(np.float32) - np.concatenate(taps)).sum(-1) / 2
        worst = max(worst, float(variation.max()))
        if i % 24:  # the formulas in float64 take four times as long as the model
            continue
        true = np.concatenate(taps).astype(np.float64)
        expected = {
            "distance": formulas.distance(true, (14, 14), (16, 16)),
            "distance_renormalized": formulas.distance_renormalized(true, (14, 14), (16, 16)),
            "entropy": formulas.entropy(true),
            "entropy_patch": formulas.entropy_patch(true, 1),
            "rollout": formulas.rollout(list(true), (14, 14)),
        }
        for name, value in expected.items():
            error = np.abs(store.read(name, i) - value).max() / np.abs(value).max()
            errors[name] = max(errors[name], float(error))
    assert same == 167
    assert worst <= 1e-3
    assert max(errors.values()) <= 1e-3, errors

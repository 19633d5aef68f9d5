"""Where weights come from: files of every common form, timm, a seed; and what is refused."""

from __future__ import annotations

import hashlib
import os
import socket
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch")

pytest.importorskip("timm")


from attlas.engine.runtime.graph import graph_digest, read_spec  # noqa: E402
from attlas.errors import AttlasError, UsageError  # noqa: E402
from attlas.exporter import export  # noqa: E402
from attlas.exporter.libraries.build import build  # noqa: E402
from attlas.exporter.taps.pictures import pictures  # noqa: E402
from attlas.exporter.trace import write  # noqa: E402
from attlas.exporter.trace.export import export_model  # noqa: E402
from attlas.exporter.trace.parity import compare  # noqa: E402
from support_export import _SHARED, DEIT, SMALL, make, needs_shared, reference, run  # noqa: E402

SHARED = Path(_SHARED or ".")


def test_two_exports_of_the_same_weights_are_identical_and_tell_no_path(tmp_path: Path, exported: Any) -> None:
    """Bytes depend on the weights alone: no stack traces, no paths, no temporary names."""
    files = [exported(DEIT)[1].path.read_bytes(), export_model(make(DEIT), tmp_path / "deit.onnx").path.read_bytes()]
    assert files[0] == files[1]
    assert onnx.load_from_string(files[0]).SerializeToString() == files[0]  # as protobuf writes it, not only reads it
    for text in (str(Path.home()), str(tmp_path), "site-packages", "stack_trace", ".py"):
        assert text.encode() not in files[0]


def test_weights_above_the_limit_go_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """External data lies in NAME.onnx.data, by relative name, and the pair can be moved."""
    monkeypatch.setattr(write, "LARGEST_FILE", 1000)
    built = make(DEIT)
    result = export_model(built, tmp_path / "deit.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deit.json", "deit.onnx", "deit.onnx.data"]
    moved = tmp_path.with_name("moved")
    tmp_path.rename(moved)
    images = pictures(1, built.image_size)
    compare(run(moved / "deit.onnx", images), reference(built)(images), result.spec)
    digest, data = graph_digest(moved / "deit.onnx"), moved / "deit.onnx.data"
    assert digest == hashlib.sha256((moved / "deit.onnx").read_bytes() + data.read_bytes()).hexdigest()
    other = bytearray(data.read_bytes())
    other[1000] ^= 1
    data.write_bytes(other)
    with pytest.raises(AttlasError, match=r"deit\.onnx\.data: is not the file of weights that deit\.onnx was exported"):
        graph_digest(moved / "deit.onnx")


def test_weights_beside_the_old_graph_stay_until_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overwriting that is interrupted at its last step leaves the old graph whole."""
    built, path, replace = make(DEIT), tmp_path / "deit.onnx", Path.replace
    with monkeypatch.context() as patch:
        patch.setattr(write, "LARGEST_FILE", 1000)
        spec = export_model(built, path).spec

    def interrupted(self: Path, target: Path) -> Path:
        if target == path:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export_model(built, path, overwrite=True)
    images = pictures(1, built.image_size)
    compare(run(path, images), reference(built)(images), spec)
    export_model(built, path, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deit.json", "deit.onnx"]


# Weights -------------------------------------------------------------------------------------------------------------


def test_seed_decides_random_weights() -> None:
    """The same seed gives the same model, another one another, and the caller's generator is left alone."""
    before = torch.random.get_rng_state()
    hashes = [build(DEIT, random_init=True, seed=s, model_args=SMALL).weights().sha256 for s in (1, 1, 2)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert torch.equal(before, torch.random.get_rng_state())


def test_pretrained_weights_come_through_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tag's weights are loaded by timm's own loader, which never unpickles."""
    state = make(DEIT).module.state_dict()
    asked = []

    def answer(hub_id: str, *args: object, **kwargs: object) -> dict[str, Any]:
        asked.append((hub_id, kwargs.get("weights_only")))
        return dict(state)

    monkeypatch.setattr("attlas.exporter.libraries.timm.build._reach", lambda *a: None)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", answer)
    built = build(f"{DEIT}.fb_in1k", model_args=SMALL)
    assert asked == [("timm/deit_tiny_patch16_224.fb_in1k", True)]
    assert (built.source, built.weights().sha256) == ("pretrained", make(DEIT).weights().sha256)


def test_without_network_the_message_names_the_alternatives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One line at once, instead of the hub's minute of retries."""

    def unreachable(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)
    with pytest.raises(AttlasError, match=r"--checkpoint FILE .*--random-init") as caught:
        export(DEIT, tmp_path / "deit.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_recipe_is_that_of_the_pretrained_tag() -> None:
    """Tags of one architecture differ in mean, std and crop; resize is the floor of size / crop_pct."""
    plain = build(DEIT, random_init=True).recipe
    assert (plain.resize, plain.crop, plain.crop_mode) == ((248, 248), (224, 224), "center")
    assert plain.mean == (0.485, 0.456, 0.406)
    augreg = build("vit_tiny_patch16_224.augreg_in21k_ft_in1k", random_init=True).recipe
    assert augreg.mean == (0.5, 0.5, 0.5)


def test_sources_that_contradict_are_refused(tmp_path: Path) -> None:
    """Weights come from one place."""
    with pytest.raises(UsageError, match="exclude each other"):
        build(DEIT, checkpoint=tmp_path / "x.pth", random_init=True)
    with pytest.raises(UsageError, match="there is no such file"):
        build(DEIT, checkpoint=tmp_path / "x.pth")
    with pytest.raises(UsageError, match="would leave a new head random"):
        build(DEIT, num_classes=10)


# Real weights and pictures -------------------------------------------------------------------------------------------


@needs_shared
def test_trained_weights_on_photographs_equal_pytorch(deit: Path) -> None:
    """deit_tiny's own weights on real JPEGs, with timm's own transform: rows, logits and classes."""
    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    checkpoint = SHARED / "models" / f"{DEIT}.safetensors"
    spec = read_spec(deit)
    built = build(DEIT, checkpoint=checkpoint)
    transform = create_transform(**resolve_data_config({}, model=built.module), is_training=False)
    transform.transforms = [t for t in transform.transforms if type(t).__name__ not in ("MaybeToTensor", "Normalize")]
    # A run over all of them is compared in the engine's tests.
    files = sorted((SHARED / "images").glob("*.JPEG"))[:: 4 if os.environ.get("ATTLAS_FULL") else 8]
    torch_run, means, largest, right = reference(built), [], 0.0, 0
    session = onnxruntime.InferenceSession(str(deit), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    for start in range(0, len(files), 8):
        batch = files[start : start + 8]
        images = np.stack([np.asarray(transform(Image.open(f).convert("RGB"))) for f in batch])
        outputs = dict(zip(names, session.run(None, {"image": images}), strict=True))
        figures = compare(outputs, torch_run(images), spec)
        means.append(figures.row_mean)
        largest = max(largest, figures.row_max)
        assert figures.head <= 1e-4 * figures.head_scale
        assert figures.top1 == 1
        first = [spec.classes[k].id for k in outputs["logits"].argmax(-1)]
        right += sum(f.name.startswith(k) for f, k in zip(batch, first, strict=True))
    assert np.mean(means) <= 5e-6
    assert largest <= 5e-4
    assert right / len(files) > 0.7

"""OpenVINO as the runtime: what onnxruntime gives, to the same bits in any number of threads."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import onnx
import pytest
from attlas.engine import Session, Store
from attlas.engine.messages import doctor_lines
from attlas.engine.runtime import providers as providers_module
from attlas.engine.runtime.providers import CPU, OPENVINO, resolve_provider
from attlas.errors import AttlasError, UsageError
from support import chunk_files
from support_devices import assert_same_store

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")


@pytest.fixture
def folder(pictures: Path, tmp_path: Path) -> Path:
    """A few pictures, one of them broken."""
    place = tmp_path / "images"
    place.mkdir()
    for n, file in enumerate(sorted(pictures.rglob("*.jpg"))[:11]):
        shutil.copy(file, place / f"{n:02d}.jpg")
    (place / "04.jpg").write_bytes(b"no picture at all")
    return place


@needs_openvino
def test_it_gives_what_onnxruntime_gives(tiny_graph: Path, pictures: Path) -> None:
    """Every output, for as many pictures as are given; the constant one leaves results that were handed out alone."""
    images = sorted(pictures.rglob("*.jpg"))[:5]
    plain, other = Session(tiny_graph, provider="cpu"), Session(tiny_graph, provider="openvino")
    assert (other.provider, other.on_cpu) == (OPENVINO, True)
    for count in (5, 1, 3):
        expected, got = plain(images[:count]), other(images[:count])
        assert got.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(got[name], values, rtol=1e-5, atol=1e-5, err_msg=name)


@needs_openvino
def test_external_weights_are_found(tiny_graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the graph, wherever the process stands."""
    large = tmp_path / "large.onnx"
    onnx.save(onnx.load(tiny_graph), large, save_as_external_data=True, location="large.onnx.data", size_threshold=0)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for path in (large, Path("../large.onnx")):
        values = Session(path, provider="openvino")(np.full((16, 24, 3), 90, np.uint8))["attention"]
        expected = Session(tiny_graph, provider="openvino")(np.full((16, 24, 3), 90, np.uint8))["attention"]
        np.testing.assert_array_equal(values, expected)
    assert {file.name for file in tmp_path.iterdir()} == {"large.onnx", "large.onnx.data", "elsewhere"}


@needs_openvino
def test_nothing_is_reported_home(tiny_graph: Path) -> None:
    """OpenVINO's telemetry is not loaded with it: it would fork this process to tell of the import."""
    code = (
        "import sys; from attlas.engine import Session; "
        f"Session({str(tiny_graph)!r}, provider='openvino'); assert sys.modules['openvino_telemetry'] is None"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tiny_graph.parent)


@needs_openvino
def test_its_store_is_the_same_and_has_the_same_bits_after_a_stop(
    tiny_graph: Path, folder: Path, tmp_path: Path
) -> None:
    """However many threads did the work, and where it was taken up again."""

    def run(name: str, **choices: Any) -> Path:
        path = tmp_path / name
        return Path(attlas.run(tiny_graph, folder, path, batch_size=3, **choices).path)

    whole = run("whole.zarr", provider="openvino", threads=1)
    run("parts.zarr", provider="openvino", threads=2, shard=(1, 2))
    parts = run("parts.zarr", provider="openvino", threads=1)
    assert chunk_files(whole) == chunk_files(parts)
    assert_same_store(run("plain.zarr", provider="cpu"), whole, tolerance=1e-3)  # a rounding of stored float16
    record = Store(whole).record["runs"][0]
    assert (record["provider"], record["statistics"]) == (OPENVINO, "host")
    assert record["versions"]["openvino"]
    assert attlas.inspect(whole)["runs"][0]["provider"] == OPENVINO


@needs_openvino
def test_what_it_cannot_do_is_refused(tiny_graph: Path, folder: Path, tmp_path: Path) -> None:
    """It drops a cast to float16 and back, so that statistics would be those of other numbers."""
    with pytest.raises(UsageError, match="statistics in the graph"):
        attlas.run(tiny_graph, folder, tmp_path / "s.zarr", provider="openvino", statistics="graph")
    assert not (tmp_path / "s.zarr").exists()


@needs_openvino
def test_a_graph_that_it_would_compute_wrong_is_refused(tiny_graph: Path, tmp_path: Path) -> None:
    """Antialiased resizing, which earlier versions left in some graphs."""
    model = onnx.load(tiny_graph)
    model.graph.node.append(onnx.helper.make_node("Resize", ["scaled", "", "", "sizes"], ["small"], antialias=1))
    onnx.save(model, tmp_path / "old.onnx")
    with pytest.raises(AttlasError, match="computes wrong in silence; export it again"):
        Session(tmp_path / "old.onnx", provider="openvino")


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line."""
    monkeypatch.setattr(providers_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"not installed; `pip install 'attlas\[openvino\]'`"):
        resolve_provider("openvino")
    assert resolve_provider("cpu") == [CPU]


@pytest.mark.parametrize(("milliseconds", "told"), [((4.0, 3.0), "1.3 times"), ((3.3, 3.0), ""), ((3.0, 0.0), "")])
def test_doctor_tells_when_it_is_faster_here(milliseconds: tuple[float, float], told: str) -> None:
    """From 15 % on, measured on this machine."""
    names = dict(zip((CPU, OPENVINO), milliseconds, strict=True))
    data = {
        "python": "", "system": "", "providers": dict.fromkeys(names, "works"), "milliseconds": names, "versions": {},
        "extras": {}, "problems": [], "decoding": {},
    }  # fmt: skip
    lines = [line for line in doctor_lines(data) if "times as fast" in line]
    assert len(lines) == bool(told)
    assert told in "".join(lines)


# -- bfloat16 ----------------------------------------------------------------------------------------------------------


def test_a_precision_that_nothing_computes_in_is_refused(tiny_graph: Path, folder: Path, tmp_path: Path) -> None:
    """In one line, before a store exists."""
    for choice, reason in (
        ({"provider": "cpu", "precision": "bfloat16"}, "only `--provider openvino`"),
        ({"provider": "cpu", "precision": "int8"}, "--precision int8: a run computes in float32 or bfloat16"),
    ):
        with pytest.raises(UsageError, match=reason):
            attlas.run(tiny_graph, folder, tmp_path / "s.zarr", **choice)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=reason):
            Session(tiny_graph, **choice)  # type: ignore[arg-type]
    assert not (tmp_path / "s.zarr").exists()


@needs_openvino
def test_a_processor_without_bfloat16_is_told_before_a_store_exists(
    tiny_graph: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would compute in float32 in silence."""
    monkeypatch.setattr("attlas.engine.runtime.openvino.computes", lambda precision: False)
    with pytest.raises(AttlasError, match="bfloat16: this machine's processor"):
        attlas.run(tiny_graph, folder, tmp_path / "s.zarr", provider="openvino", precision="bfloat16")
    assert not (tmp_path / "s.zarr").exists()


@needs_openvino
def test_bfloat16_belongs_to_the_plan(graph_factory: Callable[..., Path], folder: Path, tmp_path: Path) -> None:
    """A store in float32 is not resumed in it; where the processor can, its numbers are near."""
    from attlas.engine.runtime.openvino import computes

    if not computes("bfloat16"):
        pytest.skip("this processor does not compute in bfloat16")
    graph = graph_factory(sharpness=1.0)
    paths = [
        Path(attlas.run(graph, folder, tmp_path / name, provider="openvino", precision=name).path)
        for name in ("float32", "bfloat16")
    ]
    assert "precision" not in Store(paths[0]).plan.identity
    assert Store(paths[1]).plan.identity["precision"] == "bfloat16"
    record = Store(paths[1]).record["runs"][0]
    assert record["provider"] == "OpenVINO, bfloat16"
    assert record["versions"]["openvino"]
    a, b = (Store(path).read("attention").astype(np.float64) for path in paths)
    valid = Store(paths[0]).read("valid")
    variation = np.abs(a - b)[valid].sum(-1) / 2
    assert 1e-4 < variation.mean() < 0.02
    with pytest.raises(AttlasError, match="precision float32 there, bfloat16 now"):
        attlas.run(graph, folder, paths[0], provider="openvino", precision="bfloat16")

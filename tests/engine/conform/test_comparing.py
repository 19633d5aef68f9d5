"""The command, its files, and what it refuses, each in one line."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import onnx
import onnxruntime
import pytest
from attlas.engine.conform import write_cases
from attlas.engine.conform.cases import _heads
from attlas.engine.runtime.graph import load
from attlas.engine.runtime.session import constants
from attlas.errors import AttlasError, UsageError
from attlas.exporter.spec import METADATA_KEY, GraphSpec, Output
from onnx import TensorProto, helper, numpy_helper
from support import make_graph, make_picture, make_spec
from support_conform import results_of

type Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def cases(tiny_graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cases") / "cases.npz"
    write_cases(tiny_graph, path, limit=3, threads=1)
    return path


@pytest.fixture
def results(tiny_graph: Path, cases: Path, tmp_path: Path) -> Callable[..., Path]:
    def make(**changes: np.ndarray | None) -> Path:
        return results_of(tiny_graph, cases, tmp_path / "results.npz", **changes)

    return make


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    lines = [line for line in done.stderr.splitlines() if not line.startswith("conform ")]
    assert (done.returncode, done.stdout, len(lines)) == (code, "", 1), done.stderr
    return lines[0]


def test_openvino_conforms(tiny_graph: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    result = attlas.conform(tiny_graph, provider="openvino", limit=4)
    assert result.conforms
    assert (result.tested, result.pictures, result.same_top1, result.cause) == ("OpenVINO", 4, 4, "")
    assert [line["output"] for line in result.table] == ["attention.0", "attention.1", "tokens", "logits"]
    assert repr(result).splitlines()[-1] == "conforms"


def test_without_images_they_are_the_same_each_time_and_no_noise(tiny_graph: Path, tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        write_cases(tiny_graph, tmp_path / name, limit=9, threads=1)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    pixels = np.load(tmp_path / "a.npz")["image"].astype(float)
    assert len(np.unique(pixels.reshape(9, -1), axis=0)) == 9
    # Neighbours are alike, as in photographs: of white noise both differ by as much.
    near, far = (np.abs(pixels[:, :, step:] - pixels[:, :, :-step]).mean() for step in (1, 8))
    assert near < 0.8 * far


def test_given_pictures_are_taken_of_every_kind(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    make_picture(3).save(tmp_path / "one.png")
    for images, count in ((pictures, 5), (tmp_path / "one.png", 1), ([make_picture(1), make_picture(2)], 2)):
        assert attlas.conform(tiny_graph, images, provider="cpu", limit=5, threads=1).pictures == count


def test_the_command_exports_and_imports(
    command: Command, tiny_graph: Path, results: Callable[..., Path], tmp_path: Path
) -> None:
    done = command("conform", tiny_graph, "--export", "cases.npz", "--limit", "3", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "cases.npz: 3 pictures with what is expected of them\n")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cases.npz"]
    held = np.load(tmp_path / "cases.npz")
    assert held.files == ["attlas", "image", "logits", "tokens", "attention.0", "attention.1"]
    done = command("conform", tiny_graph, "cases.npz", "--import", results(), cwd=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "conforms")
    wrong = results(**{"attention.1": held["attention.1"][:, ::-1]})
    done = command("conform", tiny_graph, "cases.npz", "--import", wrong, "--json", cwd=tmp_path)
    said = json.loads(done.stdout)
    assert done.returncode == 1
    assert (said["conforms"], said["first"], said["layer"], said["after"]) == (False, "attention.1", 1, "attention.0")
    assert said["cause"] == "the heads are in another order: 1, 0"
    done = command("conform", tiny_graph, "cases.npz", "--provider", "cpu", cwd=tmp_path)
    assert done.returncode == 0
    assert "onnxruntime CPU against cases.npz" in done.stdout


def test_values_that_are_no_numbers_do_not_conform(tiny_graph: Path, cases: Path, results: Callable[..., Path]) -> None:
    broken = np.array(np.load(cases)["attention.1"])
    broken[2, 1, 0, 0] = np.nan
    result = attlas.conform(tiny_graph, cases, results=results(**{"attention.1": broken}))
    assert (result.conforms, result.layer) == (False, 1)
    assert "no numbers" in result.cause
    assert "picture made 2, head 1, query 0" in repr(result)


def test_outputs_that_are_no_maps_may_lack(tiny_graph: Path, cases: Path, results: Callable[..., Path]) -> None:
    result = attlas.conform(tiny_graph, cases, results=results(tokens=None))
    assert result.conforms
    assert result.notes == ("results.npz lacks tokens",)
    assert repr(result).endswith("\nconforms, but results.npz lacks tokens, which is not compared")


def test_inputs_that_silence_heads_are_cases_too(tmp_path: Path) -> None:
    """They keep every head."""
    spec = make_spec()
    means = Output("head_output.0", ("image", "head", "head_channel"), (None, 2, 8))
    files = _heads(tmp_path, dataclasses.replace(spec, ablate=True, outputs=(*spec.outputs, means)))
    arrays = {name: np.load(file) for name, file in files}
    assert {name: (a.shape, float(a.mean())) for name, a in arrays.items()} == {
        "head_mask": ((2, 2), 1.0), "head_fill": ((2, 2, 8), 0.0),
    }  # fmt: skip


def test_gradients_are_of_the_first_class_of_the_reference(tiny_graph: Path, tmp_path: Path) -> None:
    """The cases give it to the runtime, and a run here takes it, too."""
    model, path = onnx.load(tiny_graph), tmp_path / "derives.onnx"
    model.graph.input.append(helper.make_tensor_value_info("target", TensorProto.INT64, ["batch"]))
    for name, values in (("axes", [1, 2, 3]), ("none", 0)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(values), name))
    model.graph.node.extend([
        helper.make_node("ArgMax", ["logits"], ["best"], axis=1, keepdims=0),
        helper.make_node("Less", ["target", "none"], ["open"]),
        helper.make_node("Where", ["open", "best", "target"], ["class"]),
        helper.make_node("Cast", ["class"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["number", "axes"], ["spread"]),
        helper.make_node("Mul", ["attention.1", "spread"], ["gradient.1"]),
    ])  # fmt: skip
    model.graph.output.append(helper.make_tensor_value_info("gradient.1", TensorProto.FLOAT, ["batch", 2, 7, 7]))
    entry = next(one for one in model.metadata_props if one.key == METADATA_KEY)
    spec = GraphSpec.from_json(entry.value, "test")
    made = Output("gradient.1", ("image", "head", "query", "key"), (None, 2, 7, 7))
    entry.value = dataclasses.replace(spec, gradients=True, outputs=(*spec.outputs, made)).to_json()
    onnx.save(model, path)
    write_cases(path, tmp_path / "cases.npz", limit=3, threads=1)
    held = np.load(tmp_path / "cases.npz")
    np.testing.assert_array_equal(held["target"], held["logits"].argmax(-1))
    result = attlas.conform(path, tmp_path / "cases.npz", provider="cpu", threads=1)
    assert (result.conforms, result.lines[-1].output, result.lines[-1].bound) == (True, "gradient.1", 5e-4)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{graph}", "--provider", "tensorrtx"], 2, "--provider tensorrtx: there is"),
        (["{graph}", "--provider", "cpu", "--precision", "bfloat16"], 2, "only `--provider openvino`"),
        (["absent.onnx"], 1, "there is no such graph"),
        (["foreign.onnx"], 1, "without attlas metadata"),
        (["mapless.onnx"], 1, "has no attention outputs to compare"),
        (["{graph}", "absent"], 1, "there is no such folder"),
        (["{graph}", "bad"], 1, "bad.jpg: cannot be decoded"),
        (["{graph}", "absent.npz"], 1, "absent.npz: there is no such file"),
        (["{graph}", "text.npz"], 1, "text.npz: is no .npz that can be read"),
        (["{graph}", "cut.npz"], 1, "cut.npz: is no .npz that can be read"),
        (["{graph}", "plain.npz"], 1, "plain.npz: holds no cases; `attlas conform"),
        (["other.onnx", "{cases}"], 1, "its cases are of another graph (weights differ)"),
        (["{graph}", "--import", "plain.npz"], 2, "name the cases that it is of"),
        (["{graph}", "{cases}", "--import", "absent.npz"], 1, "absent.npz: there is no such file"),
        (["{graph}", "{cases}", "--import", "plain.npz"], 1, "lacks attention.0, attention.1, logits; it holds a"),
        (["{graph}", "{cases}", "--import", "pickle.npz"], 1, "a holds Python objects, which are never loaded"),
        (
            ["{graph}", "{cases}", "--import", "few.npz"],
            1,
            "attention.0 has the shape (2, 2, 7, 7), float32; the cases",
        ),
        (["{graph}", "{cases}", "--import", "whole.npz"], 1, "logits has the shape (3, 4), int64; the cases expect"),
        (["{graph}", "{cases}", "--import", "few.npz", "--provider", "cpu"], 2, "--import, --provider: choose one"),
        (["{graph}", "{cases}", "--import", "few.npz", "--precision", "int8"], 2, "--precision int8: choose from"),
        (["{graph}", "{cases}", "--against", "{store}"], 2, "holds what is expected, too"),
        (["{graph}", "--against", "absent"], 1, "there is no such store"),
        (["{graph}", "--against", "none.zarr"], 1, "keeps no attention"),
        (["other.onnx", "--against", "none.zarr"], 1, "is not of the store's model (weights differ)"),
        (["{graph}", "--export", "{cases}"], 2, "exists; --overwrite replaces it"),
        (["{graph}", "--export", "cases"], 2, "cases are one .npz; name it so"),
        (["{graph}", "--export", "text.npz/c.npz"], 1, "cannot be written"),
        (["mapless.onnx", "--export", "c.npz"], 1, "has no attention outputs to compare"),
        (["{graph}", "--export", "c.npz", "--provider", "openvino"], 2, "leave the other options out"),
        (["{graph}", "--limit", "0"], 2, "Invalid value for '--limit'"),
        (["{graph}", "--export", "c.npz", "--precision", "bfloat16"], 2, "leave the other options out"),
        (["{graph}", "--overwrite"], 2, "--overwrite: is for --export"),
    ],
)
def test_what_it_refuses_is_one_line(
    command: Command, tiny_graph: Path, cases: Path, bad: Path, arguments: list[str], code: int, message: str
) -> None:
    words = [one.format(graph=tiny_graph, cases=cases, store=bad / "none.zarr") for one in arguments]
    assert message in one_line(command("conform", *words, cwd=bad), code)
    assert not list(bad.glob(".*"))


def test_more_that_is_refused_names_what_was_found(tiny_graph: Path, cases: Path, bad: Path) -> None:
    """Each in one line, from Python as from the command line."""
    held = dict(np.load(cases))
    said = json.loads(str(held["attlas"]))
    damaged: dict[str, tuple[dict[str, Any], str]] = {
        "pixels": (
            {"image": held["image"].astype(np.float32)},
            r"image has the shape \(3, .*, float32; `attlas conform",
        ),
        "whole": ({"logits": held["logits"].astype(np.int64)}, r"logits has the shape \(3, 4\), int64"),
        "nameless": ({"attlas": np.array(json.dumps(said | {"pictures": 5}))}, "names no pictures"),
        "specless": ({"attlas": np.array(json.dumps({"format": 1}))}, "holds no cases"),
        "listed": ({"attlas": np.array(json.dumps(said | {"spec": []}))}, "holds no cases"),
    }
    for name, (changes, message) in damaged.items():
        np.savez(bad / f"{name}.npz", **(held | changes))
        with pytest.raises(AttlasError, match=message):
            attlas.conform(tiny_graph, bad / f"{name}.npz", provider="cpu")
    for arguments, message in (
        ({"images": cases, "results": cases}, "holds cases, not results"),
        ({"images": cases, "results": bad}, "is a folder, not an .npz"),
        ({"images": bad / "none.jpg"}, "none.jpg: there is no such picture"),
        ({"images": ""}, "IMAGES is empty"),
        ({"against": ""}, "--against is empty"),
        ({"against": None}, "against: pass cpu, or the path of a store, not None"),
        ({"provider": 3}, "provider: pass a name, not 3"),
        ({"limit": "a"}, "limit: pass a whole number"),
        ({"images": cases, "results": cases, "provider": "cpu"}, "choose one"),
    ):
        with pytest.raises(AttlasError, match=message):
            attlas.conform(tiny_graph, **arguments)
    for output, images, message in (
        (bad / "d.npz", None, "is a folder"),
        (bad / "e.npz", cases, "holds cases already"),
    ):
        (bad / "d.npz").mkdir(exist_ok=True)
        with pytest.raises(UsageError, match=message):
            write_cases(tiny_graph, output, images, overwrite=True)
    with pytest.raises(AttlasError, match="is a folder, not a graph"):
        attlas.conform(bad)
    onnx.save(onnx.load(tiny_graph), bad / "w.onnx", save_as_external_data=True, location="w.data", size_threshold=500)
    attlas.conform(bad / "w.onnx", provider="cpu")
    whole = (bad / "w.data").read_bytes()
    (bad / "w.data").write_bytes(whole[:-1])
    lost = rf"w\.data: is cut off \(of {len(whole):,} bytes {len(whole) - 1:,} are there\)"
    with pytest.raises(AttlasError, match=lost):
        attlas.conform(bad / "w.onnx", provider="cpu")
    (bad / "w.data").unlink()
    with pytest.raises(AttlasError, match=r"its weights, w\.data, are missing"):
        attlas.conform(bad / "w.onnx", provider="cpu")


def test_a_graph_that_may_not_be_read_or_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also before a run begins, which asks the graph for what does not depend on the picture."""
    make_graph(tmp_path / "g.onnx", heads=3)  # of 16 channels
    with pytest.raises(AttlasError, match=r"g\.onnx: onnxruntime fails \("):
        constants(tmp_path / "g.onnx")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "g.onnx")

    monkeypatch.setattr(onnx, "load", refuse)
    with pytest.raises(AttlasError, match=r"g\.onnx: cannot be read \(Permission denied\)"):
        load(tmp_path / "g.onnx")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_without_its_libraries_is_one_line(
    command: Command, tiny_graph: Path, tmp_path: Path, provider: str
) -> None:
    if not any(name.lower().startswith(provider) for name in onnxruntime.get_available_providers()):
        pytest.skip(f"this onnxruntime does not know {provider}")
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("there is a card, on which it may well work")
    done = command("conform", tiny_graph, "--provider", provider, cwd=tmp_path)
    assert "was asked for, but onnxruntime fell back to CPUExecutionProvider: `attlas doctor`" in one_line(done, 1)


@pytest.fixture(scope="module")
def bad(tiny_graph: Path, pictures: Path, cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what is refused."""
    folder = tmp_path_factory.mktemp("bad")
    changed(tiny_graph, folder / "other.onnx", lambda said: said["weights"].update(sha256="1" * 64))
    changed(tiny_graph, folder / "mapless.onnx", lambda said: said.update(outputs=said["outputs"][:1]))
    model = onnx.load(tiny_graph)
    del model.metadata_props[:]
    onnx.save(model, folder / "foreign.onnx")
    (folder / "bad").mkdir()
    (folder / "bad" / "bad.jpg").write_bytes(b"no picture")
    (folder / "text.npz").write_text("no zip")
    (folder / "cut.npz").write_bytes(cases.read_bytes()[:-400])
    np.savez(folder / "plain.npz", a=np.zeros(3))
    np.savez(folder / "pickle.npz", a=np.array([None]))
    held = {name: values for name, values in np.load(cases).items() if name not in ("attlas", "image")}
    np.savez(folder / "few.npz", **(held | {"attention.0": held["attention.0"][:2]}))
    np.savez(folder / "whole.npz", **(held | {"logits": held["logits"].astype(np.int64)}))
    attlas.run(tiny_graph, pictures, folder / "none.zarr", limit=2, keep=("none",), threads=1, reducer=None)
    return folder


def changed(graph: Path, path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A graph with other metadata."""
    model = onnx.load(graph)
    entry = next(one for one in model.metadata_props if one.key == METADATA_KEY)
    said = json.loads(entry.value)
    change(said)
    entry.value = GraphSpec.from_dict(said, "test").to_json()
    onnx.save(model, path)

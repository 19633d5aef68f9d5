"""The file that an export writes: its spec, its axes, and that it appears only when it equals PyTorch."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("timm")


from attlas.engine.runtime.graph import read_spec
from attlas.errors import AttlasError
from attlas.exporter import GraphSpec
from attlas.exporter.differences import row_variation
from attlas.exporter.spec import METADATA_KEY
from attlas.exporter.taps.tapped import Tapped
from attlas.exporter.trace import export as graph_module
from attlas.exporter.trace.export import export_model
from attlas.exporter.trace.parity import compare
from support_export import DEIT, _plain_spec, make

# The file ------------------------------------------------------------------------------------------------------------


def test_spec_stands_in_the_file_and_beside_it(exported: Any) -> None:
    """Metadata, the JSON beside it and the result are one spec, and it names every output of the graph."""
    _, result = exported(DEIT)
    model = onnx.load(result.path, load_external_data=False)
    inside = {p.key: p.value for p in model.metadata_props}[METADATA_KEY]
    beside = result.path.with_suffix(".json").read_text(encoding="utf-8")
    assert GraphSpec.from_json(inside, "inside") == result.spec
    assert GraphSpec.from_json(beside, "beside") == result.spec
    assert [o.name for o in model.graph.output] == [o.name for o in result.spec.outputs]
    assert json.loads(beside)["attlas_format"] == 1
    assert result.spec.classes[0].id == "n01440764"


def test_batch_axis_is_dynamic_everywhere(exported: Any) -> None:
    """The input and every output but the constant name their first axis `batch`."""
    _, result = exported(DEIT)
    graph = onnx.load(result.path).graph
    for value in (*graph.input, *graph.output):
        if value.name != "position_embedding":
            assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_graph_that_differs_from_pytorch_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parity is proven before the file gets its name."""
    trace = graph_module.trace

    def wrong(tapped: Tapped, spec: GraphSpec) -> Any:
        tapped.model.blocks[0].attn.scale *= 1.5
        model = trace(tapped, spec)
        tapped.model.blocks[0].attn.scale /= 1.5
        return model

    monkeypatch.setattr(graph_module, "trace", wrong)
    with pytest.raises(AttlasError, match=r"rows of attention.0 differ .* nothing was written"):
        export_model(make(DEIT), tmp_path / "deit.onnx")
    assert list(tmp_path.iterdir()) == []


def test_export_says_its_stages_and_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each step as it begins and as it ends, with its seconds, to the callable; stdout and stderr stay the caller's."""
    said: list[str] = []
    export_model(make(DEIT), tmp_path / "deit.onnx", progress=said.append)
    assert [line.split()[0] for line in said] == ["tracing", "traced", "writing", "wrote", "comparing", "compared"]
    assert all(re.search(r" in \d+ s$", line) for line in said[1::2])
    assert max(map(len, said)) < 90
    assert capfd.readouterr() == ("", "")


def test_interrupted_export_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the graph is compared: what was not proven is gone."""

    def interrupted(*args: object, **options: object) -> None:
        assert [p.suffix for p in tmp_path.iterdir()] == [".partial"]
        raise KeyboardInterrupt

    monkeypatch.setattr(graph_module, "check", interrupted)
    killed = tmp_path / ".deit.onnx.k1ll_d00.partial"  # what another export of that name could not take away
    killed.mkdir()
    os.utime(killed, (1e9, 1e9))
    with pytest.raises(KeyboardInterrupt):
        export_model(make(DEIT), tmp_path / "deit.onnx")
    assert list(tmp_path.iterdir()) == []


def test_top1_that_changes_fails() -> None:
    """Another first class is another model, unless the two were tied."""
    spec = GraphSpec.from_dict(_plain_spec(), "test")
    maps = {"attention.0": np.full((1, 1, 2, 2), 0.5, np.float32)}
    expected = {"logits": np.array([[1.0, 0.9995, 0]], np.float32), **maps}
    tied = {"logits": np.array([[1.0, 0.999999, 0]], np.float32), **maps}
    swapped = {"logits": np.array([[0.9996, 1.0, 0]], np.float32), **maps}
    with pytest.raises(AttlasError, match="the first class agrees on 0% of the pictures"):
        compare(swapped, expected, spec)
    assert compare({"logits": tied["logits"][:, [1, 0, 2]], **maps}, tied, spec).top1 == 1


def test_row_variation_is_half_the_l1_distance() -> None:
    """Two disjoint rows are 1 apart, whatever their length."""
    a, b = np.eye(3)[None], np.roll(np.eye(3), 1, 0)[None]
    np.testing.assert_array_equal(row_variation(a, b), [[1, 1, 1]])
    np.testing.assert_array_equal(row_variation(a, a), [[0, 0, 0]])


def test_place_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any work where it is known, and where a disk is full later."""

    def refused(*given: Any, **options: Any) -> Any:
        raise OSError(28, "No space left on device")

    path = tmp_path / "deit.onnx"
    with pytest.raises(AttlasError, match=r"deit\.onnx: cannot be written \(No space"), graph_module._beside(path):
        refused()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(graph_module.tempfile, "mkdtemp", refused)
    with pytest.raises(AttlasError, match="cannot be written"), graph_module._beside(path):
        pass
    monkeypatch.setattr(graph_module.os, "access", lambda *given: False)
    with pytest.raises(AttlasError, match="nothing can be written to"):
        graph_module._target(path, overwrite=False)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("layers",), []),
        (("layers",), [0, 10**30]),
        (("layers",), [1, 0]),
        (("image_size", 0), -1),
        (("image_size", 1), 3),
        (("grid", 0), 10**29),
        (("heads",), 0),
        (("recipe", "crop"), [1, 2]),
        (("recipe",), 5),
        (("outputs", 0, "shape"), [None, -3]),
        (("outputs", 0, "shape"), [None]),
        (("outputs", 0, "shape"), [None, None]),
        (("outputs", 0, "shape"), [None, 10**18]),
        (("outputs", 0, "shape"), [None, 7]),
        (("outputs", 2, "shape"), [1, 2, 3, 4]),
    ],
)
def test_metadata_that_no_graph_has_is_refused_when_it_is_read(
    place: tuple[Any, ...], value: Any, exported: Any, tmp_path: Path
) -> None:
    """In one line, and not by what would have made buffers of these sizes."""
    _, result = exported(DEIT)
    model = onnx.load(result.path)
    entry = next(e for e in model.metadata_props if e.key == METADATA_KEY)
    said = json.loads(entry.value)
    at = said
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    entry.value = json.dumps(said)
    onnx.save(model, tmp_path / "edited.onnx")
    with pytest.raises(AttlasError, match=r"edited\.onnx: its attlas metadata is damaged .*export the model again"):
        read_spec(tmp_path / "edited.onnx")

"""The programs of docs/deployment.md: they run as they are printed, and the conformance vector is what they give."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attlas.engine.runtime.session import Session
from attlas.exporter.spec import NORMS, GraphSpec
from support import make_picture

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runtimes() -> Any:
    """benchmarks/runtimes.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("runtimes", ROOT / "benchmarks" / "runtimes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_on_the_graph_names_every_key_and_output() -> None:
    """docs/graph.md is the specification: what the spec holds and the exporter writes stands there."""
    text = (ROOT / "docs" / "graph.md").read_text(encoding="utf-8")
    for field in dataclasses.fields(GraphSpec):
        assert f"`{field.name}`" in text, field.name
    for name in ("logits", "features", "tokens", "pool_attention", "position_embedding"):
        assert f"| `{name}` |" in text
    for name in ("attention", "class_attention", "gradient", *NORMS):
        assert f"| `{name}.L` |" in text


def test_smallest_metadata_of_the_page_is_taken() -> None:
    """What the page prints for whoever writes graphs is read without a word, and means what it says."""
    text = (ROOT / "docs" / "graph.md").read_text(encoding="utf-8")
    spec = GraphSpec.from_json(text.split("```json")[1].split("```")[0], "docs/graph.md")
    assert (spec.tokens, spec.readout, spec.gradients, spec.norms) == (5, "class", False, False)
    output = spec.output("attention.0")
    assert output is not None
    assert output.shape == (None, spec.heads, spec.tokens, spec.tokens)


def test_every_runtime_has_a_program(runtimes: Any) -> None:
    """The page prints one for each, and each takes the same three places."""
    assert set(runtimes.programs()) == {"cpu.py", "cuda.py", "trt.py", "ov.py", "web.mjs", "node.mjs"}
    for name, text in runtimes.programs().items():
        if name.endswith(".py"):
            compile(text, name, "exec")


def test_program_for_the_cpu_writes_every_output(runtimes: Any, tiny_graph: Path, tmp_path: Path) -> None:
    """As printed, without attlas: the bytes are the session's."""
    pixels = np.stack([np.asarray(make_picture(i, 24, 16)) for i in range(3)])
    pixels.tofile(tmp_path / "pixels.bin")
    (tmp_path / "cpu.py").write_text(runtimes.programs()["cpu.py"])
    subprocess.run(
        [sys.executable, "cpu.py", str(tiny_graph), str(tmp_path), str(tmp_path / "out")], cwd=tmp_path, check=True
    )
    expected = Session(tiny_graph, provider="cpu")(list(pixels))
    for name in ("logits", "tokens"):
        found = np.fromfile(tmp_path / "out" / f"{name}.bin", np.float32)
        np.testing.assert_allclose(found, expected[name].ravel(), rtol=1e-5, atol=1e-6)
    for layer in (0, 1):
        found = np.fromfile(tmp_path / "out" / f"attention.{layer}.bin", np.float32)
        np.testing.assert_allclose(found, expected["attention"][:, layer].ravel(), rtol=1e-4, atol=1e-6)


def test_conformance_vector_holds_picture_pixels_and_what_comes_out(
    runtimes: Any, tiny_graph: Path, tmp_path: Path
) -> None:
    """The crop of the picture is the pixels; the sums over queries are those of the session's attention."""
    make_picture(4, 61, 47).save(tmp_path / "a.jpg")
    runtimes.write_vector(tiny_graph, tmp_path / "a.jpg", tmp_path / "vector")
    assert {p.name for p in (tmp_path / "vector").iterdir()} == {"picture.png", "pixels.bin", "expected.json"}
    expected = json.loads((tmp_path / "vector" / "expected.json").read_text())
    session = Session(tiny_graph, provider="cpu")
    pixels = np.fromfile(tmp_path / "vector" / "pixels.bin", np.uint8).reshape(expected["shape"])
    by_path, by_pixels = (session(one) for one in ([tmp_path / "vector" / "picture.png"], list(pixels)))
    np.testing.assert_array_equal(by_path["logits"], by_pixels["logits"])
    np.testing.assert_allclose(expected["logits"], by_path["logits"][0], rtol=1e-4, atol=1e-5)
    for layer in ("0", "1"):
        sums = by_path["attention"][0, int(layer)].sum(-2)
        np.testing.assert_allclose(expected["received"][layer], sums, rtol=1e-4)

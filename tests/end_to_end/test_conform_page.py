"""The programs of docs/conform.md run as they are printed, and what they give is judged."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import attlas
import numpy as np
import onnx
import pytest
from attlas.engine.conform import write_cases
from onnx import helper

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tiny_graph: Path, tmp_path: Path) -> Path:
    """A folder with the page's programs and cases of the tiny graph."""
    text = (ROOT / "docs" / "conform.md").read_text(encoding="utf-8")
    for code, name in re.findall(r"```(?:python|javascript)\n((?:#|//) (\S+\.m?[jp][sy])[^\n]*\n.*?)```", text, re.S):
        (tmp_path / name).write_text(code, encoding="utf-8")
    write_cases(tiny_graph, tmp_path / "cases.npz", limit=3, threads=1)
    return tmp_path


def run(*command: str | Path, cwd: Path) -> None:
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def needs_node() -> str:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    return node


def test_openvino_runs_the_cases(place: Path, tiny_graph: Path) -> None:
    """Under the names of the graph, also where OpenVINO has two for a tensor."""
    pytest.importorskip("openvino", reason="openvino is not installed")
    model, graph = onnx.load(tiny_graph), place / "two.onnx"
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["a_norm" if name == "tokens" else name for name in names]
    model.graph.node.append(helper.make_node("Identity", ["a_norm"], ["tokens"]))
    onnx.save(model, graph)
    run(sys.executable, "ov.py", graph, "cases.npz", "results.npz", cwd=place)
    result = attlas.conform(graph, place / "cases.npz", results=place / "results.npz")
    assert result.conforms
    assert (result.pictures, result.same_top1, result.notes) == (3, 3, ())


def test_javascript_reads_and_writes_npz(place: Path, tiny_graph: Path) -> None:
    """To the same numbers: what is read of the cases and written again is a perfect result."""
    program = """
    import { readFileSync, writeFileSync } from "node:fs";
    import { readNpz, writeNpz } from "./npz.mjs";
    const { image, ...outputs } = readNpz(readFileSync("cases.npz"));
    if (image.type !== "uint8" || image.data.length !== image.dims.reduce((a, b) => a * b)) throw new Error("image");
    writeFileSync("results.npz", writeNpz(outputs));
    """
    (place / "again.mjs").write_text(program)
    run(needs_node(), "again.mjs", cwd=place)
    cases, results = np.load(place / "cases.npz"), np.load(place / "results.npz")
    assert set(results.files) == set(cases.files) - {"image", "attlas"}
    for name in results.files:
        np.testing.assert_array_equal(results[name], cases[name])
    result = attlas.conform(tiny_graph, place / "cases.npz", results=place / "results.npz")
    assert result.conforms
    assert max(line.largest for line in result.lines) == 0


def test_onnxruntime_web_runs_the_cases(place: Path, tiny_graph: Path) -> None:
    node, packages = needs_node(), os.environ.get("ATTLAS_NODE")
    if not packages:
        pytest.skip(
            "onnxruntime-web is needed: set ATTLAS_NODE to a folder where `npm install onnxruntime-web` was run"
        )
    (place / "node_modules").symlink_to(Path(packages).resolve() / "node_modules")
    run(node, "web.mjs", tiny_graph, "cases.npz", "results.npz", cwd=place)
    assert attlas.conform(tiny_graph, place / "cases.npz", results=place / "results.npz").conforms

"""The programs of docs/deployment.md run as they are printed, and docs/graph.md names all that a graph holds."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from attlas.exporter.spec import NORMS, GraphSpec

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
    """The pages print one for each, and each takes the same three files."""
    found = runtimes.programs()
    assert set(found) == {"cpu.py", "cuda.py", "trt.py", "ov.py", "web.mjs", "node.mjs", "npz.mjs"}
    for name, text in found.items():
        assert name == "npz.mjs" or text.splitlines()[0].endswith(" GRAPH CASES RESULTS")
        if name.endswith(".py"):
            compile(text, name, "exec")


def test_table_judges_the_program_for_the_cpu(runtimes: Any, tiny_graph: Path, pictures: Path) -> None:
    """As printed, without attlas: it conforms, and every output was compared."""
    asked = {"graph": tiny_graph, "images": pictures, "count": 3}
    asked |= dict.fromkeys(("openvino", "node", "cuda", "trt"))
    title, _, *rows = runtimes.table(argparse.Namespace(**asked)).splitlines()
    assert title == "tiny_test, 3 pictures"
    assert len(rows) == 3
    cells = [cell.strip() for cell in rows[-1].strip("|").split("|")]
    assert cells[0] == "cpu.py"
    assert cells[4:7] == ["", "100%", "yes"]
    differences = [float(number) for cell in cells[1:4] for number in cell.split("/")]
    assert len(differences) == 4
    assert max(differences) < 1e-4

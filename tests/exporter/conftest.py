"""What the tests of export start from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("timm")


from attlas.engine.runtime.graph import read_spec
from attlas.exporter.models.build import Model
from attlas.exporter.trace.export import ExportResult, export_model
from attlas.exporter.trace.parity import Parity
from support_export import make


@pytest.fixture(scope="session")
def exported(once: Callable[[str, Callable[[Path], None]], Path]) -> Callable[[str], tuple[Model, ExportResult]]:
    """Each family is exported once for all tests, and all workers of pytest-xdist."""
    made = dict[str, tuple[Model, ExportResult]]()

    def export_into(folder: Path, built: Model) -> None:
        parity = export_model(built, folder / "graph.onnx").parity
        (folder / "parity.json").write_text(json.dumps(dataclasses.asdict(parity)))

    def get(name: str) -> tuple[Model, ExportResult]:
        if name not in made:
            built = make(name)
            folder = once(f"export-{name}", lambda folder: export_into(folder, built))
            path, parity = folder / "graph.onnx", Parity(**json.loads((folder / "parity.json").read_text()))
            made[name] = built, ExportResult(path, read_spec(path), parity, 0.0, path.stat().st_size)
        return made[name]

    return get

"""What the tests of export start from."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("timm")


from attlas.engine.runtime.graph import read_spec
from attlas.exporter.libraries.protocol import Model
from attlas.exporter.trace.export import ExportResult, export_model
from attlas.exporter.trace.parity import Parity
from support_export import make


@pytest.fixture(scope="session", autouse=True)
def _tables() -> Iterator[None]:
    """Keep two tables of torch, which it makes anew for each export in a quarter of a small one's time.

    Its translations to ONNX, and the operators that it knows.
    """
    with pytest.MonkeyPatch.context() as patch:
        with contextlib.suppress(ImportError, AttributeError):
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        with contextlib.suppress(ImportError, AttributeError):
            from torch._export import utils

            patch.setattr(utils, "_materialize_cpp_cia_ops", functools.cache(utils._materialize_cpp_cia_ops))
        yield


@pytest.fixture(scope="session")
def export_once(once: Callable[[str, Callable[[Path], Any]], Path]) -> Callable[..., ExportResult]:
    """`export_once(key, built, **options)` exports once for all tests, and all workers of pytest-xdist."""

    def export_into(folder: Path, built: Model, options: dict[str, Any]) -> None:
        parity = export_model(built, folder / "graph.onnx", **options).parity
        (folder / "parity.json").write_text(json.dumps(dataclasses.asdict(parity)))

    def get(key: str, built: Model, **options: Any) -> ExportResult:
        folder = once(f"export-{key}", lambda folder: export_into(folder, built, options))
        path, parity = folder / "graph.onnx", Parity(**json.loads((folder / "parity.json").read_text()))
        return ExportResult(path, read_spec(path), parity, 0.0, path.stat().st_size)

    return get


@pytest.fixture(scope="session")
def exported(export_once: Callable[..., ExportResult]) -> Callable[[str], tuple[Model, ExportResult]]:
    """A small model of each family, and its graph."""

    @functools.cache
    def get(name: str) -> tuple[Model, ExportResult]:
        built = make(name)
        return built, export_once(name, built)

    return get

"""What the tests of gradients start from."""

from __future__ import annotations

import pytest

pytest.importorskip("timm")


from attlas.exporter.models.build import Model
from attlas.exporter.trace.export import ExportResult, export_model
from support_gradients import make


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, ExportResult]:
    """A small deit with gradients, made once for all tests."""
    built = make()
    return built, export_model(built, tmp_path_factory.mktemp("graph") / "deit.onnx", gradients=True)

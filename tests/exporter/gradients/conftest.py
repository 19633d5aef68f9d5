"""What the tests of gradients start from."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("timm")


from attlas.exporter.libraries.protocol import Model
from attlas.exporter.trace.export import ExportResult
from support_gradients import make


@pytest.fixture(scope="session")
def exported(export_once: Callable[..., ExportResult]) -> tuple[Model, ExportResult]:
    """A small deit with gradients."""
    built = make()
    return built, export_once("gradients", built, gradients=True)

"""What the tests of report start from."""

from __future__ import annotations

from pathlib import Path

import pytest
from attlas.engine.store.store import Store
from support_report import (
    make_store,
)

pytest.importorskip("matplotlib")

page = pytest.importorskip("attlas.analysis.report.page")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path, Path]:
    """A whole store, its report, and the figures for print."""
    place = tmp_path_factory.mktemp("report")
    make_store(place / "s.zarr")
    out = page.report([place / "s.zarr"], place / "r.html", figures=place / "figures", examples=3)
    return Store(place / "s.zarr"), out, place / "figures"

"""What the tests of report start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attlas.engine.store.store import Store
from support_report import (
    make_store,
)

pytest.importorskip("matplotlib")

page = pytest.importorskip("attlas.analysis.report.page")


@pytest.fixture(scope="session")
def made(once: Callable[[str, Callable[[Path], Any]], Path]) -> tuple[Store, Path, Path]:
    """A whole store, its report, and the figures for print."""

    def make(folder: Path) -> None:
        make_store(folder / "s.zarr")
        page.report([folder / "s.zarr"], folder / "r.html", figures=folder / "figures", examples=3)

    folder = once("report", make)
    return Store(folder / "s.zarr"), folder / "r.html", folder / "figures"

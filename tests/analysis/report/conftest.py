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


@pytest.fixture
def quick_print(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty PDF and PNG files, for tests of numbers: with their fonts and pixels, they take half of a report's time."""
    from matplotlib.figure import Figure

    save = Figure.savefig

    def quick(figure: Figure, target: Any, **options: Any) -> None:
        if str(target).endswith((".pdf", ".png")):
            Path(target).touch()
        else:
            save(figure, target, **options)

    monkeypatch.setattr(Figure, "savefig", quick)

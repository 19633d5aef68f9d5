"""What the tests of reports share with those of distributions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


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


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty drawings, for tests of a page's words: every figure is composed, and none is written."""
    page = pytest.importorskip("attlas.analysis.report.page")
    render = pytest.importorskip("attlas.analysis.report.render")
    for module in (page, render):
        monkeypatch.setattr(module, "svg", lambda _figure: '<svg width="9pt" height="9pt"></svg>')

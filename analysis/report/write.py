"""Figures for print, and the numbers that they show."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from .plots.style import write
from .sections.base import Figure

__all__ = ["write_figure"]


def write_figure(figure: Figure, printed: Any, drawn: str, folder: Path, name: str, scale: float) -> None:
    """PDF, SVG and PNG, `scale` larger, of what is `printed`, whose SVG is `drawn`, and its numbers as CSV."""
    write(printed, drawn, folder, name, scale)
    target = io.StringIO(newline="")
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(figure.columns)
    writer.writerows(figure.rows)
    (folder / f"{name}.csv").write_text(target.getvalue(), "utf-8")

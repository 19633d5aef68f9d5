"""What all figures share: their widths, colours and style, and how they are written."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl

from .svg import shrunk

__all__ = [
    "ACCENT", "COLOURS", "FAINT", "INK", "NARROW", "QUIET", "SERIES", "WIDE", "style", "svg", "write",
]  # fmt: skip

NARROW, WIDE = 3.25, 6.75  # one and two columns of a printed page, inches

INK, QUIET, FAINT = "#1f2328", "#6b7280", "#d5d9de"
ACCENT = "#2b5c8a"
# Okabe & Ito's colours, which readers with any colour vision tell apart.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8a8a00")
COLOURS = "magma"  # perceptually uniform, and monotone in lightness when printed in grey

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 7.5, "axes.labelsize": 7.5, "axes.titlesize": 8,
    "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.fontsize": 7, "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": QUIET, "xtick.color": QUIET, "ytick.color": QUIET, "xtick.labelcolor": INK,
    "ytick.labelcolor": INK, "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "xtick.major.size": 2.5, "ytick.major.size": 2.5, "axes.spines.top": False, "axes.spines.right": False,
    "figure.facecolor": "white", "savefig.facecolor": "white", "axes.titlepad": 6, "pdf.fonttype": 42,
    "svg.fonttype": "path", "svg.hashsalt": "attlas", "image.interpolation": "none",
}  # fmt: skip


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib as figures are drawn with, whatever the user's own settings are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def svg(figure: Any) -> str:
    """The figure as SVG, text as outlines so that it looks alike everywhere, as small as keeps it sharp."""
    target = io.BytesIO()
    with style():
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    return shrunk(target.getvalue().decode())


def write(figure: Any, folder: Path, name: str) -> None:
    """`name.pdf` with embedded TrueType fonts, `name.svg` with text as outlines, and `name.png` at 300 dpi."""
    with style():
        for path, options in (
            (folder / f"{name}.pdf", {"metadata": {"CreationDate": None, "Creator": None, "Producer": None}}),
            (folder / f"{name}.svg", {"metadata": {"Date": None, "Creator": None}}),
            (folder / f"{name}.png", {"dpi": 300, "metadata": {"Software": None}}),
        ):
            figure.savefig(path, **options)

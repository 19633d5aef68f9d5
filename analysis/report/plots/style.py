"""What all figures share: their widths, colours and style, and how they are written."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import font_manager

__all__ = [
    "ACCENT",
    "CATEGORIES",
    "COLOURS",
    "DARK",
    "DEPTHS",
    "FAINT",
    "INK",
    "NARROW",
    "PAPER",
    "POINTS",
    "QUIET",
    "SERIES",
    "STYLES",
    "WIDE",
    "Widths",
    "colour_of",
    "dashed",
    "layer_ticks",
    "style",
    "svg",
    "write",
]

NARROW, WIDE = 3.25, 6.75  # one and two columns of a printed page, inches


@dataclass(frozen=True, slots=True)
class Widths:
    """How wide figures are laid out, in inches; `scale` is by how much they are drawn larger than that."""

    narrow: float = NARROW
    wide: float = WIDE
    scale: float = 1.0


# For a talk, words and lines are half as large again beside what they name.
STYLES = {"paper": Widths(), "talk": Widths(NARROW, WIDE / 1.5, 1.5)}

PAPER, INK, QUIET, FAINT, POINTS = "#ffffff", "#1f2328", "#6b7280", "#d5d9de", "#b6bcc4"
ACCENT = "#2b5c8a"
# Statistics: what is measured has one colour wherever it is drawn.
STATISTICS = {"distance": ACCENT, "entropy": "#9c5a0c", "effective_tokens": "#9c5a0c"}
OTHER = "#4b6a5d"
# Okabe & Ito's colours, which readers with any colour vision tell apart: a store each.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8a8a00")
# Whatever else a model has: a kind of token looks the same in every figure and every report.
CATEGORIES = {
    "class": "#0072b2",
    "distillation": "#e69f00",
    "register": "#cc79a7",
    "itself": "#00543d",
    "neighbours": "#009e73",
    "patches": "#8fd3bd",
}
COLOURS, DEPTHS = (
    "magma",
    "viridis",
)  # maps; layers from first to last: perceptually uniform, and monotone in lightness when printed in grey

# Colours on a dark page; photographs, maps and colours that are not named here stay as they are.
DARK = {
    PAPER: "#1c2026",
    INK: "#e4e7eb",
    QUIET: "#9aa4b0",
    FAINT: "#4a545f",
    POINTS: "#59626e",
    ACCENT: "#7fb2e5",
    "#9c5a0c": "#e0a458",
    OTHER: "#93b8a8",
    "#0072b2": "#3a9ad9",
    "#000000": "#e4e7eb",
    "#00543d": "#0f6b50",
    "#009e73": "#14b88a",
}

STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    # Text stays text in SVG: of these the reader's machine takes the first that it has. All have about one width.
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Bitstream Vera Sans"],
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "savefig.facecolor": PAPER,
    "axes.titlepad": 6,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "attlas",
    "image.interpolation": "none",
    "image.composite_image": False,  # each map keeps its own cells, however many stand on one sheet
}

# For scripts that the fonts above lack, the first that the machine has: Debian's, Windows's and macOS's.
SCRIPTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "PingFang SC",
    "Hiragino Sans",
    "Arial Unicode MS",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
)
# What matplotlib says of a character that no font has, with the path of whatever drew it; it draws a box.
UNDRAWN = r"Glyph \d+ .*missing from|Matplotlib currently does not support .* natively"
# Control characters, which no XML may hold.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib as figures are drawn with, whatever the user's own settings are."""
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", UNDRAWN, UserWarning)
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE | {"font.family": [STYLE["font.family"], *_more_fonts()]})
        yield


def _more_fonts() -> list[str]:
    """Of `SCRIPTS`, what matplotlib finds."""
    found = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in SCRIPTS if name in found]


def svg(figure: Any, dpi: float | str = "figure") -> str:
    """The figure as SVG, with its text as text; a reader's machine finds fonts for other scripts by itself."""
    target = io.BytesIO()
    with style():
        figure.savefig(target, format="svg", dpi=dpi, metadata={"Date": None, "Creator": None})
    drawn = CONTROL.sub("\N{REPLACEMENT CHARACTER}", target.getvalue().decode())
    for name in _more_fonts():
        drawn = drawn.replace(f", {name!r}", "")
    return drawn


def write(figure: Any, drawn: str, folder: Path, name: str, scale: float = 1.0) -> None:
    """`name.pdf` with embedded TrueType fonts, `name.svg`, which is `drawn`, `name.png` at 300 dpi times `scale`."""
    (folder / f"{name}.svg").write_text(drawn, "utf-8")
    with style():
        figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
        figure.savefig(folder / f"{name}.png", dpi=300 * scale, metadata={"Software": None})


# -- what several plots draw alike -------------------------------------------------------------------------------------


def colour_of(name: str) -> str:
    """A statistic's own colour, the same in every figure: what is about distance, about entropy, and all else."""
    return next((colour for part, colour in STATISTICS.items() if part in name), OTHER)


def dashed(ax: Any, value: float) -> None:
    """The line of what uniform attention gives, or of no difference."""
    ax.axhline(value, color=QUIET, lw=0.9, ls=(0, (4, 3)), zorder=1)


def layer_ticks(layers: Sequence[int]) -> list[int]:
    """At most twelve layers to name at an axis."""
    step = -(-len(layers) // 12)
    return [int(layer) for layer in layers][::step]

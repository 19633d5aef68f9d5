"""Words of any script in figures: by fonts that the machine has, and never a warning."""

from __future__ import annotations

import warnings
from pathlib import Path
from xml.etree import ElementTree

import pytest

style = pytest.importorskip("attlas.analysis.report.plots.style")
figure = pytest.importorskip("matplotlib.figure")
font_manager = pytest.importorskip("matplotlib.font_manager")


def drawn(title: str) -> str:
    with style.style():
        one = figure.Figure(figsize=(2, 1))
        one.subplots().set_title(title)
    svg: str = style.svg(one)
    return svg


def test_characters_without_a_font_and_control_characters_are_drawn_in_silence() -> None:
    """Nothing of whoever runs it on the screen, and SVG that browsers read."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = drawn("猫\x01 \U00013000 हिन्दी \x1b[0m")
    words = [one.text for one in ElementTree.fromstring(svg).iter() if "�" in (one.text or "")]
    assert words == ["猫� \U00013000 हिन्दी �[0m"]
    with style.style(), pytest.warns(UserWarning, match="something else"):
        warnings.warn("something else", UserWarning, stacklevel=1)


def test_fonts_for_other_scripts_come_after_ours_where_the_machine_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are not there are not asked for; the same SVG on every machine."""
    monkeypatch.setattr(style, "SCRIPTS", ("No Such Font",))
    plain = drawn("a cat")
    monkeypatch.setattr(style, "SCRIPTS", ("No Such Font", "STIXGeneral"))
    with style.style():
        used = font_manager.FontProperties().get_family()
    assert used == ["sans-serif", "STIXGeneral"]
    assert drawn("a cat") == plain
    assert "'DejaVu Sans'" in plain


def test_what_is_shown_is_written_as_svg_that_reads(tmp_path: Path) -> None:
    shown = pytest.importorskip("attlas.analysis.show.show")
    one = figure.Figure(figsize=(2, 1))
    one.text(0, 0, "猫\x01")
    path = shown.Shown(one, "a cat").save(tmp_path / "x.svg")
    assert ElementTree.fromstring(path.read_text("utf-8")).tag.endswith("svg")

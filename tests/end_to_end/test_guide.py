"""The guide: what it tells a reader to type is what the program takes, and what it shows is there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import numpy as np
import pytest
from attlas.cli import cli
from attlas.engine import runner
from attlas.engine.store.store import Store

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guide.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", GUIDE, re.M | re.S)


def commands() -> list[list[str]]:
    """Every command of ours in the guide, as words."""
    text = "\n".join(block for kind, block in BLOCKS if kind == "sh").replace("\\\n", " ")
    _, _, table = GUIDE.partition("<!-- table of commands -->")
    text += "\n" + "\n".join(re.findall(r"^\| .* \| `(.+)` \|$", table.partition("\n\n")[0], re.M))
    parts = [part.strip() for line in text.splitlines() for part in line.split("&&")]
    return [shlex.split(part, comments=True)[1:] for part in parts if part.startswith("attlas ")]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_is_one_that_the_program_takes(words: list[str]) -> None:
    """Names of commands and options, their values, and the names of statistics."""
    command = cli.commands[words[0]]
    with click.Context(cli) as parent:
        context = command.make_context(words[0], list(words[1:]), parent=parent)
    if words[0] == "analyze":
        catalog = pytest.importorskip("attlas.analysis.catalog")
        assert len(catalog.find(context.params["names"])) == len(context.params["names"])
    if words[0] == "show":
        maps = pytest.importorskip("attlas.analysis.show.maps")
        assert [maps.named(name).formula is not None for name in context.params["maps"]] == [True] * len(
            context.params["maps"]
        )


def test_every_figure_is_there_and_has_words() -> None:
    shown = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", GUIDE)
    assert len(shown) >= 8
    for words, path in shown:
        assert (ROOT / "docs" / path).is_file(), path
        assert len(words) > 25


def test_the_boxes_are_of_the_demonstrations_photographs() -> None:
    photos = pytest.importorskip("attlas.engine.photos")
    boxes = json.loads((ROOT / "docs" / "boxes.json").read_text("utf-8"))
    assert {Path(image["file_name"]).stem for image in boxes["images"]} <= set(photos.PHOTOS)
    sizes = {image["id"]: (image["width"], image["height"]) for image in boxes["images"]}
    for one in boxes["annotations"]:
        (x, y, width, height), (right, bottom) = one["bbox"], sizes[one["image_id"]]
        assert 0 <= x < x + width <= right
        assert 0 <= y < y + height <= bottom


def test_the_detectors_program_is_whole() -> None:
    (program,) = [block for kind, block in BLOCKS if kind == "python" and "torchvision" in block]
    compile(program, "boxes.py", "exec")


def test_a_statistic_of_ones_own_goes_through_as_the_guide_has_it(
    tiny_graph: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The example is run on pictures without labels, as the demonstration's are; what it computes is what it says."""
    pytest.importorskip("attlas.analysis.statistics.analysis")
    (program,) = [block for kind, block in BLOCKS if kind == "python" and "attlas.Statistic(" in block]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photographs").mkdir()
    for one in sorted(pictures.rglob("*.*"))[:9]:
        (tmp_path / "photographs" / one.name).hardlink_to(one)
    runner.run(tiny_graph, tmp_path / "photographs", tmp_path / "deit.zarr")
    exec(compile(program, "own.py", "exec"), {})
    store = Store(tmp_path / "deit.zarr")
    np.testing.assert_allclose(store.read("diagonal_mean"), store.read("self_mass_mean"), rtol=1e-6)
    assert (store.read("diagonal.reach-1_mean") > store.read("diagonal_mean")).all()
    assert store.dims("diagonal_q_by_predicted") == ("predicted_group", "layer", "head")
    assert capsys.readouterr().out

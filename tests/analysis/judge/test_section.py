"""What the report shows of a judgement."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import pytest
from attlas.engine.store.store import Store

pytest.importorskip("matplotlib")
sections = pytest.importorskip("attlas.analysis.report.sections.judgement")
base = pytest.importorskip("attlas.analysis.report.sections.base")
facts = pytest.importorskip("attlas.analysis.report.facts")
judging = pytest.importorskip("attlas.analysis.judge")


def parts(path: Path) -> list[Any]:
    store = Store(path)
    return list(sections.judgement(base.Context(store, facts.gather(store), 4)))


def test_says_nothing_where_nothing_was_judged(made: Any) -> None:
    assert parts(made.store) == []


def test_shows_curves_differences_and_where_maps_disagree(made: Any, tmp_path: Path) -> None:
    """With the numbers that the store holds."""
    path = Path(shutil.copytree(made.store, tmp_path / "s.zarr"))
    names = ["rollout", "readout_map:layer=0"]
    verdict = attlas.judge(path, made.graph, made.images, maps=names, steps=3).verdict
    curves, areas, differences, disagreement = parts(path)
    assert len(curves.rows) == 2 * 5 * 4  # curves, maps, points
    at = verdict.maps.index("rollout")
    wanted = [("deletion", "rollout", float(x), float(y)) for x, y in
              zip(verdict.removed, verdict.curves["deletion"][0, at, 1], strict=True)]  # fmt: skip
    assert [row[:4] for row in curves.rows if row[:2] == ("deletion", "rollout")] == wanted
    assert [row[0] for row in areas.rows] == list(verdict.maps)
    assert areas.rows[at][1].startswith(f"{verdict.mean[0, at, 1]:.3f} (")
    assert [row[0] for row in differences.rows] == [
        "readout_map.layer-0 less rollout",
        *(f"{one} less {other}" for one in ("readout_map.layer-0", "rollout")
          for other in ("uniform", "centre", "random")),
    ]  # fmt: skip
    store = Store(path)
    places = [store.read(f"judged.mean-3.{name}")[:, 5] for name in ("readout_map.layer-0", "rollout")]
    off = np.abs(places[0] - places[1])
    first = int(np.nanargmax(off))
    assert disagreement.rows[0][0] == str(store.read("path", first))
    assert len(disagreement.rows) == 2 * 10
    for figure in (curves, disagreement):
        assert figure.draw(False).get_size_inches()[0] > 3
    assert "n = 12 images" in curves.caption

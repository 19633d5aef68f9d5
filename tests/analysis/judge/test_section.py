"""What the report shows of a judgement."""

from __future__ import annotations

import dataclasses
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
summary = pytest.importorskip("attlas.analysis.statistics.summary")
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
    wanted = [
        ("deletion", "rollout", float(x), float(y))
        for x, y in zip(verdict.removed, verdict.curves["deletion"][0, at, 1], strict=True)
    ]
    assert [row[:4] for row in curves.rows if row[:2] == ("deletion", "rollout")] == wanted
    assert [row[0] for row in areas.rows] == list(verdict.maps)
    assert areas.rows[at][1].startswith(f"{verdict.mean[0, at, 1]:.3f} (")
    assert [row[0] for row in differences.rows] == [
        "readout_map.layer-0 less rollout",
        *(
            f"{one} less {other}"
            for one in ("readout_map.layer-0", "rollout")
            for other in ("uniform", "centre", "random")
        ),
    ]
    store = Store(path)
    places = [store.read(f"judged.mean-3.{name}")[:, 5] for name in ("readout_map.layer-0", "rollout")]
    off = np.abs(places[0] - places[1])
    first = int(np.nanargmax(off))
    assert disagreement.rows[0][0] == str(store.read("path", first))
    assert len(disagreement.rows) == 2 * 10
    split = [
        [name for name in sections._areas(dataclasses.replace(verdict, images=counts)).head if "," in name]
        for counts in ((12, 7, 5), (12, 12, 0), (12, 0, 0))
    ]
    assert split == [["difference, right", "difference, wrong"], [], []]
    assert sections._number(-0.0002, (-0.001, -0.0001)) == "0.000 (-0.001 to 0.000)"
    for figure in (curves, disagreement):
        assert figure.draw(False).get_size_inches()[0] > 3
    assert "n = 12 images" in curves.caption


def test_says_which_intervals_are_over_other_samples(made: Any, tmp_path: Path) -> None:
    """A judgement before images were clustered; judged again it says nothing."""
    path = Path(shutil.copytree(made.store, tmp_path / "s.zarr"))
    attlas.judge(path, made.graph, made.images, maps=["rollout"], steps=2)
    assert isinstance(parts(path)[0], base.Figure)
    attlas.analyze(path, cluster="label")
    note = parts(path)[0]
    assert "over clusters by label" in note.title
    assert note.lines == ["mean-2: over single images"]
    attlas.judge(path, made.graph, made.images, maps=["rollout"], steps=2)
    assert isinstance(parts(path)[0], base.Figure)


def test_shows_masks_boxes_and_heads_where_they_were_judged(made: Any, tmp_path: Path) -> None:
    """Heads in the order of what is lost."""
    store = Store(Path(shutil.copytree(made.store, tmp_path / "s.zarr")), writable=True)
    loss = np.array([[[0.1, 0.0, np.nan], [0.3, 0.2, np.nan]], [[-0.1, 0.0, np.nan], [0.2, 0.0, np.nan]]])
    arrays = {
        "segmentation_map": (("m",), np.array(["rollout"], np.dtypes.StringDType()), {}),
        "segmentation_figure": (("f",), np.array(["mean_iou"], np.dtypes.StringDType()), {}),
        "segmentation_mean": (("m", "f"), np.array([[0.25]]), {"images": 7}),
        "segmentation_interval": (("bound", "m", "f"), np.array([[[0.125]], [[0.5]]]), {}),
        "localisation_map": (("l",), np.array(["rollout"], np.dtypes.StringDType()), {}),
        "localisation_figure": (("g",), np.array(["pointing"], np.dtypes.StringDType()), {}),
        "localisation_mean": (("l", "g"), np.array([[0.5]]), {"images": 6, "objects": 8}),
        "localisation_interval": (("bound", "l", "g"), np.array([[[0.25]], [[0.75]]]), {}),
        "judged_heads_mean.zero": (("layer", "head", "loss"), loss, {"images": 7}),
        "judged_heads_interval.zero": (("bound", "layer", "head", "loss"), np.stack([loss - 1, loss + 1]), {}),
        "judged_heads_rank.zero": (("loss",), np.array([0.5, 0, 0]), {}),
        "judged_heads_rank_interval.zero": (("bound", "loss"), np.array([[0.25, 0, 0], [0.75, 0, 0]]), {}),
    }
    specs = [summary.spec_of(name, summary.Summed(*one)) for name, one in arrays.items()]
    store.add(specs, {name: values for name, (_, values, _) in arrays.items()})
    masks, boxes, heads = parts(Path(store.path))
    assert boxes.rows == [("rollout", "0.500 (0.250 to 0.750)")]
    assert "n = 6 images, 8 objects" in boxes.caption
    assert masks.rows == [("rollout", "0.250 (0.125 to 0.500)")]
    assert [row[0] for row in heads.rows] == [f"layer {a}, head {b}" for a, b in ((0, 1), (1, 1), (0, 0), (1, 0))]
    assert heads.rows[0][1:] == ("+0.300 (-0.700 to +1.300)", "+0.200 (-0.800 to +1.200)", "–")
    assert "+0.500 (+0.250 to +0.750)" in heads.caption

"""What a page says of its samples: how many images, in which clusters, and what they are too few for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attlas.engine.store.store import Store
from support_report import add, context_of, make_store

pytest.importorskip("matplotlib")
comparison = pytest.importorskip("attlas.analysis.report.sections.comparison")
depth = pytest.importorskip("attlas.analysis.report.sections.depth")
facts = pytest.importorskip("attlas.analysis.report.facts")
groups = pytest.importorskip("attlas.analysis.report.sections.groups")
inference = pytest.importorskip("attlas.analysis.statistics.inference")
statistics = pytest.importorskip("attlas.analysis.statistics")
CATALOG = pytest.importorskip("attlas.analysis.catalog").CATALOG

HEADS = ("layer", "head")


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Eight images of four videos, the fourth image unreadable, analysed over videos."""
    store = make_store(tmp_path_factory.mktemp("report") / "s.zarr", images=8, reduce=True)
    store = add(store, "video", ("image",), np.array([0, 0, 0, 1, 1, 2, 2, 3]))
    statistics.analyze(store.path, ["distance", "distance_renormalized", "entropy"], by="label", cluster="video")
    return Store(store.path)


def test_captions_state_the_effective_number_of_images(clustered: Store) -> None:
    valid = clustered.read("valid").astype(bool)
    sizes = np.unique(clustered.read("video")[valid], return_counts=True)[1]
    n = f"n = 7 images in 4 clusters by video, effective n = {7**2 / (sizes**2).sum():.4g}"
    context = context_of(clustered)
    assert context.facts.n == n
    (figure,) = depth.distance(context)
    assert figure.caption.endswith(f"{n}.")
    assert n in next(groups.groups(context)).caption
    found = comparison.comparison([context, context_of(clustered, "B")])
    side = next(part for one in found for part in one.parts(context) if hasattr(part, "caption"))
    assert f"The same {n} in every store" in side.caption
    assert f"With fewer than 20 images or clusters, 95 % intervals are wide and rough: {n}." in facts.warnings(
        context.facts
    )


def test_one_image_has_no_interval_and_is_drawn(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", images=1, reduce=True)
    statistics.analyze(store.path, ["distance", "distance_renormalized"])
    context = context_of(Store(store.path))
    assert "There are no intervals, which take two images or clusters: n = 1 image." in facts.warnings(context.facts)
    (figure,) = depth.distance(context)
    assert all(np.isnan(row[4]) and np.isnan(row[5]) and row[3] > 0 for row in figure.rows)
    for ax in figure.draw(False).axes:
        assert ax.get_ylim()[1] > max(row[3] for row in figure.rows if row[0] == ax.get_title("left"))


def test_heads_farther_than_uniform_attention_look_at_the_border(tmp_path: Path) -> None:
    """The page says which layers, and how much of the mass the border holds, once that is known."""
    store = make_store(tmp_path / "s.zarr", images=4, reduce=True)
    uniform = depth.CATALOG["distance_renormalized"].uniform(store.spec)
    mean = np.array([[0.5, 0.9], [1.2, 1.0]]) * uniform
    for name, values in (("distance", mean), ("distance_renormalized", mean)):
        store = add(store, f"{name}_mean", HEADS, values)
        store = add(store, f"{name}_interval", ("bound", *HEADS), np.stack([values, values]))
    (figure,) = depth.distance(context_of(store))
    assert "1 head (layer 1) is more than 1.05 × as far as uniform attention" in figure.caption
    assert "`attlas analyze s.zarr border_mass` says how much." in figure.caption
    ring = np.array([[0.1, 0.2], [0.93, 0.4]])
    store = add(store, "border_mass_mean", HEADS, ring)
    store = add(store, "border_mass_interval", ("bound", *HEADS), np.stack([ring, ring]))
    (figure,) = depth.distance(context_of(store))
    assert "it holds 93% to 93% of their patch mass, and 80% of the patches." in figure.caption


def test_q_values_of_an_earlier_test_are_not_shown(clustered: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "TEST", "a test of a later version")
    absent = next(part for part in groups.groups(context_of(clustered)) if hasattr(part, "reason"))
    assert "`attlas analyze s.zarr --by label` makes them anew" in absent.reason


@pytest.mark.parametrize("module", [groups, comparison])
def test_bands_of_a_share_stay_between_none_and_all(module: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """What averages heads by group or store asks for its intervals as the statistic's own summary does."""
    store = make_store(tmp_path / "s.zarr", images=16, reduce=True)
    statistics.analyze(store.path, ["sink_share"], by="label")
    asked = []

    def spy(values: Any, **options: Any) -> Any:
        asked.append(options["within"])
        return inference.interval(values, **options)

    monkeypatch.setattr(module, "interval", spy)
    one, two = (context_of(Store(store.path), letter) for letter in "AB")
    if module is groups:
        monkeypatch.setattr(groups, "_tested", lambda *_: [("sink_share", CATALOG["sink_share"])])
        list(groups.groups(one))
    else:
        measure = comparison._Measure(CATALOG["sink_share"])
        comparison._lines([comparison._read(each, np.arange(16), "red", measure) for each in (one, two)])
    assert asked == [(0.0, 1.0)] * 2

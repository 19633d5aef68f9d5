"""Statistics that are there stay until the new ones are whole, wherever an analysis fails, is refused or is killed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attlas.engine.store import locks
from attlas.engine.store.store import ArraySpec, Store
from attlas.errors import AttlasError
from support_statistics import IMAGES, attention, fill_unit, make_store

statistics = pytest.importorskip("attlas.analysis.statistics")
catalog = pytest.importorskip("attlas.analysis.catalog")
facts = pytest.importorskip("attlas.analysis.report.facts")
base = pytest.importorskip("attlas.analysis.report.sections.base")
page = pytest.importorskip("attlas.analysis.report.page")
writing = pytest.importorskip("attlas.analysis.statistics.writing").writing

NAMES = ["distance", "rollout", "entropy_histogram"]


def moments(path: Path, folder: Path, work: Callable[[], Any], step: int) -> list[tuple[int, Path]]:
    """Does the work, and copies the store before every change of a file (every second or third) that it makes.

    What lies there then is what a process leaves that is killed at this moment.
    """
    copies: list[tuple[int, Path]] = []
    count = 0

    def watched(change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count % step == 1 % step:
                copies.append((count, folder / f"{count}.zarr"))
                shutil.copytree(path, copies[-1][1])
            return change(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", watched(Path.replace))
        patch.setattr(Path, "unlink", watched(Path.unlink))
        patch.setattr(shutil, "rmtree", watched(shutil.rmtree))
        work()
    return copies


def values(path: Path) -> dict[str, np.ndarray]:
    """What the analysis has in a store."""
    store = Store(path)
    return {name: store.read(name) for name in store.attrs.get("analyzed", ())}


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool(np.all((one == other) | ((one != one) & (other != other))))


def growing(path: Path) -> Store:
    """A store that was summed up when it had two of its units, and no image of the class `late`; all are done now."""
    store = make_store(path, units=[0, 1])
    statistics.analyze(path, [*NAMES, "entropy"], workers=1)
    statistics.analyze(path, [*NAMES[:2]], by="label", workers=1)
    for k in (2, 3, 4, 5):
        fill_unit(store, k, attention())
    return store


CASES: dict[str, tuple[dict[str, Any], int]] = {
    "analyze": ({"names": NAMES}, 1),
    "by label": ({"names": NAMES[:2], "by": "label"}, 3),
    "overwrite": ({"names": NAMES, "overwrite": True}, 2),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("begun") / "s.zarr"
    growing(path)
    return path


@pytest.mark.parametrize("case", CASES)
def test_wherever_an_analysis_is_killed_every_statistic_is_the_old_or_the_new_one(
    case: str, begun: Path, tmp_path: Path
) -> None:
    """All of them of one moment, read with their shapes, by a report too; and the same command ends as undisturbed."""
    choices, step = CASES[case]
    shutil.copytree(begun, tmp_path / "whole.zarr")
    old = values(begun)
    whole = tmp_path / "whole.zarr"
    copies = moments(whole, tmp_path, lambda: statistics.analyze(whole, workers=1, **choices), step)
    new = values(whole)
    sums = [name for name in old if Store(begun).dims(name)[:1] != ("image",)]
    assert not all(alike(old[name], new[name]) for name in sums)
    for at, path in copies:
        found = values(path)
        assert all(alike(found[name], old[name]) for name in sums) or all(alike(found[n], new[n]) for n in new)
        for name in set(old) - set(sums):  # rows come unit by unit
            assert alike(found[name][:8], old[name][:8])
        store = Store(path)
        if at % 9 == 1:  # each takes as long as the analysis
            assert facts.gather(store).valid == IMAGES - 1
            summary = base.summary(store, "distance")
            assert summary is not None
            assert np.isfinite(summary.mean).all()
            statistics.analyze(path, workers=1, **choices)
            again = values(path)
            assert again.keys() == new.keys()
            assert [name for name in new if not alike(again[name], new[name])] == []
            end, ends = Store(path), Store(whole)
            assert all(end.array(name).attrs == ends.array(name).attrs for name in new)
    assert copies[-1][0] > 20


def test_a_reader_of_before_goes_on_reading_what_it_opened(begun: Path, tmp_path: Path) -> None:
    """Also where the groups have become more."""
    shutil.copytree(begun, tmp_path / "s.zarr")
    store = Store(tmp_path / "s.zarr")
    before = {name: store.read(name) for name in ("distance_mean", "distance_mean_by_label")}
    statistics.analyze(tmp_path / "s.zarr", ["distance"], by="label")
    for name, read in before.items():
        np.testing.assert_array_equal(store.read(name), read)
        assert not alike(Store(tmp_path / "s.zarr").read(name), read)


def test_what_is_not_new_is_not_written_again(tmp_path: Path) -> None:
    make_store(tmp_path / "s.zarr")
    for _ in range(2):
        statistics.analyze(tmp_path / "s.zarr", by="label")
        files = {p: p.stat().st_mtime_ns for p in (tmp_path / "s.zarr").rglob("*") if p.is_file()}
    statistics.analyze(tmp_path / "s.zarr", by="label")
    assert {p: p.stat().st_mtime_ns for p in files} == files


def test_what_killed_writers_left_half_written_goes_with_the_next_of_their_kind(tmp_path: Path) -> None:
    """Never with another's, which may be writing: a run's with a run, an analysis' with an analysis."""
    path = tmp_path / "s.zarr"
    make_store(path)
    statistics.analyze(path, ["distance"])
    names = ("zarr.json", "distance/c.0.0.0", "distance_mean/c.0.0", "never_listed/c.0")
    of_analysis = [path / f"{name}.9-9.partial" for name in names]
    of_run = [path / f"{name}.9-9.partial" for name in ("attention/c.0.0.0.0.0", "run/zarr.json", "run/done/c.0")]
    (path / "never_listed").mkdir()
    for file in (*of_run, *of_analysis):
        file.write_bytes(b"half a")
    assert Store(path).sweep() == 3
    assert not any(file.exists() for file in of_run)
    for file in of_run:
        file.write_bytes(b"half a")
    statistics.analyze(path, ["distance"])
    assert sorted(path.rglob("*.partial")) == sorted(of_run)


def test_one_analysis_writes_at_a_time_beside_a_run_and_readers(tmp_path: Path) -> None:
    """A second one is told so, a report shows what is there, and the store is not deleted."""
    path, said = tmp_path / "s.zarr", list[str]()
    make_store(path)
    statistics.analyze(path, ["entropy"])
    refusal = "s.zarr: another analysis or judgement is writing it; wait until it has ended, and run this again"
    with writing(path) as store, ThreadPoolExecutor(1) as other:
        with pytest.raises(AttlasError, match=refusal):
            other.submit(statistics.analyze, path, ["entropy"]).result()
        assert "entropy_mean" in other.submit(page._ready, path, said.append, []).result()
        assert said[-1].endswith(refusal)
        with pytest.raises(AttlasError, match="an analysis is writing it; stop that first"):
            other.submit(Store.remove, path).result()
        other.submit(fill_unit, store, 0, attention()).result()
        statistics.analyze(path, ["entropy"])  # as a judgement does
    with locks.locked(path, (1, 1)):
        assert statistics.analyze(path).summed
    Store.remove(path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_process_that_was_forked_meanwhile_does_not_keep_the_lock(tmp_path: Path) -> None:
    """An executor's outlive an analysis, and may outlive whoever began it."""
    make_store(tmp_path / "s.zarr")
    end, begin = os.pipe()
    with writing(tmp_path / "s.zarr"):
        if not (child := os.fork()):
            os.close(begin)
            os.read(end, 1)
            os._exit(0 if all(file.closed for file in locks._open) else 1)
    with writing(tmp_path / "s.zarr"):
        assert os.waitpid(child, os.WNOHANG) == (0, 0)  # it lives
    os.close(begin)
    os.close(end)
    assert os.waitpid(child, 0) == (child, 0)


def test_an_interrupted_overwrite_keeps_a_sum_of_more_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C keeps what was gathered, where that is more than is there."""
    make_store(tmp_path / "s.zarr")
    statistics.analyze(tmp_path / "s.zarr")
    before = values(tmp_path / "s.zarr")

    def stop(progress: Any) -> None:
        if progress.done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        statistics.analyze(tmp_path / "s.zarr", workers=1, overwrite=True, progress=stop)
    for name, read in before.items():
        assert alike(values(tmp_path / "s.zarr")[name], read)


# -- columns that bear the names of statistics ------------------------------------------------------------------------


def with_columns(path: Path, **columns: np.ndarray) -> Store:
    """A store of an earlier version, whose source had these columns."""
    make_store(path)
    store = Store(path, writable=True)
    specs = [ArraySpec(name, ("image",), (IMAGES,), (IMAGES,), str(v.dtype), 0) for name, v in columns.items()]
    store.add(specs, columns)
    root = json.loads((path / "zarr.json").read_text())
    root["attributes"] |= {"analyzed": [], "columns": sorted(columns)}
    (path / "zarr.json").write_text(json.dumps(root))
    return Store(path)


@pytest.mark.parametrize(
    ("column", "names", "by"),
    [
        ("label_group", ["entropy"], "label"),
        ("label_group_images", ["entropy"], "label"),
        ("entropy_q_by_label", ["entropy"], "label"),
        ("rollout_count_by_label", ["rollout"], "label"),
        ("entropy_interval", None, ""),
        ("quantile", None, ""),
        ("entropy", None, ""),
        ("rollout_mean", None, ""),
        ("score_matrix_mean", None, ""),
        ("entropy_edge", ["entropy_histogram"], ""),
        ("self_mass", ["self_mass"], ""),
    ],
)
def test_a_column_in_the_way_is_named_before_anything_is_done(tmp_path: Path, column: str, names: Any, by: str) -> None:
    """Nothing is computed, and what was finished stays."""
    assert catalog.reserved(column)
    with_columns(tmp_path / "s.zarr", **{column: np.arange(IMAGES)})
    statistics.analyze(tmp_path / "s.zarr", ["attention_matrix_mean"])
    before = values(tmp_path / "s.zarr")
    with pytest.raises(AttlasError, match=f"its column {column} has the name of an array of this analysis"):
        statistics.analyze(tmp_path / "s.zarr", names, by=by)
    after = values(tmp_path / "s.zarr")
    assert after.keys() == before.keys()
    assert all(alike(after[name], before[name]) for name in before)
    np.testing.assert_array_equal(Store(tmp_path / "s.zarr").read(column), np.arange(IMAGES))


def test_whatever_an_analysis_writes_is_reserved(tmp_path: Path) -> None:
    """By any column; and nothing that it never writes is."""
    make_store(tmp_path / "s.zarr")
    statistics.analyze(
        tmp_path / "s.zarr",
        ["entropy", "rollout", "prefix_mass", "entropy_histogram", "head_similarity", "head_deviation"],
    )
    statistics.analyze(tmp_path / "s.zarr", by="predicted")
    statistics.analyze(tmp_path / "s.zarr", ["head_deviation"], by="label_class")
    store = Store(tmp_path / "s.zarr")
    assert all(catalog.reserved(name) for name in store.attrs["analyzed"])
    dims = {dim for name in store.attrs["analyzed"] for dim in store.dims(name)}
    own = {"image", "prefix"}
    assert all(catalog.reserved(dim) for dim in dims - own)
    for name in ("colour", "age", "weather_by_day", "mean", "group", "entropic", "entropy_of_label", "split"):
        assert not catalog.reserved(name)


def test_predicted_is_the_class_of_the_largest_logit_whatever_a_column_says(tmp_path: Path) -> None:
    """Also where an earlier version grouped the maps by the column."""
    with_columns(tmp_path / "s.zarr", predicted=np.arange(IMAGES) % 2 + 7)
    make_store(tmp_path / "plain.zarr")
    for name in ("s", "plain"):
        result = statistics.analyze(tmp_path / f"{name}.zarr", ["entropy", "rollout"], by="predicted")
        assert any("not the store's own column" in line for line in result.notes) == (name == "s")
    one, other = Store(tmp_path / "s.zarr"), Store(tmp_path / "plain.zarr")
    np.testing.assert_array_equal(one.read("predicted_group"), [0, 1, 2])
    for name in ("entropy_mean_by_predicted", "rollout_mean_by_predicted", "predicted_group_images"):
        np.testing.assert_array_equal(one.read(name), other.read(name))


def test_a_column_target_of_ones_own_may_hold_minus_one(tmp_path: Path) -> None:
    """-1 is no class in the run's own array of that name alone."""
    with_columns(tmp_path / "s.zarr", target=np.arange(IMAGES) % 2 - 1)
    statistics.analyze(tmp_path / "s.zarr", ["entropy"], by="target")
    np.testing.assert_array_equal(Store(tmp_path / "s.zarr").read("target_group"), [-1, 0])

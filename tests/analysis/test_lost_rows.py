"""A chunk that was written and is gone reads as fill: whoever reads it says so, and writes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attlas.engine.store.storage import Disk
from attlas.engine.store.store import DamagedError, Store
from attlas.engine.store.verify import verify
from attlas.errors import AttlasError
from support_statistics import make_store

statistics = pytest.importorskip("attlas.analysis.statistics")
partials = pytest.importorskip("attlas.analysis.statistics.partials")
dataset = pytest.importorskip("attlas.analysis.dataset")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's statistics, analysed, and by label."""
    path = tmp_path_factory.mktemp("whole") / "s.zarr"
    make_store(path, reduce=True)
    statistics.analyze(path)
    statistics.analyze(path, by="label")
    return path


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "s.zarr"))


def files(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


ANALYSES: dict[str, Callable[[Path], Any]] = {
    "analyze": statistics.analyze,
    "by label": lambda path: statistics.analyze(path, by="label"),
    "one": lambda path: statistics.analyze(path, ["self_mass"]),
    "overwrite": lambda path: statistics.analyze(path, by="label", overwrite=True),
    "by predicted": lambda path: statistics.analyze(path, ["entropy"], by="predicted"),
}


@pytest.mark.parametrize(
    ("key", "what", "analyses"),
    [
        ("entropy_patch/c.2.0.0", "entropy_patch lacks rows of unit 2", ANALYSES),
        ("rollout/c.2.0.0", "rollout lacks rows of unit 2", ["analyze", "by label"]),
        ("valid/c.2", "valid lacks rows of unit 2", ["analyze"]),
        ("logits/c.2.0", "logits lacks rows of unit 2", ["by predicted"]),
        ("attention/c.4.1.0.0.0", "attention lacks rows of unit 2", ["one"]),
        ("label/c.0", "label/c.0 is missing; the same `attlas run` writes it again", ["by label"]),
    ],
)
def test_an_analysis_refuses_rows_that_were_lost(store: Path, key: str, what: str, analyses: Any) -> None:
    """In one line that says what mends them; what was finished stays as it was."""
    (store / key).unlink()
    before = files(store)
    for name in analyses:
        with pytest.raises(DamagedError, match=what):
            ANALYSES[name](store)
    assert files(store) == before


def test_every_other_reader_refuses_them(store: Path) -> None:
    """But only where it reads them, of images that are done."""
    (store / "entropy_patch" / "c.2.0.0").unlink()
    readers: list[Callable[[], Any]] = [
        lambda: Store(store).read("entropy_patch"),
        lambda: Store(store).read("entropy_patch", (slice(None), 1)),
        lambda: Store(store).read("entropy_patch", (8, 0)),
        lambda: Store(store).read("entropy_patch", -12),
        lambda: dataset.open(store),
        lambda: statistics.pooled([store]),
        lambda: partials.partial_statistics(store, [2], ["entropy_patch"]),
    ]
    for reads in readers:
        with pytest.raises(DamagedError, match="entropy_patch lacks rows of unit 2, which is done"):
            reads()
    assert np.isfinite(Store(store).read("entropy_patch", slice(0, 4))).all()
    Store(store, writable=True).reopen(2)
    assert np.isnan(Store(store).read("entropy_patch", 8)).all()
    assert not dataset.open(store).done[8]


def test_each_array_is_listed_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a store that lacks units, whose missing rows read as fill; only the marks are looked at again."""
    listed: list[str] = []
    names = Disk.names

    def counted(disk: Disk, folder: str) -> list[str]:
        listed.append(folder)
        return names(disk, folder)

    Store(store, writable=True).reopen(2)
    for name in ("valid", "entropy", "rollout"):
        next((store / name).glob("c.2*")).unlink()
    monkeypatch.setattr(Disk, "names", counted)
    dataset.open(store)
    assert sorted(listed) == sorted({*Store(store).names, "run/done"})
    listed.clear()
    statistics.analyze(store, workers=1)
    assert set(listed) > {"valid", "entropy", "rollout"}
    assert [name for name in set(listed) - {"run/done"} if listed.count(name) > 1] == []


def test_layers_that_were_not_kept_are_not_lost(tmp_path: Path) -> None:
    """They are NaN, also where zarr reads them."""
    store = make_store(tmp_path / "s.zarr", layers=(1,))
    read = store.read("attention", 3)
    assert np.isnan(read[0]).all()
    assert np.isfinite(read[1]).all()
    assert dataset.open(tmp_path / "s.zarr").attention[3, 1].notnull().all()


def test_a_sum_that_was_lost_is_made_again(store: Path) -> None:
    """By the next analysis, of that map alone; it used to read as NaN, and what was added to it was NaN."""
    before = {name: Store(store).read(name) for name in ("score_matrix_mean", "rollout_mean", "rollout_mean_by_label")}
    for file in (*(store / "score_matrix_mean").glob("*[0-9]"), *(store / "rollout_count_by_label").glob("*[0-9]")):
        file.unlink()
    with pytest.raises(DamagedError, match=r"is missing; `attlas analyze( --by label)?` writes it again"):
        dataset.open(store)
    assert statistics.analyze(store).read
    with pytest.raises(DamagedError, match="is missing; `attlas analyze --by label` writes it again"):
        dataset.open(store)
    statistics.analyze(store, by="label")
    dataset.open(store)
    for name, values in before.items():
        np.testing.assert_allclose(Store(store).read(name), values, rtol=1e-12)


def test_what_may_not_be_read_is_not_said_to_be_unwritable(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An array in a folder that may not be listed: an analysis only wants to read it, as verify without --repair."""
    listed = Disk.names

    def names(self: Disk, folder: str) -> list[str]:
        if folder == "attention":
            raise PermissionError(13, "Permission denied", folder)
        return listed(self, folder)

    monkeypatch.setattr(Disk, "names", names)
    with pytest.raises(AttlasError, match=r"s\.zarr: cannot be read or written \(Permission denied\)"):
        statistics.analyze(store, ["self_mass"])
    monkeypatch.setattr("attlas.engine.store.verify.mend_metadata", lambda storage, repair: names(storage, "attention"))
    with pytest.raises(AttlasError, match=r"s\.zarr: cannot be read \(.*Permission denied"):
        verify(store)

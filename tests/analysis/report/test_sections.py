"""The sections that a page has where a store has what they show."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from attlas.engine.store.store import ArraySpec, Store
from support_report import (
    make_store,
)

pytest.importorskip("matplotlib")

definitions = pytest.importorskip("attlas.analysis.report.text.definitions")

markup = pytest.importorskip("attlas.analysis.report.text.markup")

bibliography = pytest.importorskip("attlas.analysis.report.text.bibliography")

methods = pytest.importorskip("attlas.analysis.report.text.methods")


def test_the_methods_are_those_of_the_stores_own_statistics(made: tuple[Store, Path, Path]) -> None:
    """Each definition that the store holds, none that it does not, and an entry for every citation."""
    text = methods.describe([made[0].path])
    paragraph, *entries = text.split("\n\n")
    assert "entropy_patch: The same over patch keys" in paragraph
    assert "Raghu et al. 2021, fig. 3" in paragraph
    assert "21 images" in paragraph
    assert "<code" not in paragraph
    for absent in ("chefer", "sink_share", "random groups"):
        assert absent not in text
    keys = {entry.partition("{")[2].partition(",")[0] for entry in entries}
    assert keys == {"abnar2020", "darcet2024", "dosovitskiy2021", "hebbar", "johnson1978", "liang1986", "park2023",
                    "raghu2021", "wilson1927"}  # fmt: skip
    assert "eprint = {2108.08810}" in text
    assert text.isascii() or all(entry.isascii() for entry in entries)


def test_every_statistic_of_the_catalog_has_words_of_its_own(tmp_path: Path) -> None:
    """What this module does not define is told by the array's own description, so that no number goes unsaid."""
    store = make_store(tmp_path / "s.zarr")
    catalog = pytest.importorskip("attlas.analysis.catalog").CATALOG
    lacking = [name for name in catalog if name not in store]
    Store(store.path, writable=True).add(
        [ArraySpec(name, ("layer",), (2,), (2,), "float32", math.nan, {}) for name in lacking]
    )
    text = methods.describe([store.path])
    for name in catalog:
        assert f"{name}: {markup.plain(definitions.DEFINITIONS[name])}" in text


def test_every_statistic_of_the_catalog_has_one_definition_and_none_is_left_over() -> None:
    catalog = pytest.importorskip("attlas.analysis.catalog").CATALOG
    assert definitions.DEFINITIONS.keys() == catalog.keys()
    assert not definitions.CONCEPTS.keys() & catalog.keys()
    cited = {s.cite for s in catalog.values() if s.cite}
    assert cited <= bibliography.REFERENCES.keys()
    for name, statistic in catalog.items():
        if statistic.cite and statistic.source:
            assert statistic.cite in markup.cited(definitions.DEFINITIONS[name]), name


def test_the_methods_are_printed_without_a_page(made: tuple[Store, Path, Path], capsys: Any) -> None:
    from attlas.cli import main

    main(["report", str(made[0].path), "--methods"])
    assert capsys.readouterr().out.strip() == methods.describe([made[0].path])
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(made[0].path)])
    assert stopped.value.code == 2
    assert "--methods" in capsys.readouterr().err

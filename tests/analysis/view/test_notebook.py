"""A widget answers what the page asks by message, as the server does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support_report import make_store

pytest.importorskip("attlas.analysis.view.api")
import attlas
from attlas.analysis.view import Atlas


def test_a_widget_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("anywidget")
    store = make_store(tmp_path / "a.zarr", images=4)
    widget, sent = attlas.view(store.path), []
    monkeypatch.setattr(type(widget), "send", lambda _self, *message: sent.append(message))
    widget._handle_custom_msg({"id": 7, "path": "rows/0/1/0"}, [])
    widget._handle_custom_msg({"id": 8, "path": "rows/0/9/0"}, [])
    assert sent[0] == ({"id": 7}, [Atlas([store.path]).answer("rows/0/1/0").body])
    assert sent[1] == ({"id": 8, "why": "there is no image 9; the store has 4"},)


def test_without_anywidget_it_says_what_brings_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "a.zarr", images=4)
    monkeypatch.setitem(__import__("sys").modules, "anywidget", None)
    with pytest.raises(attlas.AttlasError, match=r"attlas\[notebook\]"):
        attlas.view(store.path)
    for count in (0, -1):
        with pytest.raises(attlas.AttlasError, match=f"^{count} pictures: a file shows one picture at least"):
            attlas.view(store.path, tmp_path / "x.html", count=count)
    output: Any = attlas.view(store.path, tmp_path / "x.html", count=1)
    assert output.stat().st_size > 50_000

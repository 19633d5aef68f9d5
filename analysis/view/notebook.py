"""The atlas in a notebook: the page as a widget, whose requests come as messages. The one module with anywidget."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from ...arguments import Paths
from ...errors import AttlasError
from .api import Atlas
from .server import asset
from .single import write

__all__ = ["view"]


def view(
    stores: Paths,
    output: str | os.PathLike[str] | None = None,
    *,
    images: str | os.PathLike[str] | None = None,
    count: int = 24,
    overwrite: bool = False,
    progress: bool = False,
) -> Any:
    """Walk through stores in a notebook, or write the atlas of some pictures as one HTML file.

    Args:
        stores: one store, or several that are linked by the pictures' paths.
        output: a file, NAME.html; without it, the result is a widget.
        images: the run's folder of pictures, for those that the store does not keep.
        count: how many pictures a file holds.
        overwrite: replace an existing file.
        progress: show a bar while a file is written.

    Returns:
        The widget, or the file's path.

    Raises:
        UsageError: a store or `images` is not named as it should be, or `output` exists.
        AttlasError: a store does not read, or anywidget is not installed.
    """
    if output is not None:
        made: Path = write(stores, output, images=images, count=count, overwrite=overwrite, progress=progress)
        return made
    return _widget(Atlas(stores, images))


def _widget(atlas: Atlas) -> Any:
    try:
        base: Any = importlib.import_module("anywidget").AnyWidget  # an extra, so that types do not depend on it
    except ImportError:
        raise AttlasError(
            "a notebook's atlas needs anywidget, which is not installed: `pip install 'attlas[notebook]'` brings it; "
            '`attlas view STORE` opens a browser without it, and output="atlas.html" writes a file'
        ) from None

    widget = type("AtlasWidget", (base,), {"_esm": asset("atlas.js"), "_css": asset("atlas.css")})()
    widget.on_msg(lambda _widget, message, _buffers: _reply(widget, atlas, message))
    return widget


def _reply(widget: Any, atlas: Atlas, message: dict[str, Any]) -> None:
    """Answer one request of the page, which knows it by its number."""
    try:
        body = atlas.answer(str(message.get("path", ""))).body
    except AttlasError as error:
        widget.send({"id": message.get("id"), "why": str(error)})
        return
    widget.send({"id": message.get("id")}, [body])

"""One file that holds the page and all that it shows of some pictures; it loads nothing from anywhere.

Every answer that the page could ask for lies in an element of its own, found by path. Attention is sent as codes of 51
levels, and compressed: 24 pictures of deit_tiny are 25.6 MB (an entry is off by 2 % of its row's largest patch at
most).
"""

from __future__ import annotations

import base64
import hashlib
import html
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from ... import arguments
from ...arguments import Paths
from ...engine.plan import spread
from ...errors import AttlasError, UsageError
from ...files import appearing, check_page
from ...progress import Show, shows
from ...words import counted
from .api import Atlas, MissingError
from .server import asset

__all__ = ["LEVELS", "embedded", "script_hash", "write"]

LEVELS = 50
LARGEST = 400 << 20  # bytes; browsers take no string of more than 512 MB


@shows("pictures")
def write(
    stores: Paths,
    output: str | os.PathLike[str],
    *,
    count: int = 24,
    images: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Show[[int, int]] = None,
) -> Path:
    """Write the atlas of some pictures as one self-contained HTML file.

    Args:
        stores: one store, or several that are linked by the pictures' paths.
        output: the file, NAME.html.
        count: how many pictures, evenly spread over the store's sample, or with `images` over all.
        images: the run's folder of pictures.
        overwrite: replace an existing file.
        progress: True shows a bar; a function is called with (pictures done, pictures).

    Returns:
        `output`, as a path.

    Raises:
        UsageError: `output` is no HTML file or exists, `count` is below 1, or the file too large for a browser.
        AttlasError: a store does not read, has no picture to show, or the file cannot be written.
    """
    output, count = Path(arguments.path(output, "output", "a path, NAME.html")), arguments.whole(count, "count")
    check_page(output, "the atlas", overwrite)
    atlas = Atlas(stores, images, levels=LEVELS)
    atlas.only = chosen(atlas, count)
    _check_size(atlas)
    with appearing(output) as part, part.open("w", encoding="utf-8") as file:
        for piece in _page(atlas, progress if callable(progress) else None):
            file.write(piece)
    return output


def embedded(stores: Paths, count: int, images: str | os.PathLike[str] | None = None) -> str:
    """The same page as text, to stand in a frame of another page, whose policy must allow `script_hash`.

    Args and errors are those of `write`.
    """
    atlas = Atlas(stores, images, levels=LEVELS)
    atlas.only = chosen(atlas, count)
    _check_size(atlas)
    return "".join(_page(atlas, None))


def script_hash() -> str:
    """What a content security policy must allow so that the page's script runs."""
    return _hash(asset("atlas.js"))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def chosen(atlas: Atlas, count: int) -> list[int]:
    """Images of the first store, evenly spread over those that are done, valid and at hand, in the order of the store.

    Raises:
        UsageError: `count` is below 1.
        AttlasError: there is none.
    """
    if count < 1:
        raise UsageError(f"{counted(count, 'picture')}: a file shows one picture at least")
    store = atlas.readers[0].store
    usable = store.done_images & store.read("valid").astype(bool)
    among = range(store.plan.images) if atlas.folder is not None else store.plan.sample
    found = [i for i in among if usable[i]] or [i for i in range(store.plan.images) if usable[i]]
    if not found:
        raise AttlasError(store.why_none)
    return [found[i] for i in spread(len(found), min(count, len(found)))]


def _check_size(atlas: Atlas) -> None:
    """Refuse what no browser would open, before an hour's work."""
    assert atlas.only is not None
    each = sum(
        len(one.store.kept_layers) * one.store.spec.heads * one.store.spec.tokens**2
        for one in atlas.readers
        if {"attention", "attention_code"} & set(one.store.names)
    )
    size = int(each * len(atlas.only) * 0.77)
    if size > LARGEST:
        raise UsageError(
            f"{counted(len(atlas.only), 'picture')} would be about {size / 1e6:,.0f} MB, too much for one file; "
            f"--images {max(1, LARGEST * len(atlas.only) // size)} fits, or serve the store without -o"
        )


def _page(atlas: Atlas, progress: object) -> Iterator[str]:
    script, style = asset("atlas.js"), asset("atlas.css")
    allowed = f"script-src {_hash(script)}; style-src {_hash(style)}"
    policy = f"default-src 'none'; {allowed}; img-src data: blob:; base-uri 'none'; form-action 'none'"
    names = " · ".join(reader.store.path.name.removesuffix(".zarr") for reader in atlas.readers)
    yield (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(names)} – attlas</title>\n<style>{style}</style>\n</head>\n<body>\n"
        '<div id="attlas-page" class="attlas" data-source="file">'
        "<noscript>This page needs JavaScript.</noscript></div>\n"
    )
    for path in _paths(atlas, progress):
        yield _element(atlas, path)
    yield f'<script type="module">{script}</script>\n</body>\n</html>\n'


def _paths(atlas: Atlas, progress: object) -> Iterator[str]:
    """Every path that the page may ask for, picture by picture at the end."""
    manifest = atlas.manifest()
    yield "manifest"
    stores = manifest["stores"]
    yield from (f"column/0/{quote(column['name'], safe='')}" for column in stores[0]["columns"])
    pairs: dict[int, list[int]] = {0: manifest["images"]}
    for s, store in enumerate(stores):
        yield f"panels/{s}"
        if store["offsets"]:
            yield f"offsets/{s}"
        if s:
            pairs[s] = atlas.paired(s).tolist()
            yield f"pairs/{s}"
    for n in range(len(pairs[0])):
        for s, store in enumerate(stores):
            image = pairs[s][n]
            if image < 0:
                continue
            yield f"facts/{s}/{image}"
            yield f"picture/{s}/{image}"
            yield from (f"map/{s}/{image}/{quote(one['name'], safe='')}" for one in store["maps"])
            if store["whole"] or store["rows"]:
                yield from (f"rows/{s}/{image}/{place}" for place in range(len(store["layers"])))
        yield f"thumb/0/{pairs[0][n]}"
        if callable(progress):
            progress(n + 1, len(pairs[0]))


def _element(atlas: Atlas, path: str) -> str:
    """An answer as an element that is never run; one that there is not says why."""
    where = f'<script type="text/plain" data-path="{html.escape(path)}"'
    try:
        answer = atlas.answer(path)
    except MissingError as error:
        return f'{where} data-why="{html.escape(str(error))}"></script>\n'
    if answer.kind == "image/jpeg":
        return f"{where}>{base64.b64encode(answer.body).decode()}</script>\n"
    packer = zlib.compressobj(9, memLevel=9, strategy=zlib.Z_FILTERED)  # small differences: 3 % less than by default
    data = packer.compress(answer.body) + packer.flush()
    return f"{where} data-deflate>{base64.b64encode(data).decode()}</script>\n"

"""`attlas view`."""

from __future__ import annotations

import signal
import webbrowser
from pathlib import Path
from typing import Any

import click

from ..errors import UsageError
from .shared import INTERRUPTED, LocalPath, end_on, note, path_argument, say, store_path, written


class _Images(LocalPath):
    """How many pictures a file holds, or the folder of the run's pictures."""

    name = "number|folder"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return int(value) if str(value).isdecimal() else super().convert(value, param, ctx)


@click.command(short_help="Walk through stores in the browser.")
@click.argument("stores", type=store_path, nargs=-1, required=True, metavar="STORE...")
@click.option("-o", "--output", type=path_argument, help="Write one self-contained file, NAME.html, and serve nothing.")
@click.option(
    "--images",
    type=_Images(path_type=Path),
    multiple=True,
    metavar="DIR|N",
    help="The run's image folder, for pictures beyond the store's sample; or, with -o, how many pictures (24). "
    "May be given twice.",
)
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="A fixed port; 0: a free one.")
@click.option("--no-browser", is_flag=True, help="Print the address and open nothing.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def view(
    stores: tuple[Path, ...], output: Path | None, images: tuple[Any, ...], port: int, no_browser: bool, overwrite: bool
) -> None:
    """Show STORE on a page of this machine alone: pictures, what every patch attends to, and the dataset's statistics.

    Several stores are linked: the same picture, the same patch. Ctrl-C ends it, with code 130.
    """
    from ..analysis.view import Atlas, Server, write

    counts = [one for one in images if isinstance(one, int)]
    folders = [one for one in images if not isinstance(one, int)]
    if len(counts) > 1 or len(folders) > 1:
        raise UsageError("--images: name one folder, and one number, at most")
    folder = folders[0] if folders else None
    if output is not None:
        if of_page := written("port", "no_browser"):
            raise UsageError(f"{of_page[0]}: is for a page that is served; -o writes a file")
        count = counts[0] if counts else 24
        say(write(list(stores), output, count=count, images=folder, overwrite=overwrite, progress=True))
        return
    if overwrite:
        raise UsageError("--overwrite: is for a file, -o NAME.html, and nothing is written here")
    if counts:
        raise UsageError(f"--images {counts[0]}: a number of pictures is for a file, -o NAME.html; a page shows all")
    server = Server(Atlas(list(stores), folder), port)
    # The shell sets SIGINT aside for what it starts in the background; a server there must still end.
    end_on(signal.SIGINT, signal.SIGTERM)
    say(server.url)
    note("the page is for this machine alone; Ctrl-C ends it")
    if not no_browser:
        webbrowser.open(server.url)
    try:
        server.run()
    except KeyboardInterrupt:
        note("attlas: ended")
        raise SystemExit(INTERRUPTED) from None

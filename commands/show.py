"""`attlas show`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attlas
import click

from ..errors import UsageError
from ..words import counted
from .shared import note, path_argument, say


class _Numbers(click.types.StringParamType):
    """Two numbers with a comma between them."""

    def __init__(self, kind: type, name: str) -> None:
        self.kind, self.name = kind, name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A pair."""
        if isinstance(value, tuple):
            return value
        try:
            first, second = (self.kind(part) for part in str(value).split(","))
        except ValueError:
            raise UsageError(f"{param.opts[0] if param else ''} {value}: give {self.name}, such as 3,7") from None
        return first, second


class _Layer(click.types.StringParamType):
    name = "N|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A number, or all."""
        if value == "all" or isinstance(value, int):
            return value
        if not str(value).isdigit():
            raise UsageError(f"--layer {value}: give a block's index from 0, or all")
        return int(value)


@click.command(short_help="What a model looks at in one picture, at once.")
@click.argument("source", metavar="GRAPH|STORE", type=str)
@click.argument("pictures", nargs=-1, metavar="[PICTURE]...", type=path_argument)
@click.option(
    "-o", "--output", type=path_argument, help="NAME.png, .pdf or .svg; a folder with --all. [PICTURE.attlas.png]"
)
@click.option("--layer", type=_Layer(), help="The block, from 0, or all of them. [the last]", show_default=False)
@click.option("--head", type=int, help="One head only, from 0.")
@click.option(
    "--map",
    "maps",
    multiple=True,
    metavar="NAME[:PARAMETERS]",
    help="A map by name, such as rollout:discard=0.9; may be given several times. `attlas analyze --list` names them.",
)
@click.option("--patch", type=_Numbers(int, "ROW,COLUMN"), help="What this patch looks at; counted from 0.")
@click.option("--at", type=_Numbers(float, "X,Y"), help="The same by a pixel of the original picture.")
@click.option("--matrix", is_flag=True, help="Whole matrices, query by key.")
@click.option("--walk", is_flag=True, help="One tall figure from patches to prediction.")
@click.option("--threshold", type=float, help="Outline the fewest patches that hold this share of a map, such as 0.6.")
@click.option(
    "--style", type=click.Choice(["overlay", "side"]), default="overlay", help="Maps over the picture, or beside it."
)
@click.option(
    "--target",
    type=int,
    default=-1,
    help="For maps by gradients of a graph: a class by index, or -1 for the predicted one.",
)
@click.option(
    "--image", multiple=True, metavar="PATH|INDEX", help="From a store: this image; may be given several times."
)
@click.option("--random", type=int, metavar="N", help="From a store: N images, drawn with --seed.")
@click.option("--seed", default=0, help="Of --random.")
@click.option(
    "--sort",
    type=click.Choice(["entropy", "error", "label"]),
    help="From a store: the sharpest, the surest mistakes, or labels in order first.",
)
@click.option("--count", type=int, metavar="N", help="From a store: at most N images. [4]")
@click.option("--all", "everything", is_flag=True, help="From a store: an overlay of every image, into the folder -o.")
@click.option("--images", type=path_argument, help="The run's image folder, for pictures beyond the store's sample.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file, or write into a folder that holds files.")
def show(source: str, pictures: tuple[Path, ...], output: Path | None, everything: bool, **options: Any) -> None:
    """Show what a model looks at: its attention over PICTURE, every head, rollout, the likeliest classes.

    A GRAPH is run on PICTURE; of a STORE, --image, --random or --sort choose the images.
    """
    if everything:
        _all(source, pictures, output, options)
        return
    path = _named(source, pictures, options["image"]) if output is None else output
    shown = attlas.show(source, list(pictures) or None, output=path, **options)
    note(shown.title)
    say(shown.path or path)


def _named(source: str, pictures: tuple[Path, ...], image: tuple[str, ...]) -> Path:
    """The figure's name in the current folder: that of the one picture, else that of the store."""
    single = pictures or tuple(Path(one) for one in image)
    stem = single[0].stem if len(single) == 1 else Path(source.rstrip("/")).stem
    return Path(f"{stem}.attlas.png")


def _all(source: str, pictures: tuple[Path, ...], output: Path | None, options: dict[str, Any]) -> None:
    """A folder of overlays."""
    if output is None or pictures:
        raise UsageError("--all: takes a STORE and the folder to write into: -o overlays/")
    from ..analysis.show.folder import overlays
    from ..analysis.show.together import check_together

    check_together(options | {"all": True})
    names = ("maps", "layer", "threshold", "style", "images", "overwrite")
    made = overlays(source, output, progress=True, **{name: options[name] for name in names})
    note(counted(made, "overlay"))
    say(output)

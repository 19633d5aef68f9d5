"""`attlas report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attlas
import click

from ..errors import UsageError
from .shared import path_argument, say, store_path


@click.command(short_help="One self-contained HTML page with the figures.")
@click.argument("stores", type=store_path, nargs=-1, required=True, metavar="STORE...")
@click.option("-o", "--output", type=path_argument, help="The page, NAME.html.")
@click.option(
    "--methods", is_flag=True, help="Print a methods paragraph with BibTeX for the stores' statistics, and no page."
)
@click.option("--images", type=path_argument, help="The run's image folder, for pictures beyond the store's sample.")
@click.option("--figures", type=path_argument, help="Also write every figure here: PDF, SVG, PNG, and its data as CSV.")
@click.option("--examples", default=4, type=click.IntRange(0), help="How many pictures to show.")
@click.option(
    "--baseline",
    metavar="STORE",
    type=store_path,
    multiple=True,
    help="A store used only for comparison, such as random weights; may be given several times.",
)
@click.option("--boxes", type=path_argument, help="Objects in the original images: COCO JSON.")
@click.option(
    "--only",
    metavar="FIGURES",
    default="",
    help="Only sections with these figures of attlas.plot: distance,examples,...",
)
@click.option("--names", metavar="A,B", default="", help="What stores, then baselines, are called on the page.")
@click.option("--style", default="paper", type=click.Choice(["paper", "talk"]), help="Talk has larger words and lines.")
@click.option(
    "--explore", default=0, metavar="N", type=click.IntRange(0), help="Let readers walk through N pictures on the page."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing page.")
def report(stores: tuple[Path, ...], output: Path | None, methods: bool, only: str, names: str, **options: Any) -> None:
    """Write a report of STORE; several stores are shown side by side."""
    if methods == (output is not None):
        raise UsageError("name the page with -o NAME.html, or print the methods alone with --methods")
    if output is None:
        from ..analysis.report import describe

        say(*describe(stores).split("\n"))
        return
    given: dict[str, Any] = {key: text.split(",") for key, text in (("only", only), ("names", names)) if text}
    say(attlas.report(list(stores), output, progress=True, **given, **options))

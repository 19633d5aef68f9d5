"""`attlas compare`."""

from __future__ import annotations

from pathlib import Path

import attlas
import click

from ..words import counted
from .shared import note, store_path


@click.command(short_help="How far apart two models' attention is, by layer.")
@click.argument("one", type=store_path, metavar="STORE")
@click.argument("other", type=store_path, metavar="OTHER")
def compare(one: Path, other: Path) -> None:
    """Divergence of the attention of STORE and OTHER on the images that both have: 0 for the same rows, at most ln 2.

    Jensen-Shannon, in nats, of rows averaged over heads; a line of CSV for each layer, with its 95 % interval.
    """
    found = attlas.compare(one, other, progress=True)
    click.echo("layer,other_layer,divergence,low,high")
    for (here, there), *values in zip(found.layers, found.divergence, found.low, found.high, strict=True):
        click.echo(",".join([str(here), str(there), *(f"{value:.6g}" for value in values)]))
    effective = "" if found.n == found.images else f", effective n = {found.n:.4g}"
    note(f"{counted(found.images, 'image')} in both{effective}")

"""`attlas compare`."""

from __future__ import annotations

from pathlib import Path

import attlas
import click

from .shared import note, store_path


@click.command(short_help="How far apart two models' attention is, by layer.")
@click.argument("one", type=store_path, metavar="STORE")
@click.argument("other", type=store_path, metavar="OTHER")
def compare(one: Path, other: Path) -> None:
    """Divergence of the attention of STORE and OTHER on the images that both have: 0 for the same rows, at most ln 2.

    Jensen-Shannon, in nats, of rows averaged over heads; a line of CSV for each layer, with its 95 % interval.
    """
    found = attlas.compare(one, other, progress=True)
    for line in found.lines():
        click.echo(line)
    note(found.said)

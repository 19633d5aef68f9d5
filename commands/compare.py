"""`attlas compare`."""

from __future__ import annotations

from pathlib import Path

import attlas
import click

from ..words import ranges
from .shared import note, say, store_path


@click.command(short_help="How far apart two models' attention is, by layer.")
@click.argument("one", type=store_path, metavar="STORE")
@click.argument("other", type=store_path, metavar="OTHER")
def compare(one: Path, other: Path) -> None:
    """Divergence of the attention of STORE and OTHER on the images that both have: 0 for the same rows, at most ln 2.

    Jensen-Shannon, in nats, of rows averaged over heads; a line of CSV for each layer, with its 95 % interval.
    """
    found = attlas.compare(one, other, progress=True)
    say(*found.lines())
    note(found.said)
    for store, layers in zip((one, other), found.left_out, strict=True):
        if layers:
            note(f"{store}: left out, since the other store has nothing to compare: layers {ranges(layers)}")

"""`attlas analyze`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attlas
import click

from ..errors import UsageError
from .shared import note, pool, say, say_json, store_path, who_works


@click.command(short_help="A store gets its statistics over the dataset.")
@click.argument("store", type=store_path, required=False, metavar="[STORE]")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--by",
    metavar="COLUMN",
    default="",
    show_default=False,
    help="Also by group: label, predicted, or any column of the store.",
)
@click.option(
    "--cluster",
    metavar="COLUMN",
    help="Images of one value depend on each other (patient, video): intervals and tests over clusters. image: undo.",
)
@who_works
@click.option("--overwrite", is_flag=True, help="Recompute statistics that exist.")
@click.option("--json", "as_json", is_flag=True, help="What was made, as JSON.")
@click.option("--list", "list_names", is_flag=True, help="List the names, and what each can be told.")
def analyze(
    store: Path | None,
    names: tuple[str, ...],
    list_names: bool,
    as_json: bool,
    workers: int | None,
    scheduler: str | None,
    **options: Any,
) -> None:
    """Compute statistics of STORE and write them into it: by default those that the run did not, and dataset sums.

    With NAMEs only these are made; --list shows them.
    """
    if list_names:
        from ..analysis.catalog import described

        for name, meaning in described().items():
            say(f"{name:<38} {meaning}")
        return
    if store is None:
        raise UsageError("which store? `attlas analyze STORE.zarr`")
    with pool(workers, scheduler) as who:
        result = attlas.analyze(store, list(names) or None, progress=True, **who, **options)
    for line in result.notes:
        note(f"note: {line}")
    note(result.said)
    if as_json:
        say_json({"images": result.images, "made": result.made, "summed": result.summed, "finished": result.finished})
        return
    from ..analysis.statistics.layers import by_layer

    say(*by_layer(store))

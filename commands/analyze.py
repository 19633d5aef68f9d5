"""`attlas analyze`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attlas
import click

from ..engine.amounts import amount, duration
from ..errors import UsageError
from .shared import note, say_json, store_path


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
@click.option(
    "--workers", type=click.IntRange(1), metavar="N", help="N local processes; by default threads of this process."
)
@click.option("--scheduler", metavar="tcp://HOST:PORT", help="Do the work on a Dask cluster.")
@click.option("--overwrite", is_flag=True, help="Recompute statistics that exist.")
@click.option("--json", "as_json", is_flag=True, help="What was made, as JSON.")
@click.option("--list", "list_names", is_flag=True, help="List the names of the statistics.")
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

    NAME adds further statistics; --list shows them.
    """
    if list_names:
        from ..analysis.catalog import described

        for name, meaning in described().items():
            click.echo(f"{name:<38} {meaning}")
        return
    if store is None:
        raise UsageError("which store? `attlas analyze STORE.zarr`")
    with pool(workers, scheduler) as who:
        result = attlas.analyze(store, list(names) or None, progress=True, **who, **options)
    for line in result.notes:
        note(f"note: {line}")
    note(f"{result.images:,} images, {amount(result.read)} of attention read, {duration(result.seconds)}")
    if as_json:
        say_json({"images": result.images, "made": result.made, "summed": result.summed, "finished": result.finished})
        return
    from ..analysis.statistics.layers import by_layer

    for line in by_layer(store):
        click.echo(line)


@contextlib.contextmanager
def pool(workers: int | None, scheduler: str | None) -> Iterator[dict[str, Any]]:
    """The arguments of `analyze` that say who does the work; by default none, and this process does it."""
    if workers is not None and scheduler is not None:
        raise UsageError("--workers, --scheduler: choose one")
    if scheduler is not None:
        from ..engine.executors.cluster import Cluster

        with Cluster(scheduler) as cluster, cluster.pool() as executor:
            note(cluster.description)
            yield {"executor": executor, "workers": 2 * cluster.threads}
    elif workers is not None:
        from ..engine.executors.processes import pool

        with pool(workers) as executor:
            yield {"executor": executor, "workers": workers}
    else:
        yield {}

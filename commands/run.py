"""`attlas run`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import attlas
import click

from ..engine import messages
from .shared import INTERRUPTED, READ_ERRORS, note, path_argument, say, say_json, store_path


@click.command(short_help="A graph and images become an attention store.")
@click.argument("graph", type=path_argument)
@click.argument("images")
@click.option(
    "-o",
    "--output",
    required=True,
    type=store_path,
    metavar="STORE",
    help="The store: a folder, NAME.zarr by custom, or a URL.",
)
@click.option(
    "--keep",
    default="attention",
    help="Large arrays to keep, comma-separated: attention, attention_mean, gradient, gradient_mean, "
    "gradient_positive, tokens; or none.",
)
@click.option("--layers", metavar="0,3-5", help="Keep only these blocks' attention, counted from 0.")
@click.option(
    "--store-dtype",
    type=click.Choice(["float16", "float32", "uint8"]),
    default="float16",
    help="Dtype of the stored attention; uint8: codes, for averages only.",
)
@click.option(
    "--codec",
    type=click.Choice(["lz4", "zstd", "none"]),
    default="lz4",
    help="Compression of the large arrays; none for a disk that is faster than the cores.",
)
@click.option(
    "--target", default="predicted", metavar="predicted|label|N", help="The class whose logit is differentiated."
)
@click.option("--batch-size", default="auto", help="Images per batch; one batch is one chunk.")
@click.option("--provider", default="auto", help="auto, cpu, cuda, openvino or any that `doctor` lists.")
@click.option(
    "--precision", default="float32", metavar="float32|bfloat16", help="What openvino computes in; float32 by default."
)
@click.option(
    "--decoder",
    default="host",
    metavar="host|cuda",
    help="What decodes; cuda: JPEGs on the card that infers, to pixels that differ by a little.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    metavar="N",
    help="Do the work in N local processes, each with its own cores or card.",
)
@click.option("--scheduler", metavar="tcp://HOST:PORT", help="Do the work on a Dask cluster.")
@click.option("--threads", type=click.IntRange(1), hidden=True)
@click.option("--shard", default="1/1", help="K/N: the K-th of N processes that share the store.")
@click.option("--limit", type=int, help="Take this many images, evenly spread over the sorted list.")
@click.option("--seed", default=0, help="Seed for choosing the sample pictures in the store.")
@click.option("--dry-run", is_flag=True, help="Describe the run and write nothing.")
@click.option("--overwrite", is_flag=True, help="Replace an existing store.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
def run(graph: Path, images: str, output: Path, as_json: bool, **options: Any) -> None:
    """Run IMAGES through GRAPH into a store. The same command resumes a run that was stopped.

    IMAGES is a path or a URL (s3://bucket/...) of:

    \b
      a folder of images, or of .tar or .parquet files
      a table with the column path: .csv, .tsv, .jsonl or .parquet; the column
        label, and any others, are stored with the images
      a .tar of images, plain or by WebDataset's convention
      a .parquet with a column of images
      several .tar or .parquet: 'train-{000..127}.tar', 'train-*.parquet'
    """  # noqa: D301 - \b tells click not to rewrap
    options["keep"] = tuple(part.strip() for part in options["keep"].split(","))
    options["layers"] = messages.layers(options["layers"])
    options["batch_size"] = messages.batch_size(options["batch_size"])
    options["shard"] = messages.shard(options["shard"])
    from ..engine import outcome

    stop = _stop_on_signals()
    result = attlas.run(graph, images, output, progress=True, stop=stop, **options)
    for line in result.notes:
        note(f"note: {line}")
    if options["dry_run"]:
        say_json(outcome.plan_data(result)) if as_json else say(*outcome.plan_lines(result))
        return
    say_json(outcome.outcome_data(result)) if as_json else say(*outcome.outcome_lines(result))
    if result.errors:
        sys.exit(READ_ERRORS)


def _stop_on_signals() -> threading.Event:
    """End the run after the units in flight on SIGINT or SIGTERM; on a second signal, at once."""
    stop = threading.Event()

    def handle(number: int, _frame: Any) -> None:
        if stop.is_set():
            os._exit(INTERRUPTED)
        stop.set()
        note("")
        note("stopping after the units in flight; again to stop at once")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return stop

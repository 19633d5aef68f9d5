"""The command line: each command parses its options and calls the library function of the same name.

Data goes to stdout, progress and notes to stderr. Exit codes: 0 fine; 1 failed; 2 wrong usage; 3 finished, but some
images could not be read; 130 interrupted, the same command resumes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attlas
import click

from .engine import messages
from .engine.amounts import amount, duration
from .errors import AttlasError, Interrupted, UsageError

READ_ERRORS = 3
INTERRUPTED = 130


class _Path(click.Path):
    """A local path; `~` is expanded even where the shell does not, as in `--images=~/x`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from .engine.sources.files import place

        return Path(place(os.fsdecode(super().convert(value, param, ctx))))


path_argument = _Path(path_type=Path)


def store_path(value: str) -> Any:
    """A local path or a URL."""
    from .engine.store.storage import locate

    return locate(value)


class _Commands(click.Group):
    """Lists the commands in the order of use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
)
@click.version_option(attlas.__version__, prog_name="attlas")
def cli() -> None:
    """The atlas of attention: compute, store and analyse the attention of Vision Transformers over whole datasets.

    \b
    attlas export deit_tiny_patch16_224 -o deit.onnx  timm model to ONNX graph
    attlas run deit.onnx IMAGES -o deit.zarr          images to attention store
    attlas analyze deit.zarr                          statistics of the dataset
    attlas report deit.zarr -o report.html            one page with the figures

    Exit codes: 0 fine; 1 failed; 2 wrong usage; 3 finished, but some images could not be read; 130 interrupted (the
    same command resumes).
    """  # noqa: D301 - \b tells click not to rewrap


def note(line: str) -> None:
    """Write one line to stderr."""
    click.echo(line, err=True)


def say_json(data: Any) -> None:
    """Write JSON to stdout."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


# --- export -----------------------------------------------------------------------------------------------------------


@cli.command(short_help="A timm model becomes an ONNX graph with attention outputs.")
@click.argument("model")
@click.option("-o", "--output", required=True, type=path_argument, help="The graph, NAME.onnx.")
@click.option(
    "--checkpoint",
    metavar="FILE[:KEY]",
    help="Weights from this file (safetensors or torch), or from its part KEY, such as model_ema.",
)
@click.option("--pretrained", "pretrained", is_flag=True, help="The tag's own weights from the model hub (default).")
@click.option("--random-init", is_flag=True, help="Random weights.")
@click.option("--seed", default=0, help="Seed of --random-init.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    help="Precision of the computation; outputs are always float32.",
)
@click.option("--img-size", metavar="N or H,W", help="Input size, instead of the model's own.")
@click.option(
    "--preprocess",
    metavar="KEY=VALUE,...",
    help="Replace parts of the recipe: mean=0.5,std=0.5,resize=squash:256,crop=224.",
)
@click.option("--layers", metavar="0,3-5", help="Only these blocks' attention, counted from 0.")
@click.option("--num-classes", type=int, help="Number of classes of the checkpoint's head.")
@click.option("--gradients", is_flag=True, help="Also output gradients of a class's logit by the attention.")
@click.option("--norms", is_flag=True, help="Also output norms of values, attention branches and tokens.")
@click.option("--overwrite", is_flag=True, help="Replace an existing graph.")
def export(
    model: str, output: Path, pretrained: bool, random_init: bool, checkpoint: str | None, **options: Any
) -> None:
    """Export timm's MODEL (with or without its pretrained tag) and check the file against PyTorch."""
    if sum([pretrained, random_init, checkpoint is not None]) > 1:
        raise UsageError("--checkpoint, --pretrained and --random-init: choose one")
    options["img_size"] = messages.edges(options["img_size"])
    options["layers"] = messages.layers(options["layers"])
    _end_on_sigterm()
    try:
        result = attlas.export(model, output, checkpoint=checkpoint, random_init=random_init, progress=True, **options)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; nothing was written") from None
    for line in result.notes:
        note(f"note: {line}")
    for line in messages.export_lines(result):
        note(line)
    click.echo(result.path)


def _end_on_sigterm() -> None:
    """Handle SIGTERM like Ctrl-C, so that half-written files are removed."""

    def handle(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, handle)


# --- run --------------------------------------------------------------------------------------------------------------


@cli.command(short_help="A graph and images become an attention store.")
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
    "--target", default="predicted", metavar="predicted|label|N", help="The class whose logit is differentiated."
)
@click.option("--batch-size", default="auto", help="Images per batch; one batch is one chunk.")
@click.option("--provider", default="auto", help="auto, cpu, cuda or any that `doctor` lists.")
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
    stop = _stop_on_signals()
    result = attlas.run(graph, images, output, progress=True, stop=stop, **options)
    for line in result.notes:
        note(f"note: {line}")
    if options["dry_run"]:
        say_json(messages.plan_data(result)) if as_json else click.echo("\n".join(messages.plan_lines(result)))
        return
    say_json(messages.outcome_data(result)) if as_json else click.echo("\n".join(messages.outcome_lines(result)))
    if result.errors:
        sys.exit(READ_ERRORS)


def _stop_on_signals() -> threading.Event:
    """End the run after the units in flight on SIGINT or SIGTERM; on a second signal, at once."""
    stop = threading.Event()

    def handle(number: int, _frame: Any) -> None:
        if stop.is_set():
            os._exit(INTERRUPTED)
        stop.set()
        note("\nstopping after the units in flight; again to stop at once")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return stop


# --- analyze, report --------------------------------------------------------------------------------------------------


@cli.command(short_help="A store gets its statistics over the dataset.")
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
    "--workers", type=click.IntRange(1), metavar="N", help="N local processes; by default threads of this process."
)
@click.option("--scheduler", metavar="tcp://HOST:PORT", help="Do the work on a Dask cluster.")
@click.option("--overwrite", is_flag=True, help="Recompute statistics that exist.")
@click.option("--list", "list_names", is_flag=True, help="List the names of the statistics.")
def analyze(
    store: Path | None,
    names: tuple[str, ...],
    list_names: bool,
    workers: int | None,
    scheduler: str | None,
    **options: Any,
) -> None:
    """Compute statistics of STORE and write them into it: by default those that the run did not, and dataset sums.

    NAME adds further statistics; --list shows them.
    """
    if list_names:
        from .analysis.catalog import described

        for name, meaning in described().items():
            click.echo(f"{name:<38} {meaning}")
        return
    if store is None:
        raise UsageError("which store? `attlas analyze STORE.zarr`")
    with _pool(workers, scheduler) as who:
        result = attlas.analyze(store, list(names) or None, progress=True, **who, **options)
    for line in result.notes:
        note(f"note: {line}")
    note(f"{result.images:,} images, {amount(result.read)} of attention read, {duration(result.seconds)}")
    for name in (*result.made, *result.summed):
        click.echo(name)


@cli.command(short_help="One self-contained HTML page with the figures.")
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
@click.option("--overwrite", is_flag=True, help="Replace an existing page.")
def report(stores: tuple[Path, ...], output: Path | None, methods: bool, **options: Any) -> None:
    """Write a report of STORE; several stores are shown side by side."""
    if methods == (output is not None):
        raise UsageError("name the page with -o NAME.html, or print the methods alone with --methods")
    if output is None:
        from .analysis.report import describe

        click.echo(describe(stores))
        return
    click.echo(attlas.report(list(stores), output, progress=True, **options))


# --- inspect, verify, models, doctor, demo ----------------------------------------------------------------------------


@cli.command(short_help="What a graph or a store holds.")
@click.argument("path", type=store_path)
@click.option("--all", "whole", is_flag=True, help="Every array of a store, and the record of every run.")
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON.")
def inspect(path: Path, whole: bool, as_json: bool) -> None:
    """Describe the graph or store at PATH; for an unfinished store, also its progress."""
    from .engine.inspect import screen

    data = attlas.inspect(path)
    if as_json:
        say_json(data)
        return
    if data["kind"] == "store" and not whole:
        click.echo("\n".join(screen(data)))
        return
    click.echo("\n".join(messages.facts_lines(data)))


@cli.command(short_help="Whether a store holds what it promises.")
@click.argument("store", type=store_path)
@click.option("--repair", is_flag=True, help="Reopen faulty units; the same run command redoes them.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def verify(store: Path, repair: bool, as_json: bool) -> None:
    """Read every chunk of every done unit of STORE: files, checksums, rows that sum to 1."""
    result = attlas.verify(store, repair=repair, progress=True)
    if as_json:
        say_json({"units": result.units, "faults": result.faults, "repaired": result.repaired})
    else:
        for k, fault in result.faults.items():
            click.echo(f"unit {k}: {fault}")
        click.echo(
            f"{result.units} units checked, {len(result.faults)} faulty" + (", reopened" if result.repaired else "")
        )
    if result.faults:
        sys.exit(1)


@cli.command(short_help="What can be exported.")
@click.argument("pattern", default="*")
@click.option("--names", is_flag=True, help="Only names, which is fast.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def models(pattern: str, names: bool, as_json: bool) -> None:
    """List timm's models that match PATTERN (wildcards) and whose attention can be exported.

    Each line: the tokens before the patches, the grid of patches, what the head reads, layers, heads, weights, and the
    bytes of one image's maps in float16. For the exact name of a model that cannot be exported, it says why.
    """
    from .exporter.listing import list_models, summaries

    if names:
        listed = list_models(pattern)
        say_json(listed) if as_json else click.echo("\n".join(listed))
        return
    found = summaries(pattern, progress=note)
    if as_json:
        say_json([dataclasses.asdict(one) for one in found])
        return
    for line in messages.model_lines(found):
        click.echo(line)


@cli.command(short_help="What works on this machine.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def doctor(as_json: bool) -> None:
    """Run a test graph on every provider of onnxruntime, and list what is installed."""
    data = attlas.doctor()
    say_json(data) if as_json else click.echo("\n".join(messages.doctor_lines(data)))
    if data["problems"]:
        sys.exit(1)


@cli.command(short_help="Everything once, on a few photographs.")
@click.option("-o", "--output", default="attlas-demo", type=path_argument, help="The folder.")
@click.option("--model", default="deit_tiny_patch16_224", help="timm's name.")
@click.option("--checkpoint", type=path_argument, help="Weights from this file, if the model hub cannot be reached.")
def demo(output: Path, model: str, checkpoint: Path | None) -> None:
    """Export a model, run it on six freely usable photographs, analyse, and write a report."""
    click.echo(attlas.demo(output, model=model, checkpoint=checkpoint, progress=True))


# --- shared by commands -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _pool(workers: int | None, scheduler: str | None) -> Iterator[dict[str, Any]]:
    """The arguments of `analyze` that say who does the work; by default none, and this process does it."""
    if workers is not None and scheduler is not None:
        raise UsageError("--workers, --scheduler: choose one")
    if scheduler is not None:
        from .engine.executors.cluster import Cluster

        with Cluster(scheduler) as cluster, cluster.pool() as executor:
            note(cluster.description)
            yield {"executor": executor, "workers": 2 * cluster.threads}
    elif workers is not None:
        from .engine.executors.processes import pool

        with pool(workers) as executor:
            yield {"executor": executor, "workers": workers}
    else:
        yield {}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; errors that the user can fix are one line."""
    try:
        cli.main(args=arguments, prog_name="attlas", standalone_mode=False)
    except AttlasError as error:
        note(f"attlas: {error}")
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        note("attlas: interrupted; the same command goes on, or begins again where nothing could be kept")
        sys.exit(INTERRUPTED)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (`{context.command_path} --help` lists what it takes)" if context is not None else ""
        note(f"attlas: {error.format_message().rstrip('.')}{hint}")
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of stdout has closed it; the work itself is fine.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()

"""The command line: each command is its options and one library call of the same name.

Data goes to stdout, progress and notes to stderr. Exit codes: 0 fine; 1 failed; 2 wrong usage; 3 finished, but some
images could not be read; 130 interrupted, the same command goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attlas
import click

from .engine import words
from .exporter.errors import AttlasError, Interrupted, UsageError

READ_ERRORS = 3
INTERRUPTED = 130


class _Path(click.Path):
    """A path of this machine; `~` is the user's folder even where the shell leaves it, as in `--images=~/x`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from .engine.sources.files import place

        return Path(place(os.fsdecode(super().convert(value, param, ctx))))


path_argument = _Path(path_type=Path)


def store_path(value: str) -> Any:
    """A path of this machine, or a URL."""
    from .engine.places import locate

    return locate(value)


class _Commands(click.Group):
    """Lists the commands in the order of the work."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(attlas.__version__, prog_name="attlas")
def cli() -> None:
    r"""The atlas of attention: compute, store and analyse the attention of Vision Transformers over whole datasets.

    \b
    attlas export deit_tiny_patch16_224 -o deit.onnx    a timm model becomes an ONNX graph with attention outputs
    attlas run deit.onnx IMAGES -o deit.zarr            the graph and a folder of images become an attention store
    attlas analyze deit.zarr                            the store gets its statistics over the dataset
    attlas report deit.zarr -o report.html              one self-contained page with the figures

    Exit codes: 0 fine; 1 failed; 2 wrong usage; 3 finished, but some images could not be read; 130 interrupted (the
    same command goes on).
    """


def note(line: str) -> None:
    """One line for the person, never for a pipe."""
    click.echo(line, err=True)


def say_json(data: Any) -> None:
    """Data for a program."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def numbers(_ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    """`0,3-5` as [0, 3, 4, 5]."""
    if value is None:
        return None
    found: list[int] = []
    try:
        for part in value.split(","):
            first, dash, last = part.partition("-")
            found += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError:
        raise click.BadParameter(f"{value!r}: write layers as 0,3,5-7", param=param) from None
    if not found:
        raise click.BadParameter(f"{value!r}: names no layer", param=param)
    return found


# --- export -----------------------------------------------------------------------------------------------------------


@cli.command(short_help="A timm model becomes an ONNX graph with attention outputs.")
@click.argument("model")
@click.option("-o", "--output", required=True, type=path_argument, help="The graph, NAME.onnx.")
@click.option("--checkpoint", type=path_argument, help="Weights from this file (safetensors, or a torch state dict).")
@click.option("--pretrained", "pretrained", is_flag=True, help="The tag's own weights from the model hub (default).")
@click.option("--random-init", is_flag=True, help="Random weights.")
@click.option("--seed", default=0, show_default=True, help="Of --random-init.")
@click.option("--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True,
              help="In which the graph computes; its outputs are float32.")  # fmt: skip
@click.option("--img-size", metavar="N or H,W", help="Input size, where the model's own is not wanted.")
@click.option("--preprocess", metavar="KEY=VALUE,...",
              help="Replace parts of the recipe: mean=0.5,std=0.5,resize=squash:256,crop=224.")  # fmt: skip
@click.option("--layers", metavar="0,3-5", callback=numbers, help="Only these blocks' attention, counted from 0.")
@click.option("--num-classes", type=int, help="Of the checkpoint's head.")
@click.option("--gradients", is_flag=True, help="Gradients of a class's logit by the attention as outputs, too.")
@click.option("--norms", is_flag=True, help="Norms of values, attention branches and tokens as outputs, too.")
@click.option("--overwrite", is_flag=True, help="Replace an existing graph.")
def export(
    model: str, output: Path, pretrained: bool, random_init: bool, checkpoint: Path | None, **options: Any
) -> None:
    """Export timm's MODEL (with or without its pretrained tag) and prove the file against PyTorch."""
    if sum([pretrained, random_init, checkpoint is not None]) > 1:
        raise UsageError("--checkpoint, --pretrained and --random-init: choose one")
    if options["img_size"] is not None:
        options["img_size"] = _size(options["img_size"])
    result = attlas.export(
        model,
        output,
        checkpoint=checkpoint,
        random_init=random_init,
        progress=note if sys.stderr.isatty() else None,
        **options,
    )
    parity = result.parity
    head = "logits" if result.spec.output("logits") else "features"
    note(
        f"largest row total variation from PyTorch {parity.row_max:.1e} (mean {parity.row_mean:.1e}), "
        f"{head} within {parity.head:.1e}; {len(result.spec.layers)} layers, {result.spec.heads} heads, "
        f"{result.spec.tokens} tokens; {words.amount(result.bytes)} in {result.seconds:.0f} s"
    )
    if parity.gradient_max is not None:
        note(f"largest gradient difference {parity.gradient_max:.1e} of the layer's maximum")
    if parity.norm_max is not None:
        note(f"largest difference of a norm {parity.norm_max:.1e} of the layer's maximum")
    click.echo(result.path)


def _size(text: str) -> int | tuple[int, int]:
    try:
        edges = [int(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        edges = []
    if len(edges) not in (1, 2) or min(edges) < 1:
        raise UsageError(f"--img-size {text}: write one edge or height,width in pixels")
    return edges[0] if len(edges) == 1 else (edges[0], edges[1])


# --- run --------------------------------------------------------------------------------------------------------------


@cli.command(short_help="A graph and images become an attention store.")
@click.argument("graph", type=path_argument)
@click.argument("images")
@click.option("-o", "--output", required=True, type=store_path, help="The store, NAME.zarr, or a URL.")
@click.option("--keep", default="attention", show_default=True,
              help="Large arrays to keep, comma-separated: attention, attention_mean, gradient, gradient_mean, "
              "gradient_positive, tokens; or none.")  # fmt: skip
@click.option("--layers", metavar="0,3-5", callback=numbers, help="Keep only these blocks' attention, counted from 0.")
@click.option("--store-dtype", type=click.Choice(["float16", "float32", "uint8"]), default="float16", show_default=True,
              help="Of the stored attention; uint8 holds companded codes, for averages only.")  # fmt: skip
@click.option("--target", default="predicted", show_default=True, metavar="predicted|label|N",
              help="The class whose logit the gradients are of.")  # fmt: skip
@click.option("--batch-size", default="auto", show_default=True, help="Images of a batch, which is one chunk.")
@click.option("--provider", default="auto", show_default=True, help="auto, cpu, cuda or any that `doctor` lists.")
@click.option("--workers", type=click.IntRange(1), metavar="N",
              help="N local processes, each with cores or a card of its own, and not this one.")  # fmt: skip
@click.option("--scheduler", metavar="tcp://HOST:PORT", help="A Dask cluster does the work.")
@click.option("--threads", type=click.IntRange(1), hidden=True)
@click.option("--shard", default="1/1", show_default=True, help="K/N: the K-th of N processes that share the store.")
@click.option("--limit", type=int, help="Take this many images, evenly spread over the sorted list.")
@click.option("--seed", default=0, show_default=True, help="Of the sample of pictures in the store.")
@click.option("--dry-run", is_flag=True, help="Say what the run would be, and write nothing.")
@click.option("--overwrite", is_flag=True, help="Put aside and delete a store that is there.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
def run(graph: Path, images: str, output: Path, as_json: bool, **options: Any) -> None:
    r"""Stream IMAGES through GRAPH into a store. The same command resumes what was stopped.

    \b
    IMAGES is, on this machine or by URL (s3://bucket/...):
      a folder of images, or of .tar or .parquet files
      a table with the column path: .csv, .tsv, .jsonl, .parquet; its column label, and any others, stay with the images
      a .tar of images, plain or by WebDataset's convention
      a .parquet with a column of images
      several of these two: 'train-{000..127}.tar', 'train-*.parquet'
    """
    options["keep"] = tuple(part.strip() for part in options["keep"].split(","))
    options["batch_size"] = _batch_size(options["batch_size"])
    options["shard"] = _shard(options["shard"])
    stop = _stop_on_signals()
    shown = _RunProgress()
    result = attlas.run(graph, images, output, progress=shown, stop=stop, **options)
    shown.end()
    for line in result.notes:
        note(f"note: {line}")
    if options["dry_run"]:
        say_json(words.plan_data(result)) if as_json else click.echo("\n".join(words.plan_lines(result)))
        return
    say_json(words.outcome_data(result)) if as_json else click.echo("\n".join(words.outcome_lines(result)))
    if result.errors:
        sys.exit(READ_ERRORS)


def _batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"--batch-size {text}: a whole number from 1, or auto")
    return int(text)


def _shard(text: str) -> tuple[int, int]:
    part, slash, whole = text.partition("/")
    if not (slash and part.isdigit() and whole.isdigit()):
        raise UsageError(f"--shard {text}: write K/N, for example 1/4")
    return int(part), int(whole)


def _stop_on_signals() -> threading.Event:
    """SIGINT and SIGTERM end the run after the units in flight; a second one ends it at once."""
    stop = threading.Event()

    def handle(number: int, _frame: Any) -> None:
        if stop.is_set():
            os._exit(INTERRUPTED)
        stop.set()
        note("\nstopping after the units in flight; again to stop at once")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return stop


class _RunProgress:
    """Shows a run: one line that moves on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.moving = sys.stderr.isatty()
        self.last = 0.0
        self.begun = False
        self.workers = ""

    def __call__(self, progress: Any) -> None:
        if not self.begun:
            self.begun = True
            for line in words.estimate_lines(progress.estimate):
                note(line)
        if progress.workers != self.workers:
            self.workers = progress.workers
            note(("\n" if self.moving and self.last else "") + progress.workers)
        now = time.monotonic()
        soon = now - self.last < (0.2 if self.moving else 30) and progress.done < progress.total
        if soon or not progress.rate:
            return
        self.last = now
        line = words.progress_line(progress)
        click.echo(f"\r{line:<90}" if self.moving else line, err=True, nl=not self.moving)

    def end(self) -> None:
        if self.moving and self.begun:
            click.echo("", err=True)


# --- analyze, report --------------------------------------------------------------------------------------------------


@cli.command(short_help="A store gets its statistics over the dataset.")
@click.argument("store", type=store_path, required=False)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--by", metavar="COLUMN", default="",
              help="By class too: label, predicted, or any column of the store.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1), metavar="N",
              help="N local processes; by default threads of this one.")  # fmt: skip
@click.option("--scheduler", metavar="tcp://HOST:PORT", help="A Dask cluster does the work.")
@click.option("--overwrite", is_flag=True, help="Compute again what is there.")
@click.option("--list", "list_names", is_flag=True, help="List the names of the statistics.")
def analyze(
    store: Path | None, names: tuple[str, ...], list_names: bool, workers: int | None, scheduler: str | None,
    **options: Any,
) -> None:  # fmt: skip
    """Compute statistics from STORE and write them into it: by default what the run did not compute, and the dataset's.

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
        result = attlas.analyze(store, list(names) or None, progress=_images_of(), **who, **options)
    for line in result.notes:
        note(f"note: {line}")
    note(f"{result.images:,} images, {words.amount(result.read)} of attention read, {words.duration(result.seconds)}")
    for name in (*result.made, *result.summed):
        click.echo(name)


@cli.command(short_help="One self-contained HTML page with the figures.")
@click.argument("stores", type=store_path, nargs=-1, required=True, metavar="STORE...")
@click.option("-o", "--output", type=path_argument, help="The page, NAME.html.")
@click.option("--methods", is_flag=True,
              help="Print what the stores' statistics are, as a paragraph with BibTeX, and no page.")  # fmt: skip
@click.option("--images", type=path_argument, help="The folder of the run, for pictures beyond the store's sample.")
@click.option("--figures", type=path_argument, help="Write every figure here, too: PDF, SVG, PNG, and its data as CSV.")
@click.option("--examples", default=4, show_default=True, type=click.IntRange(0), help="How many pictures to show.")
@click.option("--baseline", type=store_path, multiple=True,
              help="A store to compare with and no more, such as random weights; may be given again.")  # fmt: skip
@click.option("--boxes", type=path_argument, help="Objects in the original images: COCO JSON.")
@click.option("--overwrite", is_flag=True, help="Replace an existing page.")
def report(stores: tuple[Path, ...], output: Path | None, methods: bool, **options: Any) -> None:
    """Write a report of STORE; several stores stand side by side."""
    if methods == (output is not None):
        raise UsageError("name the page with -o NAME.html, or print the methods alone with --methods")
    if output is None:
        from .analysis.report.methods import describe

        click.echo(describe(stores))
        return
    progress = note if sys.stderr.isatty() else None
    click.echo(attlas.report(list(stores), output, progress=progress, **options))


# --- inspect, verify, models, doctor, demo ----------------------------------------------------------------------------


@cli.command(short_help="What a graph or a store holds.")
@click.argument("path", type=store_path)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def inspect(path: Path, as_json: bool) -> None:
    """Describe the graph or store at PATH; of an unfinished store, how far it is."""
    data = attlas.inspect(path)
    if as_json:
        say_json(data)
        return
    for key, value in data.items():
        _show(key, value)


def _show(key: str, value: Any, indent: int = 0) -> None:
    """One fact a line; what nests is indented."""
    pad = "  " * indent
    if key == "arrays":
        click.echo(f"{pad}arrays")
        for name, array in value.items():
            dims = ", ".join(f"{d} {n}" for d, n in array["dims"].items())
            click.echo(f"{pad}  {name:<26} {array['dtype']:<9} ({dims})  {words.amount(array['bytes'])}")
    elif key == "outputs":
        click.echo(f"{pad}outputs")
        for name, dims in value.items():
            click.echo(f"{pad}  {name:<26} ({', '.join(f'{d} {n}' if n else d for d, n in dims.items())})")
    elif isinstance(value, dict):
        click.echo(f"{pad}{key}")
        for inner, one in value.items():
            _show(inner, one, indent + 1)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for number, one in enumerate(value, 1):
            _show(f"{key} {number}", one, indent)
    else:
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        if key.startswith(("bytes", "attention_bytes")):
            text = words.amount(value)
        click.echo(f"{pad}{key:<26} {text}")


@cli.command(short_help="Whether a store holds what it promises.")
@click.argument("store", type=store_path)
@click.option("--repair", is_flag=True, help="Reopen the faulty units; the same run does them again.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def verify(store: Path, repair: bool, as_json: bool) -> None:
    """Read every chunk of every done unit of STORE: files, checksums, rows that sum to 1."""
    result = attlas.verify(store, repair=repair, progress=_percent())
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
@click.option("--names", is_flag=True, help="Names alone, at once.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def models(pattern: str, names: bool, as_json: bool) -> None:
    """List timm's models whose name matches PATTERN (wildcards) and whose attention can be exported.

    Each line: the tokens before the patches, the grid of patches, what the head reads, layers, heads, weights, and the
    bytes that the maps of one image take as float16. The exact name of a model that cannot be exported says why.
    """
    from .exporter.models import list_models
    from .exporter.summary import summaries

    if names:
        listed = list_models(pattern)
        say_json(listed) if as_json else click.echo("\n".join(listed))
        return
    found = summaries(pattern)
    if as_json:
        say_json([dataclasses.asdict(one) for one in found])
        return
    line = "{:<54} {:<24} {:>9} {:<9} {:>6} {:>5} {:>8} {:>9}"
    for number, one in enumerate(found):
        if number == 0:
            click.echo(line.format("model", "prefix", "grid", "pooling", "layers", "heads", "weights", "maps"))
        counts = {kind: one.prefix.count(kind) for kind in one.prefix}
        kinds = [f"{count} {kind}" if count > 1 else kind for kind, count in counts.items()]
        grid, weights = f"{one.grid[0]} x {one.grid[1]}", f"{one.parameters / 1e6:.1f} M"
        texts = (one.name, ", ".join(kinds) or "none", grid, one.pooling, one.depth, one.heads, weights)
        click.echo(line.format(*texts, words.amount(one.attention_bytes)))


@cli.command(short_help="What works on this machine.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def doctor(as_json: bool) -> None:
    """Try every provider of onnxruntime for real, and look at what is installed."""
    data = attlas.doctor()
    if as_json:
        say_json(data)
    else:
        click.echo(f"Python {data['python']} on {data['system']}")
        click.echo("providers")
        for name, state in data["providers"].items():
            click.echo(f"  {name:<28} {state}")
        click.echo("packages")
        for name, version in data["versions"].items():
            click.echo(f"  {name:<28} {version}")
        for extra, missing in data["extras"].items():
            if missing:
                click.echo(f"without {', '.join(missing)}: `pip install 'attlas[{extra}]'` brings the {extra} room")
        for problem in data["problems"]:
            click.echo(f"problem: {problem}")
    if data["problems"]:
        sys.exit(1)


@cli.command(short_help="Everything once, on a few photographs.")
@click.option("-o", "--output", default="attlas-demo", show_default=True, type=path_argument, help="The folder.")
@click.option("--model", default="deit_tiny_patch16_224", show_default=True, help="timm's name.")
@click.option("--checkpoint", type=path_argument, help="Weights, where the model hub cannot be reached.")
def demo(output: Path, model: str, checkpoint: Path | None) -> None:
    """Export a model, run it over six photographs that anyone may show, analyse, and write a report."""
    click.echo(attlas.demo(output, model=model, checkpoint=checkpoint, progress=note))


# --- helpers ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _pool(workers: int | None, scheduler: str | None) -> Iterator[dict[str, Any]]:
    """Who does the work of an analysis, as its arguments; nobody else by default."""
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


def _percent() -> Callable[[int, int], None] | None:
    """Progress as (done, total), on a terminal only."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        click.echo(f"\r{done:,}/{total:,}", err=True, nl=done == total)

    return show


def _images_of() -> Callable[[Any], None] | None:
    """Progress with `done` and `total`, on a terminal only."""
    show = _percent()
    return None if show is None else lambda progress: show(progress.done, progress.total)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; errors that a user can mend are one line."""
    try:
        cli.main(args=arguments, prog_name="attlas", standalone_mode=False)
    except AttlasError as error:
        note(f"attlas: {error}")
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(Interrupted.exit_code)
    except BrokenPipeError:
        # Whoever read stdout has left; nothing is wrong with the work.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()

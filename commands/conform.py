"""`attlas conform`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import attlas
import click

from ..errors import UsageError
from ..words import counted
from .shared import path_argument, say, say_json


@click.command(short_help="Is the graph still the model in this runtime?")
@click.argument("graph", type=path_argument)
@click.argument("images", required=False)
@click.option("--provider", default="auto", help="What is tested: auto, cpu, cuda, openvino or any `doctor` lists.")
@click.option(
    "--precision",
    default="float32",
    metavar="float32|bfloat16",
    help="What openvino computes in; bfloat16 has wider bounds.",
)
@click.option(
    "--against",
    default="cpu",
    metavar="cpu|STORE",
    help="The reference: onnxruntime on the processor, without optimisations, or a store of the same images.",
)
@click.option("--limit", type=click.IntRange(1), default=16, help="Take this many pictures, evenly spread.")
@click.option(
    "--export", "exported", type=path_argument, metavar="CASES.npz", help="Write inputs and expected outputs instead."
)
@click.option(
    "--import",
    "results",
    type=path_argument,
    metavar="RESULTS.npz",
    help="Judge what another runtime gave for the cases in IMAGES.",
)
@click.option("--overwrite", is_flag=True, help="With --export: replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def conform(
    graph: Path,
    images: str | None,
    exported: Path | None,
    results: Path | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare GRAPH in a runtime with a reference, layer by layer, and name the first layer that differs.

    IMAGES is a picture, or what `attlas run` takes, or cases that --export wrote; without, pictures are made, always
    the same, and with --against STORE the store's own are taken. Exit code 1 if it does not conform. docs/conform.md
    says what is compared, how a difference is explained, and how to test a browser or a phone.
    """
    if exported is not None:
        from ..engine.conform import write_cases

        usual = {"against": "cpu", "provider": "auto", "precision": "float32"}
        if results is not None or any(options[name] != value for name, value in usual.items()):
            raise UsageError("--export: is always of onnxruntime on the processor; leave the other options out")
        count = write_cases(graph, exported, images, limit=options["limit"], overwrite=overwrite, progress=True)
        said = f"{exported}: {counted(count, 'picture')} with what is expected of them"
        say_json({"cases": str(exported), "pictures": count}) if as_json else say(said)
        return
    if overwrite:
        raise UsageError("--overwrite: is for --export, and nothing is written here")
    result = attlas.conform(graph, images, results=results, progress=True, **options)
    say_json(result.to_dict()) if as_json else say(*repr(result).split("\n"))
    if not result.conforms:
        sys.exit(1)

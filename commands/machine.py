"""`attlas models`, `attlas doctor` and `attlas demo`: what can be exported, what works here, everything once."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import attlas
import click

from ..engine import messages
from .shared import note, path_argument, say, say_json


@click.command(short_help="What can be exported.")
@click.argument("pattern", default="*")
@click.option("--names", is_flag=True, help="Only names, which is fast.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def models(pattern: str, names: bool, as_json: bool) -> None:
    """List timm's models that match PATTERN (wildcards) and whose attention can be exported.

    Each line: the tokens before the patches, the grid of patches, what the head reads, layers, heads, weights, and the
    bytes of one image's maps in float16. For the exact name of a model that cannot be exported, it says why.
    """
    from ..exporter.listing import list_models, summaries

    if names:
        listed = list_models(pattern)
        say_json(listed) if as_json else say(*listed)
        return
    found = summaries(pattern, progress=note)
    if as_json:
        say_json([dataclasses.asdict(one) for one in found])
        return
    say(*messages.model_lines(found))


@click.command(short_help="What works on this machine.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def doctor(as_json: bool) -> None:
    """Run a test graph on every provider, and list what is installed."""
    data = attlas.doctor()
    say_json(data) if as_json else say(*messages.doctor_lines(data))
    if data["problems"]:
        sys.exit(1)


@click.command(short_help="Everything once, on a few photographs.")
@click.option("-o", "--output", default="attlas-demo", type=path_argument, help="The folder.")
@click.option("--model", default="deit_tiny_patch16_224", help="timm's name.")
@click.option("--checkpoint", type=path_argument, help="Weights from this file, if the model hub cannot be reached.")
def demo(output: Path, model: str, checkpoint: Path | None) -> None:
    """Export a model, run it on six freely usable photographs, analyse, and write a report."""
    say(attlas.demo(output, model=model, checkpoint=checkpoint, progress=True))

"""`attlas inspect` and `attlas verify`: what a graph or a store holds."""

from __future__ import annotations

import sys
from pathlib import Path

import attlas
import click

from ..engine import messages
from ..words import counted
from .shared import say, say_json, store_path


@click.command(short_help="What a graph or a store holds.")
@click.argument("path", type=store_path)
@click.option("--all", "whole", is_flag=True, help="Every array of a store, and the record of every run.")
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON.")
def inspect(path: Path, whole: bool, as_json: bool) -> None:
    """Describe the graph or store at PATH; for an unfinished store, also its progress."""
    from ..engine.inspect import screen

    data = attlas.inspect(path)
    if as_json:
        say_json(data)
        return
    if data["kind"] == "store" and not whole:
        say(*screen(data))
        return
    say(*messages.facts_lines(data))


@click.command(short_help="Whether a store holds what it promises.")
@click.argument("store", type=store_path)
@click.option(
    "--repair", is_flag=True, help="Reopen faulty units, and remove what else is damaged; says what writes it again."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def verify(store: Path, repair: bool, as_json: bool) -> None:
    """Read every chunk of STORE that was written: files, checksums, rows that sum to 1."""
    result = attlas.verify(store, repair=repair, progress=True)
    if as_json:
        faulty = {"faults": result.faults, "arrays": result.arrays}
        say_json({"units": result.units, **faulty, "repaired": result.repaired})
    else:
        for k, fault in result.faults.items():
            say(f"unit {k}: {fault}")
        for name, fault in result.arrays.items():
            say(f"{name}: {fault}")
        reopened = ", reopened" if repair and result.faults else ""
        others = f"; {counted(len(result.arrays), 'other array')} faulty" if result.arrays else ""
        say(f"{counted(result.units, 'unit')} checked, {len(result.faults)} faulty{reopened}{others}")
    if result.faults or result.arrays:
        sys.exit(1)

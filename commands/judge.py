"""`attlas judge`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attlas
import click

from ..errors import UsageError
from ..words import counted
from .shared import note, path_argument, pool, say, store_path, who_works, written


@click.command(short_help="Which map explains the model? Faithfulness over the dataset.")
@click.argument("store", type=store_path)
@click.argument("graph", type=path_argument)
@click.argument("images")
@click.option(
    "--maps",
    multiple=True,
    metavar="NAME,...",
    help="Maps of the patches: rollout,readout_map:layer=11; `attlas analyze --list` shows all.",
)
@click.option("--steps", default=16, help="In how many steps all patches are removed.")
@click.option("--fill", default="mean", metavar="mean|blur|black|noise", help="What takes the place of a patch.")
@click.option(
    "--target", default="predicted", metavar="predicted|label|N", help="The class whose logit and probability count."
)
@click.option(
    "--other",
    type=store_path,
    metavar="STORE",
    help="A second store of the same images, such as of random weights: its maps are judged too.",
)
@click.option(
    "--masks",
    type=path_argument,
    metavar="DIR",
    help="PNGs named like the images, the object not 0: judge maps by them.",
)
@click.option(
    "--boxes", type=path_argument, metavar="FILE", help="Objects in the original images, COCO JSON: judge maps by them."
)
@click.option("--heads", is_flag=True, help="Judge no maps, but what the model loses without each of its heads.")
@click.option(
    "--silence", default="zero", metavar="zero|mean", help="With --heads: what stands in place of a head's output."
)
@click.option(
    "--against",
    type=store_path,
    metavar="STORE",
    help="Another model's store that was judged in the same way: paired differences from it.",
)
@click.option("--provider", default="auto", help="auto, cpu, cuda or any that `doctor` lists.")
@who_works
@click.option("--overwrite", is_flag=True, help="Judge again what was judged.")
def judge(
    store: Path,
    graph: Path,
    images: str,
    maps: tuple[str, ...],
    heads: bool,
    silence: str,
    against: Path | None,
    workers: int | None,
    scheduler: str | None,
    **options: Any,
) -> None:
    """Remove and insert patches in the order of maps of STORE, and see what GRAPH says of IMAGES without them.

    GRAPH and IMAGES are those of the run that made STORE. Every map is judged beside three that know nothing of the
    picture. With --heads, GRAPH is one of `attlas export --ablate`. The same command resumes what was stopped.
    docs/judge.md says what each number means.
    """
    from ..analysis.judge import between
    from ..analysis.judge.lines import cell, verdict_lines
    from ..analysis.judge.maps import split

    names = [name for text in maps for name in split(text)]
    if heads:
        _heads(store, graph, images, silence, workers, scheduler, options)
        return
    if written("silence"):
        raise UsageError("--silence: is what --heads judges by; leave it out, or add --heads")
    if not names:
        raise UsageError("which maps? --maps rollout,readout_map:layer=11")
    with pool(workers, scheduler) as who:
        result = attlas.judge(store, graph, images, maps=names, progress=True, **who, **options)
    for line in result.notes:
        note(f"note: {line}")
    note(result.said)
    say(*verdict_lines(result.verdict))
    if against is not None:
        for one in between(store, against, tag=result.verdict.tag):
            found = cell(one.difference, one.bounds, "+.3f")
            say(f"less {against.name}, {counted(one.images, 'image')}: {one.map} {one.figure} {found}")
    say(*result.outlined())


def _heads(
    store: Path,
    graph: Path,
    images: str,
    silence: str,
    workers: int | None,
    scheduler: str | None,
    options: dict[str, Any],
) -> None:
    """`--heads`: a line for each head, and how well first-order importance has their order."""
    from ..analysis.judge import judge_heads

    if of_maps := written("maps", "steps", "fill", "target", "other", "masks", "boxes", "against"):
        raise UsageError(f"--heads: judges no maps; leave {', '.join(of_maps)} out")
    given = {name: options[name] for name in ("provider", "overwrite")}
    with pool(workers, scheduler) as who:
        result = judge_heads(store, graph, images, silence=silence, progress=True, **who, **given)
    for line in result.notes:
        note(f"note: {line}")
    note(result.said)
    if result.rank is None:
        note("note: the store has no gradients, from which first-order importance is computed")
    say(*result.lines())

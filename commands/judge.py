"""`attlas judge`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attlas
import click

from ..engine.amounts import duration
from ..errors import UsageError
from ..words import counted
from .shared import note, path_argument, pool, store_path, who_works, written

SHOWN = ("deletion", "insertion", "difference")


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
    from ..analysis.judge import between, localisation, segmentation
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
    rate = f", {result.forwards / result.judging:.1f} pictures/s" if result.forwards else ""
    note(f"{counted(result.images, 'image')}, {counted(result.forwards, 'picture')}{rate}, {duration(result.seconds)}")
    for line in _table(result.verdict):
        click.echo(line)
    if against is not None:
        for one in between(store, against, tag=result.verdict.tag):
            found = _cell(one.difference, one.bounds, "+.3f")
            click.echo(f"less {against.name}, {counted(one.images, 'image')}: {one.map} {one.figure} {found}")
    masked, boxed = result.segmentation, result.localisation
    if masked is not None:
        _outlined(f"against the masks of {counted(masked.images, 'image')}:", masked, segmentation.SCORES)
    if boxed is not None:
        said = f"against {counted(boxed.objects, 'box', 'boxes')} in {counted(boxed.images, 'image')}:"
        _outlined(said, boxed, localisation.SCORES)


def _outlined(title: str, found: Any, figures: tuple[str, ...]) -> None:
    """Every map by what people have outlined."""
    width = max(len("map"), *map(len, found.maps))
    click.echo(title)
    click.echo(f"{'map':<{width}}  {'  '.join(f'{name:<24}' for name in figures)}".rstrip())
    for i, name in enumerate(found.maps):
        cells = [_cell(found.mean[i, f], found.bounds[:, i, f], ".3f") for f in range(len(figures))]
        click.echo(f"{name:<{width}}  {'  '.join(f'{cell:<24}' for cell in cells)}".rstrip())


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
    from ..analysis.judge.heads import LOSSES

    if of_maps := written("maps", "steps", "fill", "target", "other", "masks", "boxes", "against"):
        raise UsageError(f"--heads: judges no maps; leave {', '.join(of_maps)} out")
    given = {name: options[name] for name in ("provider", "overwrite")}
    with pool(workers, scheduler) as who:
        result = judge_heads(store, graph, images, silence=silence, progress=True, **who, **given)
    for line in result.notes:
        note(f"note: {line}")
    note(f"{counted(result.images, 'image')}, {counted(result.forwards, 'picture')}, {duration(result.seconds)}")
    if result.rank is None:
        note("note: the store has no gradients, from which first-order importance is computed")
    click.echo(f"{'layer, head':<12}  {'  '.join(f'{name:<28}' for name in LOSSES)}".rstrip())
    for layer in range(result.loss.shape[0]):
        for head in range(result.loss.shape[1]):
            cells = [_cell(result.loss[layer, head, f], result.bounds[:, layer, head, f]) for f in range(len(LOSSES))]
            click.echo(f"{f'{layer}, {head}':<12}  {'  '.join(f'{cell:<28}' for cell in cells)}".rstrip())
    if result.rank is not None and result.rank_bounds is not None:
        cells = [_cell(result.rank[f], result.rank_bounds[:, f]) for f in range(len(LOSSES))]
        click.echo("rank correlation over heads with first-order importance")
        click.echo(f"{'':<12}  {'  '.join(f'{cell:<28}' for cell in cells)}".rstrip())


def _cell(mean: Any, bounds: Any, form: str = "+.4f") -> str:
    """A mean with its interval, which one image and equal values have not."""
    known = math.isfinite(bounds[0]) and math.isfinite(bounds[1])
    within = f"{bounds[0]:{form}} to {bounds[1]:{form}}" if known else "no interval"
    return "–" if math.isnan(mean) else f"{mean:{form}} ({within})"


def _table(verdict: Any) -> Iterator[str]:
    """Probability of the class: area of every curve with its interval, and which maps differ from the best."""
    from ..analysis.judge.curves import FIGURES

    places = [FIGURES.index(f"{name}_probability") for name in SHOWN]
    width = max(len("map"), *map(len, verdict.maps))
    yield f"{'map':<{width}}  {'  '.join(f'{name:<24}' for name in SHOWN)}".rstrip()
    for i, name in enumerate(verdict.maps):
        cells = [_cell(verdict.mean[0, i, f], verdict.bounds[:, 0, i, f], ".3f") for f in places]
        yield f"{name:<{width}}  {'  '.join(f'{cell:<24}' for cell in cells)}".rstrip()
    last = places[-1]
    best = max(range(len(verdict.maps)), key=lambda i: verdict.mean[0, i, last])
    yield f"difference of {verdict.maps[best]}, the largest, from others, image by image:"
    for i, name in enumerate(verdict.maps):
        if i != best:
            off, bounds = verdict.difference[0, best, i, last], verdict.difference_bounds[:, 0, best, i, last]
            yield f"{name:<{width}}  {_cell(off, bounds, '+.3f')}"

"""What is said of a judgement: lines for a terminal, and for a notebook without one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from .curves import FIGURES
from .localisation import SCORES as LOCALISED
from .localisation import Localisation
from .segmentation import SCORES as SEGMENTED
from .segmentation import Segmentation
from .summary import Verdict

__all__ = ["cell", "outlined_lines", "rows_of_heads", "verdict_lines"]

SHOWN = ("deletion", "insertion", "difference")


def cell(mean: Any, bounds: Any, form: str = "+.4f") -> str:
    """A mean with its interval, which one image and equal values have not."""
    known = math.isfinite(bounds[0]) and math.isfinite(bounds[1])
    within = f"{bounds[0]:{form}} to {bounds[1]:{form}}" if known else "no interval"
    return "–" if math.isnan(mean) else f"{mean:{form}} ({within})"


def verdict_lines(verdict: Verdict) -> Iterator[str]:
    """Probability of the class: area of every curve with its interval, and which maps differ from the best."""
    places = [FIGURES.index(f"{name}_probability") for name in SHOWN]
    width = max(len("map"), *map(len, verdict.maps))
    yield f"{'map':<{width}}  {'  '.join(f'{name:<24}' for name in SHOWN)}".rstrip()
    for i, name in enumerate(verdict.maps):
        cells = [cell(verdict.mean[0, i, f], verdict.bounds[:, 0, i, f], ".3f") for f in places]
        yield f"{name:<{width}}  {'  '.join(f'{cell:<24}' for cell in cells)}".rstrip()
    last = places[-1]
    means = [float(mean) for mean in verdict.mean[0, :, last]]
    best = max(range(len(means)), key=lambda i: -math.inf if math.isnan(means[i]) else means[i])
    yield f"difference of {verdict.maps[best]}, the largest, from others, image by image:"
    for i, name in enumerate(verdict.maps):
        if i != best:
            off, bounds = verdict.difference[0, best, i, last], verdict.difference_bounds[:, 0, best, i, last]
            yield f"{name:<{width}}  {cell(off, bounds, '+.3f')}"


def outlined_lines(title: str, found: Segmentation | Localisation) -> Iterator[str]:
    """Every map by what people have outlined."""
    figures = SEGMENTED if isinstance(found, Segmentation) else LOCALISED
    width = max(len("map"), *map(len, found.maps))
    yield title
    yield f"{'map':<{width}}  {'  '.join(f'{name:<24}' for name in figures)}".rstrip()
    for i, name in enumerate(found.maps):
        cells = [cell(found.mean[i, f], found.bounds[:, i, f], ".3f") for f in range(len(figures))]
        yield f"{name:<{width}}  {'  '.join(f'{one:<24}' for one in cells)}".rstrip()


def rows_of_heads(figures: Sequence[str], rows: Sequence[tuple[str, Any, Any]]) -> Iterator[str]:
    """A line for each (name, values, bounds) of these figures, below their header."""
    yield f"{'layer, head':<12}  {'  '.join(f'{name:<28}' for name in figures)}".rstrip()
    for name, values, bounds in rows:
        cells = [cell(values[f], bounds[:, f]) for f in range(len(figures))]
        yield f"{name:<12}  {'  '.join(f'{one:<28}' for one in cells)}".rstrip()

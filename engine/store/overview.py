"""A store on one screen: what it is of, how far it is, and its arrays, statistics gathered by name."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping

__all__ = ["ENDS", "SUMMED", "as_html", "as_text", "gathered", "overview"]

# Suffixes of the arrays that summarise a statistic over images, and by group: docs/statistics.md.
ENDS = ("mean", "std", "quantile", "interval", "count", "difference", "q")
SUMMED = re.compile(rf"(?P<name>.+?)_(?P<end>{'|'.join(ENDS)})(?:_by_(?P<column>\w+))?")
WIDTH = 80  # of the words behind a name, in characters


def gathered(names: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Statistics by name, each with its summaries, by the column of their groups ("" without groups)."""
    found: dict[str, dict[str, list[str]]] = {}
    for name in names:
        match = SUMMED.fullmatch(name)
        if match is None:
            found.setdefault(name, {})
        else:
            found.setdefault(match["name"], {}).setdefault(match["column"] or "", []).append(match["end"])
    return dict(sorted(found.items()))


def overview(sizes: Mapping[str, Mapping[str, int]], facts: Mapping[str, str]) -> dict[str, str]:
    """What is said of a store, in order: words by what they are of.

    Args:
        sizes: the axes of each array with their lengths, by its name.
        facts: what is said first.
    """
    columns = [name for name, dims in sizes.items() if list(dims) == ["image"]]
    summed = {name for name in sizes if SUMMED.fullmatch(name)}
    statistics = gathered(summed)
    plain = [n for n, dims in sizes.items() if len(dims) > 1 and n not in statistics and n not in summed]
    groups = sorted({column for ways in statistics.values() for column in ways if column})
    found = dict(facts)
    alike: dict[str, list[str]] = {}
    for name in sorted(plain, key=lambda name: -math.prod(sizes[name].values())):
        alike.setdefault(", ".join(f"{dim} {n}" for dim, n in sizes[name].items()), []).append(name)
    found |= {dims: ", ".join(names) for dims, names in alike.items()}
    found["columns"] = ", ".join(columns)
    if statistics:
        found["statistics"] = ", ".join(statistics)
    if groups:
        found["by group"] = ", ".join(groups)
    return found


def as_text(title: str, said: Mapping[str, str], foot: str) -> str:
    """Lines that fit a terminal; long lists are cut."""
    wide = max(map(len, said))
    return "\n".join([title, *(f"  {key:<{wide}}  {_cut(words)}" for key, words in said.items()), f"  {foot}"])


def as_html(title: str, said: Mapping[str, str], foot: str) -> str:
    """A small table for notebooks, in their own colours."""
    cell = "text-align:left;vertical-align:top;padding:1px 12px 1px 0;border:0;background:none"
    rows = "".join(
        f'<tr><td style="{cell}"><code>{html.escape(key)}</code></td><td style="{cell}">{html.escape(words)}</td></tr>'
        for key, words in said.items()
    )
    table = f'<table style="border-collapse:collapse;border:0">{rows}</table>'
    return f"<div><b>{html.escape(title)}</b>{table}<small>{html.escape(foot)}</small></div>"


def _cut(text: str) -> str:
    """As many words as a line holds."""
    if len(text) <= WIDTH:
        return text
    names = text.split(", ")
    kept: list[str] = []
    while names and len(", ".join([*kept, names[0]])) <= WIDTH - 16:
        kept.append(names.pop(0))
    return f"{', '.join(kept)}, and {len(names)} more"

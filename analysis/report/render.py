"""The page as HTML: the one module that knows the template engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata

from jinja2 import Environment, PackageLoader, StrictUndefined

from .facts import Facts, table, warnings
from .plots.style import DARK, svg
from .plots.svg import data_url, for_page
from .sections.base import Absent, Context, Figure, Listing, Table
from .text.definitions import READING
from .text.markup import rich
from .text.methods import methods, paragraph, references

__all__ = ["Chapter", "Placed", "rendered"]


@dataclass(frozen=True, slots=True)
class Placed:
    """A figure on the page: its number, and its drawings as URLs; `narrow` is "" where one drawing fits all widths."""

    figure: Figure
    number: int
    drawing: str
    narrow: str

    @classmethod
    def of(cls, figure: Figure, number: int, drawn: str) -> Placed:
        """`drawn` is the SVG of the figure as wide as it is printed."""
        narrow = _url(svg(figure.draw(True))).replace(" ", "%20") if figure.wide else ""
        return cls(figure, number, _url(drawn), narrow)


def _url(drawn: str) -> str:
    return data_url(for_page(drawn, DARK))


@dataclass
class Chapter:
    """Parts under one heading."""

    title: str
    anchor: str
    parts: list[Placed | Figure | Absent | Table | Listing] = field(default_factory=list)

    @property
    def placed(self) -> list[Placed]:
        """Its figures alone, as the table of contents names them."""
        return [part for part in self.parts if isinstance(part, Placed)]


def rendered(chapters: Sequence[Chapter], contexts: Sequence[Context]) -> str:
    """The whole file."""
    facts = [context.facts for context in contexts]
    several = len(facts) > 1
    names = list(dict.fromkeys(one.spec.name for one in facts))
    found = methods(
        [
            *(name for chapter in chapters for part in chapter.placed for name in part.figure.methods),
            *(["accuracy"] if any(one.top1 for one in facts) else []),
        ],
        [context.store for context in contexts],
    )
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            version=_version(),
            names=names,
            several=several,
            facts=facts,
            lede=_lede(facts),
            warnings=[f"{one.letter}: {text}" if several else text for one in facts for text in warnings(one)],
            tiles=[] if several else _tiles(facts[0]),
            table=table(facts),
            chapters=chapters,
            reading=READING,
            methods=found,
            paragraph=paragraph([context.store for context in contexts], facts),
            references=references([*READING, *(text for _, text in found), *_texts(chapters)]),
        )
        + "\n"
    )


def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader(__package__, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["rich"] = rich
    found.tests["figure"] = lambda part: isinstance(part, Placed)
    found.tests["absent"] = lambda part: isinstance(part, Absent)
    found.tests["table"] = lambda part: isinstance(part, Table)
    return found


def _texts(chapters: Sequence[Chapter]) -> list[str]:
    """Everything in rich text that stands beside figures."""
    parts = [part for chapter in chapters for part in chapter.parts]
    captions = [part.figure.caption for part in parts if isinstance(part, Placed)]
    return captions + [part.reason for part in parts if isinstance(part, Absent)]


def _lede(facts: Sequence[Facts]) -> str:
    if len(facts) > 1:
        counts = ", ".join(f"{f.letter} {f.valid:,}" for f in facts)
        return f"The attention of {len(facts)} runs, side by side. Images: {counts}."
    one = facts[0]
    dataset, selection = (str(one.attrs.get(key, "")) for key in ("dataset", "selection"))
    whole = f" ({selection})" if selection and not selection.startswith("all ") else ""
    images = f"{one.valid:,} image{'s' if one.valid != 1 else ''}"
    return f"The attention of every layer and head over {images} of the dataset “{dataset}”{whole}."


def _tiles(facts: Facts) -> list[tuple[str, str, str]]:
    """(label, value, note) of the numbers that matter first."""
    spec = facts.spec
    tiles = [("Images", f"{facts.valid:,}", f"of {facts.images:,} planned, {facts.errors:,} unreadable")]
    for label, share in (("Top-1", facts.top1), ("Top-5", facts.top5)):
        if share is not None:
            tiles.append((label, f"{100 * share.value:.1f} %", str(share).partition(" (")[2].rstrip(")")))
    tiles.append(("Blocks × heads", f"{spec.depth} × {spec.heads}", f"{spec.tokens} tokens"))
    tiles.append(("Patches", f"{spec.grid[0]} × {spec.grid[1]}", f"of {spec.patch_size[0]} × {spec.patch_size[1]} px"))
    return tiles


def _version() -> str:
    try:
        return metadata.version("attlas")
    except metadata.PackageNotFoundError:
        return "from source"

"""The page as HTML: the one module that knows the template engine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ...engine.store.store import Store
from ...words import counted
from ..catalog import summed
from ..view.single import script_hash
from .facts import Facts, first, table, warnings
from .plots.style import DARK, svg
from .plots.svg import data_url, for_page
from .sections.base import Absent, Context, Figure, Listing, Section, Table
from .text.definitions import READING
from .text.markup import rich
from .text.methods import methods, paragraph, references

__all__ = ["Chapter", "Group", "Placed", "not_drawn", "rendered"]


@dataclass(frozen=True, slots=True)
class Placed:
    """A figure on the page: its number, and its drawings as URLs; `narrow` is "" where one drawing fits all widths.

    `tall` is its height by its width, from which print takes how large it is.
    """

    figure: Figure
    number: int
    drawing: str
    narrow: str
    tall: float

    @classmethod
    def of(cls, figure: Figure, number: int, drawn: str) -> Placed:
        """`drawn` is the SVG of the figure as wide as it is printed."""
        width, height = (float(edge) for edge in re.findall(r' (?:width|height)="([\d.]+)pt"', drawn)[:2])
        narrow = _url(svg(figure.draw(True))).replace(" ", "%20") if figure.wide else ""
        return cls(figure, number, _url(drawn), narrow, height / width)


def _url(drawn: str) -> str:
    return data_url(for_page(drawn, DARK))


type Shown = Placed | Figure | Absent | Table | Listing


@dataclass
class Group:
    """What answers one question: `parts` in sight, `more` folded away."""

    question: str
    anchor: str
    parts: list[Shown] = field(default_factory=list)
    more: list[Shown] = field(default_factory=list)

    @property
    def folded(self) -> str:
        """What is folded away, in a line."""
        titles = [part.figure.title for part in self.more if isinstance(part, Placed)]
        titles += [part.caption.partition(".")[0] for part in self.more if isinstance(part, Table)]
        lacking = sum(isinstance(part, Absent) for part in self.more)
        return "; ".join([*titles, *([f"{lacking} that this store cannot give"] if lacking else [])])


@dataclass
class Chapter:
    """Questions under one heading; `left_out` names what was computed and has no figure."""

    title: str
    anchor: str
    groups: list[Group] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, section: Section, parts: Sequence[Shown]) -> None:
        """Put what a section gave under its question; what the store cannot give is folded away."""
        if not parts:
            return
        if not self.groups or self.groups[-1].question != section.question:
            self.groups.append(Group(section.question, f"{self.anchor}-{len(self.groups) + 1}"))
        group = self.groups[-1]
        for part in parts:
            (group.more if section.more or isinstance(part, Absent) else group.parts).append(part)

    @property
    def parts(self) -> list[Shown]:
        """All that stands in it, in order."""
        return [part for group in self.groups for part in (*group.parts, *group.more)]

    @property
    def placed(self) -> list[Placed]:
        """Its figures alone."""
        return [part for part in self.parts if isinstance(part, Placed)]


def not_drawn(store: Store, chapter: Chapter) -> list[str]:
    """The statistics over a store's images that no figure or table of a chapter shows, with what they are."""
    drawn = {name for part in chapter.placed for name in part.figure.methods}
    drawn |= {row[0].partition(" ")[0] for part in chapter.parts if isinstance(part, Table) for row in part.rows}
    said = " ".join(part.reason for part in chapter.parts if isinstance(part, Absent))
    found = (one for one in summed(store) if not {one.name, one.name.removesuffix("_mean")} & drawn)
    return [f"{one.name}: {one.words}" for one in found if f"`{one.name}`" not in said]


def rendered(chapters: Sequence[Chapter], contexts: Sequence[Context], atlas: str = "") -> str:
    """The whole file; `atlas` is a page that stands in a frame of it."""
    facts = [context.facts for context in contexts]
    several = len(facts) > 1
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
            names=list(dict.fromkeys(one.label if several else one.spec.name for one in facts)),
            several=several,
            facts=facts,
            lede=_lede(facts),
            warnings=_warned(facts),
            first=[(one.label, first(one)) for one in facts],
            known=any(one.top1 for one in facts),
            table=table(facts),
            chapters=chapters,
            atlas=atlas,
            script=script_hash() if atlas else "",
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
    found.filters["breakable"] = lambda text: escape(text).replace("_", Markup("_<wbr>"))
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
        return f"The attention of {len(facts)} runs, side by side: {', '.join(one.label for one in facts)}."
    one = facts[0]
    dataset, selection = (str(one.attrs.get(key, "")) for key in ("dataset", "selection"))
    whole = f" ({selection})" if selection and not selection.startswith("all ") else ""
    images = counted(one.valid, "image")
    return f"The attention of every layer and head over {images} of the dataset “{dataset}”{whole}."


def _warned(facts: Sequence[Facts]) -> list[str]:
    """What to know of which store; once what holds for all of them."""
    found = [warnings(one) for one in facts]
    common = [text for text in found[0] if all(text in texts for texts in found)]
    own = [(one.label, text) for one, texts in zip(facts, found, strict=True) for text in texts if text not in common]
    return [*common, *(f"{label}: {text}" for label, text in own)]


def _version() -> str:
    try:
        return metadata.version("attlas")
    except metadata.PackageNotFoundError:
        return "from source"

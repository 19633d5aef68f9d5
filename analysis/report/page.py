"""The report: one HTML file that is complete in itself, with figures for print beside it where wanted."""

from __future__ import annotations

import difflib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ... import arguments
from ...arguments import Paths
from ...engine.store.locks import BusyError
from ...engine.store.storage import Url, locate
from ...engine.store.store import DamagedError, Store
from ...errors import AttlasError, UsageError
from ...files import appearing, check_page
from ...progress import Show, Step, shows
from ...words import counted
from ..objects import required
from ..originals import folder_of
from ..plot import FIGURES
from ..view.single import embedded
from .facts import gather, labels
from .plots.style import STYLES, Widths, svg
from .render import Chapter, Placed, not_drawn, rendered
from .sections import SECTIONS
from .sections.base import Absent, Context, Figure, Part, Section
from .sections.comparison import comparison
from .write import write_figure

__all__ = ["report"]

Say = Callable[[str], None]


@shows("sections")
def report(
    stores: Paths,
    output: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    figures: str | os.PathLike[str] | None = None,
    examples: int = 4,
    baseline: Paths = (),
    boxes: str | os.PathLike[str] | None = None,
    only: Sequence[str] | str = (),
    names: Sequence[str] | str = (),
    style: str = "paper",
    explore: int = 0,
    overwrite: bool = False,
    progress: Show[str] = None,
) -> Path:
    """Write what one or several stores hold as one HTML page, which loads nothing from anywhere.

    Dataset statistics that a store lacks are made first, and stay in it. Equal stores give equal pages. A figure that
    cannot be drawn is a line that says why; the page is written all the same, and then the error is raised.

    Args:
        stores: one store or several, which are then also compared.
        output: the page, NAME.html.
        images: the folder of the original images, for pictures that are not in a store's own sample.
        figures: a folder for every figure as PDF, SVG and PNG, with its numbers as CSV beside it.
        examples: how many pictures are shown of each store.
        baseline: stores that the others are compared with and of which nothing else is shown, such as one of the same
            model with random weights.
        boxes: a COCO JSON file of objects in the original images, by file name.
        only: sections by the names of their figures in `attlas.plot.figures()`, such as `distance` or `examples`; by
            default all. Names of sections themselves are taken too.
        names: what stores and then baselines are called on the page; by default their models, or their own names.
        style: `paper`, or `talk` for figures with larger words and lines.
        explore: of how many pictures the page also holds the atlas (`attlas view`), patch by patch; 1 MB each for
            deit_tiny.
        overwrite: replace a page that is at `output`, and write into a folder of figures that holds files.
        progress: True shows it; a function is called with one line as each section begins and as it ends.

    Returns:
        `output`, as a path.

    Raises:
        UsageError: no store is named, `output` is no HTML file or exists, `figures` holds files, `images` or `boxes`
            is not there, a figure or style is unknown, `names` are not one for each store, or `explore` is too many.
        AttlasError: a store or `boxes` does not read, no store shows a box, there is nothing of `only`, another
            analysis is making a store's first statistics, a file cannot be written, or the page is there but lacks
            what cannot be drawn.
    """
    shown, against = _located(stores, "stores"), _located(baseline, "baseline")
    output = Path(arguments.path(output, "output", "the path of the page, NAME.html"))
    folder = None if figures is None else Path(arguments.path(figures, "figures"))
    only, names = arguments.names(only, "only"), arguments.names(names, "names")
    style = arguments.text(style, "style")
    examples, explore = arguments.whole(examples, "examples"), arguments.whole(explore, "explore")
    _check(len(shown), output, folder, overwrite)
    _check_read(images, boxes, shown)
    wanted, called = _check_words(only, names, style, len(shown) + len(against))
    say = progress if callable(progress) else (lambda _line: None)
    lost = list[str]()
    ready = [_ready(path, say, lost) for path in (*shown, *against)]
    contexts = [
        Context(store, gather(store, label, baseline=place >= len(shown)), examples, images, boxes)
        for place, (store, label) in enumerate(zip(ready, called or labels(ready), strict=True))
    ]
    page = _Page(say, folder, STYLES[style], wanted, lost)
    with appearing(output) as beside:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        page.fill(contexts)
        if only and not explore and not any(chapter.parts for chapter in page.chapters):
            why = "; --examples 0 shows no pictures" if not examples else ""
            raise AttlasError(f"--only {','.join(only)}: there is nothing of it to show, so no page is written{why}")
        atlas = embedded(shown, explore, images) if explore else ""
        beside.write_text(rendered(page.chapters, contexts, atlas), "utf-8")
    if page.lost:
        some = counted(len(page.lost), "part that cannot", "parts that cannot")
        raise AttlasError(f"{output}: is written, without {some} be drawn (the first: {page.lost[0]})")
    return output


def _located(paths: Paths, what: str) -> list[Path | Url]:
    return [locate(p) for p in arguments.paths(paths, what, "the path of a store, or a list of them")]


def _check(shown: int, output: Path, folder: Path | None, overwrite: bool) -> None:
    """Refuse what would write something else than was meant, before any work."""
    if not shown:
        raise UsageError("no store is named: a report needs at least one")
    check_page(output, "a report", overwrite, " (--figures DIR writes PDF, SVG, PNG)")
    if folder is None or not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder}: is a file; figures need a folder")
    if any(folder.iterdir()) and not overwrite:
        raise UsageError(f"{folder}: holds files, among which figures would mix; choose another folder, or --overwrite")


def _check_read(
    images: str | os.PathLike[str] | None, boxes: str | os.PathLike[str] | None, stores: Sequence[Path | Url]
) -> None:
    """Refuse pictures and boxes that are not there, that do not read, or that no store shows."""
    folder_of(images)
    if boxes is not None:
        required(boxes, [Store(path) for path in stores])


def _check_words(
    only: Sequence[str], names: Sequence[str], style: str, stores: int
) -> tuple[frozenset[str], list[str]]:
    """The sections that are wanted and what stores are called, as far as they were given."""
    sections = [*(one.name for one in SECTIONS), *(one.name for one in comparison(()))]
    lacking = [name for name in sections if name not in {section for section, _ in FIGURES.values()}]
    known = [*FIGURES, *lacking]  # every section has a name of `attlas.plot`, but for parts of the comparison
    for name in only:
        if name not in known and name not in sections:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}? there" if near else "there"
            raise UsageError(f"--only {name}: there is no such figure; {hint} are {', '.join(known)}")
    if style not in STYLES:
        raise UsageError(f"--style {style}: there is no such style; there are {', '.join(STYLES)}")
    found = [name.strip() for name in names]
    if found and (len(found) != stores or len({_slug(name) for name in found} - {""}) != stores):
        raise UsageError(f"--names {','.join(found)}: give {stores} different names, one for each store and baseline")
    return frozenset(FIGURES[name][0] if name in FIGURES else name for name in only), found


def _ready(path: Path | Url, say: Say, lost: list[str]) -> Store:
    """The store, with dataset statistics of all images that are done, as far as it can have them.

    Where damage stands in their way, it is noted in `lost`.

    Raises:
        AttlasError: it has no image to show, or another analysis is just making its first statistics.
    """
    store = Store(path)
    done = int((store.done_images & store.read("valid").astype(bool)).sum())
    if not done:
        raise AttlasError(store.why_none)
    wanted = ["distance_mean"]
    wanted += ["rollout_mean"] if "rollout" in store else []
    wanted += ["score_matrix_mean"] if "attention" in store or "attention_code" in store else []
    if all(name in store and store.array(name).attrs.get("images") == done for name in wanted):
        return store
    say(f"{path}: summing up {counted(done, 'image')}")
    from ..statistics import analyze  # numba is only needed here

    try:
        analyze(path)
    except (AttlasError, OSError) as error:
        never = not any(name.endswith("_mean") for name in store.attrs.get("analyzed", ()))
        if isinstance(error, BusyError) and never:
            raise  # they are there in a while, and a page without any would be taken for all there is
        # What cannot be had, or not be written, is said on the page too, where the figure would stand.
        say(str(error))
        lost += [f"dataset statistics: {error}"] if isinstance(error, DamagedError) else []
    return Store(path)


@dataclass
class _Page:
    """What has been put on the page so far.

    Attributes:
        say: told of every section.
        folder: where figures are written too, or None.
        widths: how wide figures are laid out.
        only: the names of the sections that are wanted, or nothing for all.
        lost: what cannot be drawn, and why.
        chapters: with their figures.
        figures: how many there are.
        begun: how many sections have begun, of how many `sections`.
    """

    say: Say
    folder: Path | None
    widths: Widths
    only: frozenset[str]
    lost: list[str]
    chapters: list[Chapter] = field(default_factory=list)
    figures: int = 0
    begun: int = 0
    sections: int = 0

    def fill(self, contexts: Sequence[Context]) -> None:
        """All chapters, in order: the comparison, then each store that is no baseline."""
        shown = [one for one in contexts if not one.facts.baseline]
        together = self._wanted(comparison(contexts)) if len(contexts) > 1 else []
        alone = self._wanted(SECTIONS)
        self.sections = len(together) + len(alone) * len(shown)
        if together:
            self._chapter("Side by side", "comparison", together, contexts[0], "", "")
        for one in shown if alone else ():
            label = one.facts.label if len(contexts) > 1 else ""
            begin, title = (f"{_slug(label)}-", label) if label else ("", "What attention does")
            self._chapter(title, f"store-{_slug(one.facts.label)}", alone, one, begin, f"{label}, " if label else "")

    def _wanted(self, sections: Sequence[Section]) -> list[Section]:
        """By question, and of each the ones first that are not folded away."""
        questions = list(dict.fromkeys(one.question for one in sections))
        found = [one for one in sections if not self.only or one.name in self.only]
        return sorted(found, key=lambda one: (questions.index(one.question), one.more))

    def _chapter(
        self, title: str, anchor: str, sections: Sequence[Section], context: Context, begin: str, label: str
    ) -> None:
        """Sections under one heading; `begin` begins the names of their files, `label` the lines of progress."""
        chapter = Chapter(title, anchor)
        self.chapters.append(chapter)
        for section in sections:
            self.begun += 1
            self.say(Step(f"{label}{section.title}", self.begun, self.sections, brief=True))
            began, before = time.perf_counter(), self.figures
            parts = [self._placed(part, context, begin) for part in self._parts(section, context)]
            chapter.add(section, parts)
            if made := self.figures - before:
                said = f"{counted(made, 'figure')}, {time.perf_counter() - began:.1f} s"
                self.say(f"{label}{section.title}: {said} ({self.begun}/{self.sections})")
        if anchor != "comparison" and not self.only:
            chapter.left_out = not_drawn(context.store, chapter)

    def _placed(self, part: Part, context: Context, begin: str) -> Placed | Part:
        """A figure with its number and its drawings; anything else as it is."""
        if not isinstance(part, Figure):
            return part
        try:
            printed = part.draw(False, self.widths)
            drawn = svg(printed)
            placed = Placed.of(part, self.figures + 1, drawn)
        except Exception as error:
            return self._absent(part.title, error, context)
        self.figures += 1
        if self.folder is not None:
            write_figure(part, printed, drawn, self.folder, f"{begin}{part.name}", self.widths.scale)
        return placed

    def _parts(self, section: Section, context: Context) -> Iterator[Part]:
        """What a section yields, and a line on what stopped it: one figure must not cost the page."""
        try:
            yield from section.parts(context)
        except Exception as error:
            yield self._absent(section.title, error, context)

    def _absent(self, title: str, error: Exception, context: Context) -> Absent:
        """A line on what went wrong in a figure's place, without the machine's own paths."""
        told = " ".join(str(error).split()).replace(str(context.store.path), context.facts.name) or "no reason is given"
        kind = "" if isinstance(error, AttlasError) else f"{type(error).__name__}: "
        self.lost.append(f"{title}: {kind}{told}")
        return Absent(title, f"It cannot be drawn ({kind}{told}).")


def _slug(label: str) -> str:
    """A label as names of files and anchors have it."""
    return re.sub(r"[^\w.-]+", "-", label).strip("-.")

"""The report: one HTML file that is complete in itself, with figures for print beside it where wanted."""

from __future__ import annotations

import csv
import html
import io
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata, resources
from pathlib import Path
from string import Template
from typing import Any

from ...engine.places import Url, locate
from ...engine.store import Store
from ...exporter.errors import AttlasError, UsageError
from .facts import Facts, gather, table, warnings
from .plots import style as canvas
from .plots.svg import data_url
from .sections.base import Absent, Exhibit
from .sections.comparison import compare, named
from .sections.depth import overview
from .sections.examples import gallery
from .sections.groups import contrasts
from .sections.heads import heads
from .sections.objects import objects, told
from .sections.positions import positions
from .text.methods import READING, linked, methods, paragraph, references

__all__ = ["report"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass
class _Page:
    """What has been put on the page so far."""

    say: Callable[[str], None]
    folder: Path | None
    body: list[str] = field(default_factory=list)
    contents: list[tuple[str, str, int]] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    figures: int = 0

    def heading(self, text: str, anchor: str, level: int = 2) -> None:
        """A heading, and its entry in the table of contents (third-level headings are figures and have none)."""
        self.contents.append((anchor, text, level))
        self.body.append(f'<h{level} id="{anchor}">{html.escape(text)}</h{level}>')

    def add(self, shown: Exhibit | Absent, prefix: str = "") -> None:
        """A figure, or a line that says why it is not there."""
        if isinstance(shown, Absent):
            self.body.append(f'<p class="absent"><b>{html.escape(shown.title)}</b> is not shown. {shown.reason}</p>')
            return
        self.figures += 1
        self.say(f"figure {self.figures}: {shown.title}")
        self.methods += shown.methods
        anchor = f"figure-{self.figures}"
        self.contents.append((anchor, f"Figure {self.figures}. {shown.title}", 3))
        printed = shown.draw(False)
        self.body.append(_figure(shown, printed, self.figures, anchor))
        if self.folder is not None:
            _print(shown, printed, self.folder, f"{prefix}{shown.name}")


def report(
    stores: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    figures: str | os.PathLike[str] | None = None,
    examples: int = 4,
    baseline: Sequence[str | os.PathLike[str]] | str | os.PathLike[str] = (),
    boxes: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write what one or several stores hold as one HTML page, which loads nothing from anywhere.

    Dataset statistics that a store lacks are made first, and stay in it. Equal stores give equal pages.

    Args:
        stores: one store or several, which are then also compared.
        output: the page.
        images: the folder of the original images, for pictures that are not in a store's own sample.
        figures: a folder for every figure as PDF, SVG and PNG, with its numbers as CSV beside it.
        examples: how many pictures are shown of each store.
        baseline: stores that the others are compared with and of which nothing else is shown, such as one of the same
            model with random weights.
        boxes: a COCO JSON file of objects in the original images, by file name.
        overwrite: replace a page that is at `output`.
        progress: called with one line as each figure begins.

    Returns:
        `output`, as a path.

    Raises:
        UsageError: no store is named, or `output` exists.
        AttlasError: a store does not read, or a file cannot be written.
    """
    shown, against = ([locate(p) for p in ([given] if isinstance(given, str | os.PathLike) else given)]
                      for given in (stores, baseline))  # fmt: skip
    paths = [*shown, *against]
    output, folder = Path(output), None if figures is None else Path(figures)
    if not shown:
        raise UsageError("no store is named: a report needs at least one")
    if len(paths) > len(LETTERS):
        raise UsageError(f"{len(paths)} stores are too many for one page; {len(LETTERS)} fit")
    if output.is_dir() or (output.exists() and not overwrite):
        raise UsageError(f"{output}: exists; choose another name, or --overwrite")
    say = progress or (lambda line: None)
    opened = [_ready(path, say) for path in paths]
    facts = [
        gather(store, letter, baseline=place >= len(shown))
        for place, (store, letter) in enumerate(zip(opened, LETTERS, strict=False))
    ]
    beside = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        page = _Page(say, folder)
        _fill(page, opened, facts, examples, images, boxes)
        output.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(_rendered(page, facts), "utf-8")
        beside.replace(output)
    except OSError as error:
        place = error.filename or output
        raise AttlasError(f"{place}: cannot be written ({error.strerror or error})") from None
    finally:
        beside.unlink(missing_ok=True)
    return output


def _ready(path: Path | Url, say: Callable[[str], None]) -> Store:
    """The store, with dataset statistics of all images that are done, as far as it can have them."""
    store = Store(path)
    done = int((store.done_images & store.read("valid").astype(bool)).sum())
    if not done:
        raise AttlasError(f"{path}: holds no image that is done and readable yet; `attlas run` goes on with it")
    wanted = ["distance_mean"]
    wanted += ["rollout_mean"] if "rollout" in store else []
    wanted += ["score_matrix_mean"] if "attention" in store or "attention_code" in store else []
    if all(name in store and store.array(name).attrs.get("images") == done for name in wanted):
        return store
    say(f"{path}: summing up {done} images")
    from ..statistics import analyze  # numba is only needed here

    try:
        analyze(path)
    except AttlasError as error:
        # What cannot be had is said on the page too, where the figure would stand.
        say(str(error))
    return Store(path)


def _fill(page: _Page, stores: Sequence[Store], facts: Sequence[Facts], examples: int, images: Any, boxes: Any) -> None:
    """Everything below the header, in order."""
    page.heading("What was run", "facts")
    page.body.append(_facts_table(facts))
    page.body += [_unreadable(f, len(facts) > 1) for f in facts if f.unreadable]
    if any(f.top1 for f in facts):
        page.methods.append("accuracy")
    if len(stores) > 1:
        page.heading("Side by side", "comparison")
        shown, text = compare(stores, facts, examples, images)
        for exhibit in shown:
            page.add(exhibit)
        page.body.append(text)
    for store, one in zip(stores, facts, strict=True):
        if one.baseline:
            continue
        prefix = f"{one.letter.lower()}-" if len(stores) > 1 else ""
        title = named(one, facts, ". ") if len(stores) > 1 else "What attention does"
        page.heading(title, f"store-{one.letter.lower()}")
        everything = itertools.chain(
            overview(store, one), heads(store, one), gallery(store, one, examples, images), contrasts(store, one),
            positions(store),
        )  # fmt: skip
        for exhibit in everything:
            page.add(exhibit, prefix)
        if boxes is not None:
            found, left_out = objects(store, one, boxes, images)
            for exhibit in found:
                page.add(exhibit, prefix)
            page.body.append(told(left_out))
    page.heading("How to read this", "reading")
    page.body += [f"<p>{linked(text)}</p>" for text in READING]
    page.heading("Methods", "methods")
    definitions = "".join(f"<dt>{html.escape(title)}</dt><dd>{text}</dd>" for title, text in methods(page.methods))
    page.body.append(f'<p>Layers and heads are counted from 0.</p><dl class="methods">{definitions}</dl>')
    page.body.append(
        "<details><summary>The store's own statistics as a paragraph with BibTeX, to copy</summary>"
        f"<pre>{html.escape(paragraph(stores, facts))}</pre></details>"
    )
    page.heading("References", "references")
    page.body.append(_references(page))


def _rendered(page: _Page, facts: Sequence[Facts]) -> str:
    """The whole file."""
    here, first = resources.files(__package__) / "templates", facts[0]
    names = [f.spec.name for f in facts]
    several = len(facts) > 1
    notes = [f"{f.letter}: {text}" if several else text for f in facts for text in warnings(f)]
    return Template((here / "page.html").read_text("utf-8")).substitute(
        version=_version(),
        title=html.escape(f"attlas: {', '.join(dict.fromkeys(names))}"),
        style=(here / "page.css").read_text("utf-8").strip(),
        heading=html.escape(" · ".join(dict.fromkeys(names))),
        lede=_lede(facts),
        warnings="\n".join(f'<p class="note" role="note">{html.escape(text)}</p>' for text in notes),
        tiles="" if several else _tiles(first),
        contents=_contents(page.contents),
        body="\n".join(_paired(page.body)),
        sources=html.escape(", ".join(f.name for f in facts)),
    )


def _lede(facts: Sequence[Facts]) -> str:
    if len(facts) > 1:
        counts = ", ".join(f"{f.letter} {f.valid:,}" for f in facts)
        return f"The attention of {len(facts)} runs, side by side. Images: {counts}."
    one = facts[0]
    dataset, selection = (html.escape(str(one.attrs.get(key, ""))) for key in ("dataset", "selection"))
    whole = f" ({selection})" if selection and not selection.startswith("all ") else ""
    images = f"{one.valid:,} image{'s' if one.valid != 1 else ''}"
    return f"The attention of every layer and head over {images} of the dataset “{dataset}”{whole}."


def _tiles(facts: Facts) -> str:
    """The numbers that matter first."""
    spec = facts.spec
    tiles = [("Images", f"{facts.valid:,}", f"of {facts.images:,} planned, {facts.errors:,} unreadable")]
    for label, share in (("Top-1", facts.top1), ("Top-5", facts.top5)):
        if share is not None:
            tiles.append((label, f"{100 * share.value:.1f} %", str(share).partition(" (")[2].rstrip(")")))
    tiles.append(("Blocks × heads", f"{spec.depth} × {spec.heads}", f"{spec.tokens} tokens"))
    tiles.append(("Patches", f"{spec.grid[0]} × {spec.grid[1]}", f"of {spec.patch_size[0]} × {spec.patch_size[1]} px"))
    cells = "".join(f"<div><dt>{label}</dt><dd>{value}<small>{note}</small></dd></div>" for label, value, note in tiles)
    note = (
        "<p>Accuracy far from what is published for this model and data points to a wrong recipe, before anything "
        "else below.</p>"
        if facts.top1 is not None
        else "<p>No label of these images names a class of the model, so accuracy, which would show a wrong recipe, "
        "is unknown.</p>"
    )
    return f'<dl class="tiles">{cells}</dl>{note}'


def _facts_table(facts: Sequence[Facts]) -> str:
    def cell(label: str, text: str) -> str:
        kind = ' class="hash"' if "SHA-256" in label else ""
        return f"<td{kind}>{html.escape(text)}</td>"

    head = ""
    if len(facts) > 1:
        columns = "".join(f'<th scope="col">{f.letter}</th>' for f in facts)
        head = f"<thead><tr><td></td>{columns}</tr></thead>"
    rows = "".join(
        f'<tr><th scope="row">{html.escape(label)}</th>{"".join(cell(label, text) for text in texts)}</tr>'
        for label, texts in table(facts)
    )
    single = "" if len(facts) > 1 else " single"
    return f'<div class="scroll"><table class="facts{single}">{head}<tbody>{rows}</tbody></table></div>'


def _unreadable(facts: Facts, several: bool) -> str:
    items = "".join(
        f"<li><span class=path>{html.escape(path)}</span>: {html.escape(reason)}</li>"
        for path, reason in facts.unreadable
    )
    more = "" if facts.errors <= len(facts.unreadable) else f", the first {len(facts.unreadable)} of {facts.errors:,}"
    whose = f" of {facts.letter}" if several else ""
    return f"<p>Images{whose} that could not be read{more}:</p><ul>{items}</ul>"


def _figure(shown: Exhibit, printed: Any, number: int, anchor: str) -> str:
    """A figure in two forms, of which the browser takes the one that fits its width."""
    wide = data_url(canvas.svg(printed))
    narrow = data_url(canvas.svg(shown.draw(True))) if shown.wide else wide
    alt = html.escape(shown.alt, quote=True)
    source = "" if narrow == wide else f'<source media="(max-width: 40rem)" srcset="{narrow.replace(" ", "%20")}">'
    half = "" if shown.wide else ' class="half"'
    return (
        f'<figure id="{anchor}"{half}><div class="card"><picture>{source}<img alt="{alt}" src="{wide}"></picture></div>'
        f"<figcaption><b>Figure {number}. {html.escape(shown.title)}.</b> {shown.caption}</figcaption></figure>"
    )


def _paired(parts: Sequence[str]) -> list[str]:
    """Half-wide figures that follow one another stand side by side where the window has room for it."""
    found: list[str] = []
    for part in parts:
        if part.startswith("<figure") and 'class="half"' in part[:60]:
            if found and found[-1].endswith("<!--half-->"):
                found[-1] = found[-1].removesuffix("</div><!--half-->") + part + "</div><!--half-->"
            else:
                found.append(f'<div class="pair">{part}</div><!--half-->')
        else:
            found.append(part)
    return found


def _print(shown: Exhibit, printed: Any, folder: Path, name: str) -> None:
    """PDF, SVG and PNG for print, and the numbers as CSV."""
    canvas.write(printed, folder, name)
    target = io.StringIO(newline="")
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(shown.columns)
    writer.writerows(shown.rows)
    (folder / f"{name}.csv").write_text(target.getvalue(), "utf-8")


def _contents(entries: Iterable[tuple[str, str, int]]) -> str:
    """A list of sections, the figures below theirs."""
    parts, inner = [], False
    for anchor, text, level in entries:
        link = f'<a href="#{anchor}">{html.escape(text)}</a>'
        if level == 3:
            parts.append(f"<li>{link}</li>" if inner else f"<ol><li>{link}</li>")
            inner = True
        else:
            parts.append(f"{'</ol>' if inner else ''}{'</li>' if parts else ''}<li>{link}")
            inner = False
    return f"<ol>{''.join(parts)}{'</ol>' if inner else ''}</li></ol>"


def _references(page: _Page) -> str:
    text = "\n".join(page.body)
    items = "".join(
        '<li id="ref-{}">{}. <i>{}</i>. <a href="{}" rel="noreferrer">{}</a>.</li>'.format(
            key, *(html.escape(part) for part in r.line[:2]), r.url, html.escape(r.line[2])
        )
        for key, r in references(page.methods, text)
    )
    return f'<ol class="references">{items}</ol>'


def _version() -> str:
    try:
        return metadata.version("attlas")
    except metadata.PackageNotFoundError:
        return "from source"

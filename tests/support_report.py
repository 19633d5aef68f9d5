"""Stores and pages for the tests of the report: what a run would have left, and what a browser would find."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attlas.engine.contents import Choices, Contents
from attlas.engine.keep import Keep
from attlas.engine.labels import map_labels
from attlas.engine.plan import Plan
from attlas.engine.sources import Item
from attlas.engine.store.coordinates import arrays as laid_out
from attlas.engine.store.store import ArraySpec, Store
from attlas.exporter.spec import GraphSpec, Weights
from support import make_spec

pytest.importorskip("matplotlib")
kernel = pytest.importorskip("attlas.analysis.kernels.fused")
facts = pytest.importorskip("attlas.analysis.report.facts")
base = pytest.importorskip("attlas.analysis.report.sections.base")
examples = pytest.importorskip("attlas.analysis.report.sections.examples")

IMAGES, UNIT, BROKEN = 22, 4, 5


def spec_of(**changes: Any) -> GraphSpec:
    """A model with registers on a grid that is no square."""
    values: dict[str, Any] = {"grid": (3, 5), "prefix": ("class", "register"), "layers": 2, "heads": 2, "tag": "tagged"}
    values["weights"] = Weights("checkpoint", "ab" * 32)
    spec: GraphSpec = make_spec(**(values | changes))
    return spec


def attention_of(spec: GraphSpec, images: int = IMAGES, seed: int = 1) -> np.ndarray:
    """(image, layer, head, query, key): rows that sum to 1, far from uniform."""
    shape = (images, spec.depth, spec.heads, spec.tokens, spec.tokens)
    e = np.exp(np.random.default_rng(seed).normal(size=shape) * 2)
    rows: np.ndarray = (e / e.sum(-1, keepdims=True)).astype(np.float16)
    return rows


def make_store(
    path: Path, spec: GraphSpec | None = None, *, keep: tuple[str, ...] = ("attention",), units: Any = None,
    reduce: bool = False, seed: int = 1, images: int = IMAGES, dtype: str = "float16",
) -> Store:  # fmt: skip
    """A store as a run leaves it: one image unreadable, of the labels half name the class of the largest logit."""
    spec = spec or spec_of()
    a = attention_of(spec, images, seed)
    plan = Plan(images=images, batch=2, unit=UNIT, sample=tuple(range(1, images, 3)), identity={"graph": "cd" * 32})
    choice = Keep.choose(spec, keep, None, dtype)
    reducer = kernel.Reducer(spec) if reduce else None
    items = [Item(f"n{i % 2:08d}/{i:03}.png", f"n{i % 2:08d}", 1, 1) for i in range(images)]
    labels = map_labels([i.label for i in items], spec.classes)
    kept = Contents.derive(spec, Choices(choice, kernel.Reducer if reduce else None)).templates
    arrays, values = laid_out(spec, plan, kept, items, labels)
    attrs = {
        "dataset": "pictures <b>", "selection": f"all {images} images", "kept": choice.identity(),
        "versions": {"attlas": "0.1.0"},
    }  # fmt: skip
    store = Store.create(path, spec, plan, arrays, values=values, attrs=attrs)
    for k in range(plan.units) if units is None else units:
        fill_unit(store, k, a, reducer)
    return store


def fill_unit(store: Store, k: int, a: np.ndarray, reducer: Any) -> None:
    span, spec = store.plan.unit_range(k), store.spec
    at = slice(span.start, span.stop)
    valid = np.array([i != BROKEN for i in span])
    rows: dict[str, Any] = {"valid": valid, "height": np.full(len(span), 30), "width": np.full(len(span), 40)}
    rows["error"] = np.array(["" if ok else "is no picture" for ok in valid], dtype=np.dtypes.StringDType())
    rows["logits"] = np.eye(len(spec.classes), dtype=np.float32)[np.zeros(len(span), int)]
    part = a[at].copy()
    part[~valid] = np.nan
    pool = None
    if "pool_attention" in store:
        pool = np.random.default_rng(k).random((len(span), 2, 1, spec.tokens)).astype(np.float32)
        rows["pool_attention"] = pool = pool / pool.sum(-1, keepdims=True)
    if "prefix_attention" in store:
        rows["prefix_attention"] = part[:, :, :, : len(spec.prefix)]
    if reducer is not None:
        found = reducer([np.ascontiguousarray(layer) for layer in np.moveaxis(a[at], 1, 0)], pool)
        del found["_finite"]
        for values in found.values():
            values[~valid] = np.nan if values.dtype.kind == "f" else -1
        rows |= found
    if "attention" in store:
        for layer in range(spec.depth):
            store.write("attention", at.start, part[:, layer : layer + 1], slice(layer, layer + 1))
    if "attention_code" in store:
        codes = np.round(255 * np.sqrt(np.nan_to_num(part.astype(np.float32)))).astype(np.uint8)
        for layer in range(spec.depth):
            store.write("attention_code", at.start, codes[:, layer : layer + 1], slice(layer, layer + 1))
    for name, values in rows.items():
        store.write(name, at.start, np.asarray(values))
    for place, image in store.plan.sampled(span):
        store.write("pixels", place, np.full((1, *spec.image_size, 3), 10 * image, np.uint8))
    store.mark_done(k)


class Seen(HTMLParser):
    """What a browser would find: the text, figures, links and everything that would be loaded."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.captions: list[str] = []
        self.alts: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.headings: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        if tag not in ("meta", "link", "img", "source", "br", "wbr"):
            self.open.append(tag)
        if tag == "a":
            self.links.append(values["href"])
        self.loaded += [values[name] for name in ("src", "srcset") if name in values]
        if tag == "link":
            self.loaded.append(values["href"])
        if tag == "img":
            self.alts.append(values["alt"])
        if tag == "figcaption":
            self.captions.append("")
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if "figcaption" in self.open:
            self.captions[-1] += data
        if {"h1", "h2", "h3"} & set(self.open):
            self.headings[-1] += data


def read(path: Path) -> tuple[str, Seen]:
    html = path.read_text("utf-8")
    return html, Seen(html)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def heads_of(store: Store) -> np.ndarray:
    """The last column of a figure's numbers, without drawing it."""
    return np.array([row[-1] for row in next(examples.heads_of_one(context_of(store, examples=1))).rows])


def context_of(store: Store, letter: str = "A", **options: Any) -> Any:
    """What a section is given."""
    return base.Context(store, facts.gather(store, letter), **options)


def add(store: Store, name: str, dims: tuple[str, ...], values: Any) -> Store:
    """Put an array into a store, as another command would have."""
    given = np.asarray(values)
    kind, fill = ("str", "") if given.dtype.kind in "UT" else (str(given.dtype), 0)
    writable = Store(store.path, writable=True)
    if kind == "str":
        given = given.astype(np.dtypes.StringDType())
    writable.add([ArraySpec(name, dims, given.shape, given.shape, kind, fill, {})], {name: given})
    return Store(store.path)


def coco(path: Path, marks: dict[str, list[tuple[float, ...]]]) -> Path:
    """A COCO file of boxes (x, y, width, height) by file name, all of one kind."""
    images = [{"id": i, "file_name": name} for i, name in enumerate(marks)]
    boxes = [(i, box) for i, one in enumerate(marks.values()) for box in one]
    found = [{"id": n, "image_id": i, "category_id": 1, "bbox": list(box)} for n, (i, box) in enumerate(boxes)]
    data = {"images": images, "categories": [{"id": 1, "name": "thing"}], "annotations": found}
    path.write_text(json.dumps(data))
    return path

"""What a store is: the facts that stand on a report's first page, read without touching any attention."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ...engine.labels import accuracy
from ...engine.store.store import Store
from ...exporter.spec import GraphSpec
from ...words import counted, part_of
from ..statistics.clusters import cluster_codes, cluster_of, said
from ..statistics.inference import FEW

__all__ = ["Facts", "Share", "first", "gather", "labels", "sample", "table", "warnings", "wilson"]

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point


@dataclass(frozen=True, slots=True)
class Share:
    """How many of how many, with Wilson's 95 % interval."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        """The share itself."""
        return self.hits / self.total

    def __str__(self) -> str:
        low, high = wilson(self.hits, self.total)
        return (
            f"{100 * self.value:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f}; {self.hits} of {self.total})"
        )


@dataclass(frozen=True, slots=True)
class Facts:
    """A store in numbers and words.

    Attributes:
        name: of the store's folder; `label`: what the page calls it, other than every other store on it.
        images: planned; `done`: run so far; `valid`: done and readable, the n of every statistic.
        unreadable: (path, reason) of the first ones that could not be read.
        top1, top5: where labels name classes.
        baseline: whether it is there for the others to be compared with, such as random weights.
        clusters: what the store's intervals say of clusters of images, empty where there are none.
        attrs, record: the store's own attributes, and its runs' account of themselves.
    """

    name: str
    label: str
    spec: GraphSpec
    images: int
    done: int
    valid: int
    unreadable: tuple[tuple[str, str], ...]
    top1: Share | None
    top5: Share | None
    graph: str
    attrs: dict[str, Any]
    record: dict[str, Any]
    baseline: bool = False
    clusters: dict[str, Any] = field(default_factory=dict)

    @property
    def errors(self) -> int:
        """Images that were tried and could not be read."""
        return self.done - self.valid

    @property
    def n(self) -> str:
        """The sample size as captions state it."""
        return sample(self.valid, self.clusters)

    @property
    def effective(self) -> float:
        """How many independent images say as much."""
        return float(self.clusters.get("effective_images", self.valid))


def sample(images: int, clusters: dict[str, Any]) -> str:
    """A sample's size as captions state it; `clusters` as in `Facts`."""
    n = f"n = {counted(images, 'image')}"
    if not clusters.get("cluster"):
        return n
    return (
        f"{n} in {counted(clusters['clusters'], 'cluster')} by {clusters['cluster']}, effective n = "
        f"{clusters['effective_images']:.4g}"
    )


def wilson(hits: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share. Wilson 1927, J. Am. Stat. Assoc. 22(158), 209-212."""
    if total <= 0:
        return 0.0, 1.0
    p, z2 = hits / total, Z95 * Z95
    centre = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 / (1 + z2 / total) * math.sqrt(p * (1 - p) / total + z2 / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def gather(store: Store, label: str = "", *, baseline: bool = False, accuracy: bool = True) -> Facts:
    """Read a store's facts; the logits, if its `accuracy` is asked for, unit by unit: memory stays small."""
    done, valid = store.done_images, store.read("valid").astype(bool)
    top1, top5 = _accuracy(store, done & valid) if accuracy else (None, None)
    unread = np.flatnonzero(done & ~valid)[:10]
    column = cluster_of(store)
    codes = cluster_codes([store], [done & valid], column)
    reasons = tuple((str(store.read("path", int(i))), str(store.read("error", int(i)))) for i in unread)
    return Facts(
        name=store.path.name,
        label=label or store.spec.model,
        spec=store.spec,
        images=store.plan.images,
        done=int(done.sum()),
        valid=int((done & valid).sum()),
        unreadable=reasons,
        top1=top1,
        top5=top5,
        graph=str(store.plan.identity.get("graph", "")),
        attrs=store.attrs,
        record=store.record,
        baseline=baseline,
        clusters=said(column, codes),
    )


def labels(stores: Sequence[Store], length: int = 28) -> list[str]:
    """What a page calls stores: by their models, with what tells models of one name apart, no longer than `length`."""
    ways = (
        [store.spec.model for store in stores],
        [store.spec.name for store in stores],
        [store.path.name.removesuffix(".zarr") for store in stores],
        [f"{store.spec.model} {at}" for at, store in enumerate(stores, 1)],
    )
    for way in ways:
        for found in (_without_common(way) if max(map(len, way)) > length else way, way):
            short = [name if len(name) <= length else f"{name[: length - 9]}…{name[-8:]}" for name in found]
            if len(set(short)) == len(short):
                return short
    return [str(at) for at in range(1, len(stores) + 1)]


def _without_common(names: Sequence[str]) -> list[str]:
    """Names without the words, parted by _ or a dot, that all of them end with: patch16_224 of two models."""
    words = [re.split(r"(?<=[_.])", name) for name in names]
    while len(names) > 1 and min(map(len, words)) > 1 and len({one[-1] for one in words}) == 1:
        words = [one[:-1] for one in words]
    return ["".join(one).rstrip("_.") for one in words]


def _accuracy(store: Store, usable: npt.NDArray[np.bool_]) -> tuple[Share | None, Share | None]:
    target = store.read("label_class")
    usable = usable & (target >= 0)
    total = int(usable.sum())
    if "logits" not in store or not total:
        return None, None
    right = {1: 0, 5: 0}
    for k in np.flatnonzero(store.done):
        images = store.plan.unit_range(int(k))
        at = slice(images.start, images.stop)
        if usable[at].any():
            rows = usable[at]
            for rank, hits in accuracy(store.read("logits", at)[rows], target[at][rows]).items():
                right[rank] += hits
    return Share(right[1], total), Share(right[5], total)


def warnings(facts: Facts) -> list[str]:
    """What a reader must know before looking at any figure, most important first."""
    spec, found = facts.spec, []
    if spec.weights.source == "random":
        found.append("Weights are random: these maps show an untrained model.")
    if facts.done < facts.images:
        found.append(
            f"Partial: {part_of(facts.done, facts.images, 'image')} done. What is done is no random sample of them; "
            "every number here describes these images alone."
        )
    if facts.errors:
        found.append(f"{part_of(facts.errors, facts.done, 'image')} left out, which could not be read.")
    if 0 < facts.effective < FEW:
        if facts.effective <= 1:
            found.append(f"There are no intervals, which take two images or clusters: {facts.n}.")
        else:
            found.append(f"With fewer than {FEW} images or clusters, 95 % intervals are wide and rough: {facts.n}.")
    if spec.attention_kind == "mixed":
        found.append("This model mixes its heads after the softmax: rows are no distributions and have no entropy.")
    if _dtype(facts) == "uint8":
        found.append(
            "Attention is stored as uint8 codes, good for averages: single maps are approximate (1 to 3 % of a row)."
        )
    return found


def first(facts: Facts) -> list[tuple[str, str, str]]:
    """(question, answer, note): what was run, on how many images, and whether the recipe is right."""
    spec, share = facts.spec, facts.top1
    rows, columns = spec.grid
    weights = {"pretrained": "pretrained weights", "checkpoint": "weights from a file", "random": "random weights"}
    size = f"{counted(spec.depth, 'block')} × {counted(spec.heads, 'head')}, {rows} × {columns} patches"
    model = f"{weights[spec.weights.source]}; {size}"
    left = [f"{facts.images - facts.done:,} not done"] if facts.done < facts.images else []
    left += [f"{facts.errors:,} unreadable"] if facts.errors else []
    images = ", ".join([f"of {facts.images:,} planned", *left]) + f"; dataset “{facts.attrs.get('dataset', '')}”"
    if share is None:
        right = ("unknown", "no label of these images names a class of the model, so accuracy cannot tell")
    else:
        low, high = wilson(share.hits, share.total)
        note = f"{share.hits:,} of {share.total:,}; 95 % interval {100 * low:.1f} to {100 * high:.1f}"
        right = (f"top-1 {100 * share.value:.1f} %", note)
    count = counted(facts.valid, "image")
    return [("What", spec.model, model), ("How many", count, images), ("Is the recipe right?", *right)]


def table(stores: Sequence[Facts]) -> list[tuple[str, list[str]]]:
    """(label, one text a store) for every fact; rows that are empty for all stores are left out."""
    rows = [(label, [text(facts) for facts in stores]) for label, text in _ROWS]
    return [(label, texts) for label, texts in rows if any(texts)]


def _images(facts: Facts) -> str:
    return f"{facts.images:,} planned, {facts.done:,} done, {facts.valid:,} valid, {facts.errors:,} unreadable"


def _weights(facts: Facts) -> str:
    words = {
        "pretrained": "pretrained",
        "checkpoint": "from a checkpoint file",
        "random": "random (an untrained model)",
    }
    return words[facts.spec.weights.source]


def _input(facts: Facts) -> str:
    spec = facts.spec
    (rows, columns), (height, width) = spec.grid, spec.patch_size
    prefix = ", ".join(spec.prefix) or "none"
    return f"{rows} × {columns} patches of {height} × {width} px; prefix tokens: {prefix}; {spec.tokens} tokens"


def _blocks(facts: Facts) -> str:
    spec = facts.spec
    part = "" if len(spec.layers) == spec.depth else f" (attention of {len(spec.layers)} of them)"
    return f"{counted(spec.depth, 'block')}{part}, {counted(spec.heads, 'head')} each"


def _readout(facts: Facts) -> str:
    words = {
        "class": "class token",
        "mean": "mean of the patch rows",
        "pool": "the attention pool's own query",
        "distilled": "mean of class and distillation token",
    }
    return words[facts.spec.readout]


def _dtype(facts: Facts) -> str:
    return str(facts.attrs.get("kept", {}).get("store_dtype", ""))


def _kept(facts: Facts) -> str:
    kept = facts.attrs.get("kept", {})
    names = ", ".join(kept.get("keep", ())) or "no large array (prefix rows and statistics only)"
    layers = kept.get("layers", list(facts.spec.layers))
    part = "" if len(layers) == len(facts.spec.layers) else f"; layers {', '.join(map(str, layers))}"
    return f"{names}; {_dtype(facts)}{part}"


def _provider(facts: Facts) -> str:
    used = [str(run.get("provider", "")).removesuffix("ExecutionProvider") for run in facts.record.get("runs", ())]
    return ", ".join(dict.fromkeys(name for name in used if name))


def _versions(facts: Facts) -> str:
    found = {**facts.spec.versions, **facts.attrs.get("versions", {})}
    return ", ".join(f"{name} {number}" for name, number in found.items())


_ROWS = (
    ("Store", lambda f: f"{f.name} (baseline)" if f.baseline else f.name),
    ("Model", lambda f: f.spec.model),
    ("Pretrained tag", lambda f: "" if f.spec.weights.source == "random" else f.spec.tag),
    ("Recipe of the tag", lambda f: f.spec.tag if f.spec.weights.source == "random" else ""),
    ("Weights", _weights),
    ("Weights SHA-256", lambda f: f.spec.weights.sha256),
    ("Graph SHA-256", lambda f: f.graph),
    ("Graph computes in", lambda f: f.spec.dtype),
    ("Recipe", lambda f: str(f.spec.recipe)),
    ("Tokens", _input),
    ("Depth", _blocks),
    ("Readout", _readout),
    ("Positions", lambda f: f.spec.position),
    ("Dataset", lambda f: str(f.attrs.get("dataset", ""))),
    ("Selection", lambda f: str(f.attrs.get("selection", ""))),
    ("Images", _images),
    ("Top-1", lambda f: str(f.top1 or "")),
    ("Top-5", lambda f: str(f.top5 or "")),
    ("Kept", _kept),
    ("Provider", _provider),
    ("Versions", _versions),
)

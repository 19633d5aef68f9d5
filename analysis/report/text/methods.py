"""Which definitions a report needs, as its methods section and as a paragraph with BibTeX to copy."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from ....engine.store.store import Store
from ...catalog import held
from ..facts import Facts, gather
from .bibliography import REFERENCES, Reference, bibtex
from .definitions import DEFINITIONS
from .markup import cited, plain

__all__ = ["describe", "methods", "paragraph", "references", "used"]

# Definitions that are of no statistic, and so never follow from what a store holds.
_BARE = {"readout", "query_map", "position_similarity", "objects", "localisation", "comparison", "accuracy", "spread"}


def methods(names: Iterable[str]) -> list[tuple[str, str]]:
    """(title, rich text) of the definitions in `names`, in their own order, each once."""
    wanted = set(names)
    return [definition for key, definition in DEFINITIONS.items() if key in wanted]


def references(texts: Iterable[str]) -> list[tuple[str, Reference]]:
    """(key, reference) of all that rich texts cite, by author."""
    wanted = {key for text in texts for key in cited(text)}
    return [(key, one) for key, one in sorted(REFERENCES.items()) if key in wanted]


def used(store: Store) -> list[str]:
    """The definitions of the statistics that a store holds, for each image or for the dataset."""
    arrays = set(store.names)
    found = {key for key in DEFINITIONS if key not in _BARE and (key in arrays or f"{key}_mean" in arrays)}
    ends = {"bootstrap": "_interval", "quantiles": "_quantile"}
    found |= {key for key, end in ends.items() if any(name.endswith(end) for name in arrays)}
    if any("_q_by_" in name for name in arrays):
        found.add("groups")
    found |= {key for key in DEFINITIONS for name in arrays if name.startswith(f"{key}_mean_by_")}
    return [key for key in DEFINITIONS if key in found]


def paragraph(stores: Sequence[Store], facts: Sequence[Facts]) -> str:
    """Plain text: how the numbers in these stores came about, each definition that they hold, and its BibTeX.

    Citations stand as in the text of a page, and every one of them has an entry below.
    """
    names = {key for store in stores for key in used(store)}
    names |= {"accuracy"} if any(f.top1 for f in facts) else set()
    names |= {"comparison"} if len(stores) > 1 else set()
    found = methods(names)
    parts = [_run(one) for one in facts]
    parts += [f"{title}: {plain(text)}" for title, text in found]
    parts += [_undefined(store) for store in stores]
    entries = [bibtex(key) for key, _ in references(text for _, text in found)]
    return "\n".join([" ".join(part for part in parts if part), *(f"\n{entry}" for entry in entries)])


def _run(one: Facts) -> str:
    """A sentence on what was run."""
    weights = {"pretrained": "pretrained weights", "checkpoint": "weights from a file", "random": "random weights"}
    kept = one.attrs.get("kept", {})
    stored = f", stored as {kept['store_dtype']}" if kept.get("store_dtype") else ""
    accuracy = f" Top-1 accuracy was {one.top1}." if one.top1 else ""
    return (
        f"Attention of {one.spec.name} ({weights[one.spec.weights.source]}, SHA-256 {one.spec.weights.sha256[:16]}) "
        f"was computed over {one.valid:,} images of {one.attrs.get('dataset', 'a folder')} "
        f"({one.attrs.get('selection', '')}; {one.spec.recipe}) with attlas "
        f"{one.attrs.get('versions', {}).get('attlas', '')}{stored}.{accuracy}"
    )


def _undefined(store: Store) -> str:
    """A sentence for each statistic of the catalog that has no definition here: what its own array says."""
    own = [s for s in held(store) if s.name.removesuffix("_mean") not in DEFINITIONS]
    return " ".join(f"{s.name}: {s.long_name} [{s.units}]{f', {s.source}' if s.source else ''}." for s in own)


def describe(paths: Sequence[str | os.PathLike[str]]) -> str:
    """`paragraph` of stores by their paths.

    Raises:
        AttlasError: a store does not read.
    """
    stores = [Store(path) for path in paths]
    return paragraph(stores, [gather(store) for store in stores])

"""Which definitions a report needs, as its methods section and as a paragraph with BibTeX to copy."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from ....engine.store.store import Store
from ....words import counted
from ...catalog import CATALOG, held, summed
from ...statistic import Statistic
from ..facts import Facts, gather
from .bibliography import REFERENCES, Reference, bibtex
from .definitions import CONCEPTS, DEFINITIONS
from .markup import cited, literal, plain

__all__ = ["describe", "methods", "paragraph", "references", "used"]


def methods(names: Iterable[str], stores: Iterable[Store] = ()) -> list[tuple[str, str]]:
    """(title, rich text) of what is named, each once: the catalog's statistics, others that `stores` hold, the rest."""
    wanted = set(names)
    found = [(name, text) for name, text in DEFINITIONS.items() if name in wanted]
    other = {one.name: one for store in stores for one in _told(store) if one.name in wanted - DEFINITIONS.keys()}
    found += [(name, _words(one)) for name, one in other.items()]
    return found + [concept for key, concept in CONCEPTS.items() if key in wanted]


def references(texts: Iterable[str]) -> list[tuple[str, Reference]]:
    """(key, reference) of all that rich texts cite, by author."""
    wanted = {key for text in texts for key in cited(text)}
    return [(key, one) for key, one in sorted(REFERENCES.items()) if key in wanted]


def used(store: Store) -> list[str]:
    """What defines the numbers that a store holds, for each image or for the dataset."""
    arrays = store.names
    found = [one.name for one in _told(store)]
    found += [base for name in found if (base := name.partition(".")[0]) in DEFINITIONS]
    ends = {"intervals": "_interval", "quantiles": "_quantile"}
    found += [key for key, end in ends.items() if any(name.endswith(end) for name in arrays)]
    return [*dict.fromkeys(found), *(["groups"] if any("_q_by_" in name for name in arrays) else [])]


def _told(store: Store) -> list[Statistic]:
    """The statistics that a store holds; of two that share an array the one that the array is named after."""
    found = {one.name: one for one in (*held(store), *summed(store))}
    return [one for one in found.values() if one.name in store or one.sum_name not in found]


def _words(one: Statistic) -> str:
    """What a statistic says of itself, where nobody wrote a definition of it."""
    base = CATALOG.get(one.name.partition(".")[0])
    words = [f"{literal(one.words or "a statistic of the user's own")} [{literal(one.units)}]."]
    words += [f"The formula is that of `{base.name}`."] if base is not None else []
    words += [f"{literal(one.source)}."] if one.source and base is None else []
    return " ".join(words)


def paragraph(stores: Sequence[Store], facts: Sequence[Facts]) -> str:
    """Plain text: how the numbers in these stores came about, each definition that they hold, and its BibTeX.

    Citations stand as in the text of a page, and every one of them has an entry below.
    """
    names = {key for store in stores for key in used(store)}
    names |= {"accuracy"} if any(f.top1 for f in facts) else set()
    names |= {"comparison"} if len(stores) > 1 else set()
    found = methods(names, stores)
    parts = [_run(one) for one in facts]
    parts += [f"{title}: {plain(text)}" for title, text in found]
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
        f"was computed over {counted(one.valid, 'image')} of {one.attrs.get('dataset', 'a folder')} "
        f"({one.attrs.get('selection', '')}; {one.spec.recipe}) with attlas "
        f"{one.attrs.get('versions', {}).get('attlas', '')}{stored}.{accuracy}"
    )


def describe(paths: Sequence[str | os.PathLike[str]]) -> str:
    """`paragraph` of stores by their paths.

    Raises:
        AttlasError: a store does not read.
    """
    stores = [Store(path) for path in paths]
    return paragraph(stores, [gather(store) for store in stores])

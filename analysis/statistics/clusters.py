"""Clusters of images that depend on each other, such as those of one patient, by a column of the store.

A store has one such column at a time. Every interval and q value says it in its attribute `cluster`; with another
column all of them are made again, so that no two of a store are of different samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...engine.store.store import Store
from .groups import read_column
from .inference import effective_number

__all__ = ["ALONE", "cluster_codes", "cluster_of", "inferred", "said"]

ALONE = "image"  # as a column: every image by itself
ENDS = ("_interval", "_q_by_")

Codes = npt.NDArray[np.int64]


def inferred(store: Store) -> list[str]:
    """The arrays that an analysis made of clusters, or of single images: intervals and q values."""
    return [name for name in store.attrs.get("analyzed", ()) if name.endswith(ENDS[0]) or ENDS[1] in name]


def cluster_of(store: Store) -> str:
    """The column of the store's clusters, empty where every image is by itself."""
    found = (dict[str, Any](store.array(name).attrs).get("cluster", "") for name in inferred(store))
    return next(filter(None, found), "")


def cluster_codes(stores: Sequence[Store], chosen: Sequence[npt.NDArray[Any]], column: str) -> Codes | None:
    """A number for the cluster of each of the `chosen` images (masks or indices) of all stores, None without a column.

    The same value is the same cluster in every store; an image without one is a cluster by itself.
    """
    if not column:
        return None
    read = [read_column(store, column) for store in stores]
    values = np.concatenate([values[at] for (values, _), at in zip(read, chosen, strict=True)])
    there = np.concatenate([known[at] for (_, known), at in zip(read, chosen, strict=True)])
    codes = np.empty(len(values), np.int64)
    keys, codes[there] = np.unique(values[there], return_inverse=True)
    codes[~there] = len(keys) + np.arange(int((~there).sum()))
    return codes


def said(column: str, codes: Codes | None) -> dict[str, Any]:
    """The attributes of an array that is made of clusters."""
    if codes is None:
        return {}
    return {"cluster": column, "clusters": len(np.unique(codes)), "effective_images": effective_number(codes)}

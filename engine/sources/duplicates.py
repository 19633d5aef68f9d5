"""Find images with equal bytes: they count twice in every statistic, often without the user's knowledge."""

from __future__ import annotations

import hashlib

import numpy as np

from ...errors import AttlasError
from ...words import counted
from .items import ChangedError, Items, Source, shown

__all__ = ["duplicates"]

# Limits on what is read, so that planning a large dataset stays fast.
READS = 1000
BYTES = 64 * 2**20


def duplicates(source: Source, items: Items) -> str:
    """A note on images with equal bytes, or "". Only images of equal size are read, up to `READS` and `BYTES`.

    Args:
        source: a source with local files.
        items: the images of a run; those of unknown size are ignored.
    """
    known = np.flatnonzero(items.sizes > 0)
    _, group, counts = np.unique(items.sizes[known], return_inverse=True, return_counts=True)
    alike = known[counts[group] > 1]
    # In order of size, small images first: so most pairs fit into the limits.
    alike = alike[np.argsort(items.sizes[alike], kind="stable")]
    looked = min(READS, int(np.searchsorted(np.cumsum(items.sizes[alike]), BYTES, side="right")))
    first: dict[bytes, int] = {}
    pairs = []
    for index in alike[:looked].tolist():
        try:
            digest = hashlib.blake2b(source.read(items[index])).digest()
        except (OSError, ChangedError, AttlasError):
            continue  # the run itself reports it
        if first.setdefault(digest, index) != index:
            pairs.append((first[digest], index))
    if not pairs:
        return ""
    one, other = min(pairs)
    part = f"; {looked:,} of {len(alike):,} files of equal size were compared" if looked < len(alike) else ""
    return (
        f"{counted(len(pairs), 'image has', 'images have')} the same bytes as another, and count each time (the first: "
        f"{shown(items.keys[one])} and {shown(items.keys[other])}{part})"
    )

"""Files that survive a power failure."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["sync", "sync_entries"]


def sync(path: Path, *, forget: bool = False) -> None:
    """Write a file to the disk, and with `forget` drop it from the page cache.

    A run writes more than fits into memory, and new pages cost up to ten times as much as pages that another file has
    just freed (docs/engine.md).
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        if forget and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def sync_entries(folder: Path) -> None:
    """Write the entries of a folder to the disk, if the system supports it."""
    if os.name == "posix":
        sync(folder)

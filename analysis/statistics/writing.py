"""Open a store to write its analysis, which one call does at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ...arguments import Where
from ...engine.store.locks import analysing
from ...engine.store.storage import locate
from ...engine.store.store import Store

__all__ = ["writing"]


@contextlib.contextmanager
def writing(where: Where) -> Iterator[Store]:
    """Lock the analysis of a store, remove what killed analyses left half-written, and open it as it is now.

    A run may go on meanwhile, and whatever reads. Within itself it only opens the store.

    Raises:
        AttlasError: there is no store, another analysis is writing, or it cannot be written.
    """
    with analysing(locate(where)) as alone:
        store = Store(where, writable=True)
        if alone:
            store.sweep(analysis=True)
        yield store

"""What the tests of run share."""

from attlas.engine import Store


def paths(store: Store) -> list[str]:
    return list(store.read("path"))

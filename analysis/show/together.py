"""Which options of `attlas show` go together: one table, for the command line and for Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import UsageError

__all__ = ["check_together"]

# An option, and those that would have no effect beside it.
APART: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("all", ("walk", "matrix", "patch", "at", "head", "image", "random", "sort", "count", "seed", "target")),
    ("walk", ("matrix", "maps")),
    ("matrix", ("maps", "patch", "at", "threshold", "style")),
    ("patch", ("at",)),
    ("image", ("random", "sort", "count")),
)
DEFAULTS = {"style": "overlay", "target": -1, "seed": 0}


def check_together(options: Mapping[str, Any]) -> None:
    """Refuse what would be ignored.

    Args:
        options: of `attlas.show` by keyword, and `all`; those that are not given have their defaults.

    Raises:
        UsageError: with the two that do not go together.
    """
    given = {name for name, value in options.items() if _given(name, value)}
    for one, others in APART:
        for other in others:
            if one in given and other in given:
                raise UsageError(f"{_flag(one)}, {_flag(other)}: choose one")
    if "walk" in given and options.get("layer") == "all":
        raise UsageError("--walk: follows one layer's queries and keys; name it with --layer N")
    if "seed" in given and "random" not in given:
        raise UsageError(f"--seed {options['seed']}: is of --random N")


def _given(name: str, value: Any) -> bool:
    if name in DEFAULTS:
        return bool(value != DEFAULTS[name])
    return value is not None and value is not False and not (isinstance(value, str | tuple | list) and not len(value))


def _flag(name: str) -> str:
    return "--map" if name == "maps" else f"--{name}"

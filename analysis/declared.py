"""What a statistic may say of itself, and what its formula may give: checked once here, whoever wrote it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import AttlasError, UsageError

__all__ = ["applied", "check_declared", "check_name", "check_numbers"]

LONGEST = 110  # bytes of a name: `_difference_by_` and a column's name follow, in 255 that a file system gives
_NAME = re.compile(r"[A-Za-z_][\w.-]*")

Array = npt.NDArray[Any]
type Statistic = Any  # `statistic.Statistic`, whose fields may be of any type before they were seen here


def check_name(name: str) -> None:
    """Refuse a name that no array can have.

    Raises:
        UsageError: it has other characters than an array's name, or is too long.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name[:LONGEST]!r} is no name that an array can have: letters, digits and _")
    if (size := len(name.encode())) > LONGEST:
        raise UsageError(f"{name[:40]}...: the name of its array would have {size} bytes; at most {LONGEST}")


def check_declared(one: Statistic) -> None:
    """Refuse what does not fit together in a statistic, before any store is opened.

    Raises:
        UsageError: a field is of another type, or has a value that it cannot have.
    """
    if wrong := _wrong(one):
        raise UsageError(f"{one.name}: {wrong}")


def _wrong(one: Statistic) -> str:
    texts = {name: getattr(one, name) for name in ("units", "long_name", "source", "cite")}
    if other := [name for name, value in texts.items() if not isinstance(value, str)]:
        return f"{other[0]}={texts[other[0]]!r} is no text"
    if not callable(one.formula):
        return f"{one.formula!r} is no function"
    if len(set(one.dims)) < len(one.dims) or one.name in one.dims:
        return f"dims={one.dims!r}: each has a name of its own, and not the statistic's"
    if "image" in one.dims:
        return "leave image out of dims: they are of one image's result"
    if "layer" in one.dims[1:]:
        return f"dims={one.dims!r}: layer comes first, as its formula is called per layer"
    if not isinstance(one.sizes, Mapping):
        return f"sizes={one.sizes!r} are no sizes by dimension, as {{'bin': 3}}"
    for dim, size in one.sizes.items():
        if not isinstance(size, Integral) or size < 1:
            return f"sizes: {dim} has {size!r} entries; it takes a whole number, of 1 or more"
    if one.within is not None and not _is_range(one.within):
        return f"within={one.within!r} is no smallest and largest value"
    if one.edges is not None and not (callable(one.edges) and one.dims):
        return "edges are a function of the graph's spec, and the last of dims is their bins"
    return _wrong_dtype(one)


def _is_range(within: Any) -> bool:
    numbers = isinstance(within, tuple | list) and len(within) == 2 and all(isinstance(v, Real) for v in within)
    return numbers and bool(within[0] < within[1])


def _wrong_dtype(one: Statistic) -> str:
    try:
        dtype = np.dtype(one.dtype)
    except TypeError:
        return f"dtype={one.dtype!r} is none of numpy's"
    if dtype.kind not in "biuf":
        return f"dtype {one.dtype} is none of real numbers, such as float32"
    fill = one.fill
    if dtype.kind == "f":
        return "" if isinstance(fill, Real) else f"fill={fill!r} is no number"
    whole = isinstance(fill, Real) and math.isfinite(fill) and _holds(dtype, fill)
    return "" if whole else f"fill={fill!r}, for images that cannot be read, is no {one.dtype}; give another"


def _holds(dtype: np.dtype[Any], value: Any) -> bool:
    """Whether it is one of a whole type's numbers."""
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return bool(low <= value <= high and int(value) == value)


def applied(one: Statistic, known: Mapping[str, Any], shape: Sequence[int]) -> Array:
    """The formula's result, of the shape that it should have.

    Raises:
        UsageError: the formula fails, or gives something else.
    """
    try:
        found = np.asarray(one(known))
    except AttlasError:
        raise
    except Exception as error:
        raise UsageError(f"{one.name}: its formula fails: {type(error).__name__}: {error}") from error
    wanted = tuple(shape)
    if found.shape != wanted:
        dims = [dim for dim in one.dims if dim != "layer"]
        dims = [*["image"] * (len(wanted) - len(dims)), *dims]
        said = ", ".join(f"{dim} {n}" for dim, n in zip(dims, wanted, strict=True))
        raise UsageError(f"{one.name}: its formula gives an array of shape {found.shape}, not ({said})")
    return found


def check_numbers(one: Statistic, found: Array) -> Array:
    """A result, if it is of real numbers that the rows or the counts can hold; NaN is no value, and may be.

    Raises:
        UsageError: it is not.
    """
    if found.dtype.kind not in "biuf":
        raise UsageError(f"{one.name}: its formula gives values of type {found.dtype}, and not real numbers")
    dtype = np.dtype("int64" if one.edges is not None else one.dtype if one.rows else "float64")
    with np.errstate(over="ignore", invalid="ignore"):
        kept = found.astype(dtype, copy=False)
    if dtype.kind == "f":
        if np.isinf(kept).any():
            raise UsageError(
                f"{one.name}: its formula gives a value that is infinite, or too large for {dtype}; give NaN where "
                "there is none, which is left out"
            )
    elif not (kept == found).all():
        what = "counts" if one.edges is not None else f"{dtype}; dtype='float32' holds any number"
        raise UsageError(f"{one.name}: its formula gives values that are no {what}")
    return found

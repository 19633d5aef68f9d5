"""Plain arrays of any library: numpy, torch, cupy, or whatever follows the Python array API standard.

The formulas use the standard's namespace. torch's arrays have none, so `_Torch` renames the few functions that differ.
array-api-compat does that too, but takes 0.1 s to import and 0.1 ms a call, longer than many formulas. No array library
is imported here.
"""

from __future__ import annotations

import math
import sys
from typing import Any

from ...errors import UsageError

__all__ = [
    "Array", "constant", "floating", "mean_where", "namespace", "nan_where_zero", "patch_part", "prefix_of",
    "refuse_mixed", "x_ln_x",
]  # fmt: skip

Array = Any  # any array of the standard; the formulas never ask which


class _Torch:
    """torch with the standard's names, for the functions that the formulas use."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def max(self, x: Array, *, axis: int, keepdims: bool = False) -> Array:
        return self._module.amax(x, dim=axis, keepdim=keepdims)

    def min(self, x: Array, *, axis: int, keepdims: bool = False) -> Array:
        return self._module.amin(x, dim=axis, keepdim=keepdims)

    def sort(self, x: Array, *, axis: int = -1) -> Array:
        return self._module.sort(x, dim=axis).values

    def argsort(self, x: Array, *, axis: int = -1, stable: bool = True) -> Array:
        return self._module.argsort(x, dim=axis, stable=stable)

    def flip(self, x: Array, *, axis: int) -> Array:
        return self._module.flip(x, dims=(axis,))

    def cumulative_sum(self, x: Array, *, axis: int) -> Array:
        return self._module.cumsum(x, dim=axis)


def namespace(x: Array) -> Any:
    """The array API namespace of `x`.

    Raises:
        UsageError: `x` is not an array.
    """
    if hasattr(x, "__array_namespace__"):
        return x.__array_namespace__()
    if type(x).__module__.split(".")[0] == "torch":
        return _Torch(sys.modules["torch"])
    raise UsageError(f"{type(x).__name__} is no array; pass one of numpy, torch or cupy")


def floating(x: Array, *, exact: bool = False) -> Array:
    """`x` in float32 or better: float16 is widened, since sums of it lose a third of their value.

    Raises:
        UsageError: `x` holds integers; decode uint8 codes first (`decode_codes`). With `exact`, the message says that
            this statistic takes no codes.
    """
    xp = namespace(x)
    if x.dtype in (xp.float32, xp.float64):
        return x
    if "float" in str(x.dtype):
        return xp.asarray(x, dtype=xp.float32)
    if exact:
        raise UsageError(
            f"attention is {x.dtype}: discarding the smallest entries or taking a mask from uint8 codes gives other "
            "results than from the values (0.1 to 0.5 of the maximum); use a float16 or float32 store"
        )
    raise UsageError(f"attention is {x.dtype}; decode stored codes with `decode_codes` first")


def constant(values: Any, like: Array) -> Array:
    """`values` (nested lists of numbers) as an array of the dtype and on the device of `like`."""
    xp = namespace(like)
    device = getattr(like, "device", None)
    return xp.asarray(values, dtype=like.dtype) if device is None else xp.asarray(
        values, dtype=like.dtype, device=device
    )  # fmt: skip


def prefix_of(attention: Array, grid: tuple[int, int]) -> int:
    """Number of prefix tokens: keys less patches.

    Raises:
        UsageError: the grid has more patches than there are keys.
    """
    keys, patches = attention.shape[-1], math.prod(grid)
    if not 0 < patches <= keys:
        raise UsageError(f"a grid of {grid[0]} x {grid[1]} patches does not fit attention over {keys} keys")
    return int(keys - patches)


def patch_part(attention: Array, prefix: int) -> Array:
    """Attention from patches to patches: prefix rows and columns dropped.

    Raises:
        UsageError: the matrix is not square, or there is no patch.
    """
    if attention.ndim < 2 or attention.shape[-1] != attention.shape[-2]:
        raise UsageError(f"attention of shape {tuple(attention.shape)} does not end in (query, key) of equal length")
    if not 0 <= prefix < attention.shape[-1]:
        raise UsageError(f"{prefix} prefix tokens leave no patch among {attention.shape[-1]} tokens")
    return attention[..., prefix:, prefix:]


def nan_where_zero(x: Array) -> Array:
    """`x` with NaN for 0, to divide by."""
    return namespace(x).where(x == 0, x + math.nan, x)


def mean_where(values: Array, there: Array) -> Array:
    """Mean over the last axis of the values where `there`; NaN if there are none."""
    xp = namespace(values)
    zero = xp.zeros_like(values)
    count = xp.sum(xp.where(there, zero + 1, zero), axis=-1)
    return xp.sum(xp.where(there, values, zero), axis=-1) / nan_where_zero(count)


def x_ln_x(a: Array) -> Array:
    """A ln a, 0 where a is 0."""
    xp = namespace(a)
    return a * xp.log(xp.where(a == 0, xp.ones_like(a), a))


def refuse_mixed(kind: str, name: str) -> None:
    """Refuse attention whose rows are not distributions.

    Raises:
        UsageError: `kind` is mixed.
    """
    if kind != "probability":
        raise UsageError(
            f"{name}: this model's attention is {kind}: its heads are combined after the softmax, so rows are no "
            "probabilities and have no entropy"
        )

"""Attention from stored uint8 codes."""

from __future__ import annotations

from .arrays import Array, namespace, nan_where_zero

__all__ = ["decode_codes"]


def decode_codes(codes: Array, dtype: object = None) -> Array:
    """Decode uint8 codes round(255 sqrt(a)): (..., key) uint8 -> (..., key) float32.

    a = code^2 / 255^2, then each row is divided by its sum, since rounding loses 1 to 3 % of a row. A row of zeros is
    missing data and becomes NaN. Good for averages; statistics that depend on single values refuse codes.
    """
    xp = namespace(codes)
    a = xp.asarray(codes, dtype=xp.float32 if dtype is None else dtype)
    a = a * a
    return a / nan_where_zero(xp.sum(a, axis=-1, keepdims=True))

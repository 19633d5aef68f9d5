"""The binary form of an answer: a header in JSON, then plain arrays.

Four bytes hold the header's length (uint32, little-endian); the header is padded with spaces to a multiple of four.
Attention is sent as codes with a scale for each row, which is a quarter of float32 and keeps small values: a = scale *
(code / levels)^2. The largest error is sqrt(a * scale) / levels. Negative entries make signed codes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["coded", "pack", "unpack"]


def pack(header: Mapping[str, Any], *arrays: npt.NDArray[Any]) -> bytes:
    """A header and the bytes of arrays, little-endian, one after the other."""
    text = json.dumps(header, ensure_ascii=False, allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    parts = [np.ascontiguousarray(a, a.dtype.newbyteorder("<")).tobytes() for a in arrays]
    return b"".join([len(text).to_bytes(4, "little"), text, *parts])


def unpack(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the bytes behind it."""
    end = 4 + int.from_bytes(data[:4], "little")
    return json.loads(data[4:end]), data[end:]


def coded(rows: npt.NDArray[np.float32], levels: int) -> tuple[npt.NDArray[np.float16], npt.NDArray[Any], bool]:
    """(..., key) as scales (...) float16, codes (..., key), and whether these are signed (then of 127 levels at most).

    float16 holds the scale of a float16 store exactly, and any other to a two-thousandth.
    """
    signed = bool(rows.min(initial=0) < 0)
    scale = np.abs(rows).max(axis=-1, keepdims=True, initial=0).astype(np.float16)
    share = rows / np.where(scale > 0, scale, 1).astype(np.float32)
    if signed:
        codes: npt.NDArray[Any] = np.round(min(levels, 127) * np.sign(share) * np.sqrt(np.abs(share)))
        return scale[..., 0], codes.clip(-127, 127).astype(np.int8), True
    codes = np.round(levels * np.sqrt(share))
    return scale[..., 0], codes.clip(0, levels).astype(np.uint8), False

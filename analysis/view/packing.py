"""The binary form of an answer: a header in JSON, then plain arrays.

Four bytes hold the header's length (uint32, little-endian); the header is padded with spaces to a multiple of four.
Attention is sent as codes of the patches, with a scale for each row: that is a quarter of float32 and keeps small
values. a = scale * (code / levels)^2, and the largest error is sqrt(a * scale) / levels. The prefix tokens' columns,
which may hold most of a row, and the largest values that the page prints are sent as numbers. Negative entries make
signed codes. Of codes the difference from the query before is sent, modulo 256: neighbours look alike, and compress
better so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Coded", "coded", "pack", "unpack"]


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


class Coded(NamedTuple):
    """Rows as they are sent.

    Attributes:
        most: (query) float32, the largest value of a patch in the mean over heads.
        scale: (head, query) float16, the largest absolute value of a patch: exact for a float16 store, and to a
            two-thousandth for any other.
        prefix: (head, query, prefix) float16, the columns of the prefix tokens.
        codes: (head, query, patch) uint8, or int8 if `signed`, then of 127 levels at most; as differences.
    """

    most: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float16]
    prefix: npt.NDArray[np.float16]
    codes: npt.NDArray[Any]
    signed: bool


def coded(rows: npt.NDArray[np.float32], prefix: int, levels: int) -> Coded:
    """(head, query, key) with so many prefix tokens in front."""
    front, patches = rows[..., :prefix].astype(np.float16), rows[..., prefix:]
    signed = bool(patches.min(initial=0) < 0)
    most = patches.mean(axis=0, dtype=np.float64).max(axis=-1, initial=0).astype(np.float32)
    scale = np.abs(patches).max(axis=-1, keepdims=True, initial=0).astype(np.float16)
    share = patches / np.where(scale > 0, scale, 1).astype(np.float32)
    if signed:
        codes: npt.NDArray[Any] = np.round(min(levels, 127) * np.sign(share) * np.sqrt(np.abs(share)))
        codes = codes.clip(-127, 127).astype(np.int8)
    else:
        codes = np.round(levels * np.sqrt(share)).clip(0, levels).astype(np.uint8)
    codes[:, 1:] -= codes[:, :-1].copy()
    return Coded(most, scale[..., 0], front, codes, signed)

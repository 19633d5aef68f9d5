"""Estimate the size of a store from its layout."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..exporter.spec import GraphSpec
from .keep import Keep
from .plan import Plan
from .store.schema import LAYERED, ArraySpec

__all__ = ["raw_bytes", "stored_bytes"]

# Compressed size relative to raw size, measured on real attention and photographs (deit_tiny, trained weights). Text is
# not compressed.
RATIOS = {
    "attention": 0.85,
    "attention_code": 0.92,
    "attention_mean": 0.87,
    "gradient": 0.81,
    "gradient_mean": 0.84,
    "gradient_positive": 0.84,
    "tokens": 0.97,
    "prefix_attention": 0.84,
    "pixels": 0.95,
}
OTHERS = 0.91
# zstd's size relative to lz4's.
ZSTD = {"attention": 0.975, "attention_code": 0.62, "attention_mean": 0.99, "tokens": 1.0}
CHUNK_BYTES = 20  # extra bytes per chunk: the compressor's header and the checksum
ARRAY_BYTES = 2240  # bytes of metadata per array, in its own file and in the consolidated metadata


def raw_bytes(array: ArraySpec, values: Any, keep: Keep, spec: GraphSpec) -> int:
    """Bytes of an array before compression, without padding and without layers that are not kept.

    Args:
        array: one array of the layout.
        values: its values if they are known before the run, which gives the length of text; else None.
        keep: what the run keeps.
        spec: the graph's spec.
    """
    count = math.prod(array.shape)
    if array.dtype == "str":
        texts = () if values is None else np.asarray(values).reshape(-1).tolist()
        return 4 * count + sum(len(str(text).encode()) for text in texts)
    if array.name in LAYERED:
        count = count * len(keep.layers) // len(spec.layers)
    return count * np.dtype(array.dtype).itemsize


def stored_bytes(
    layout: Iterable[ArraySpec], values: Mapping[str, Any], keep: Keep, spec: GraphSpec, plan: Plan
) -> int:
    """Expected bytes of a store's files: chunks, compressed like real attention and photographs, and metadata."""
    total = float(len(spec.to_json(indent=4)) + len(str(plan.to_dict())))
    for array in layout:
        raw = raw_bytes(array, values.get(array.name), keep, spec)
        ratio = RATIOS.get(array.name, OTHERS) * (ZSTD.get(array.name, 0.975) if array.codec == "zstd" else 1.0)
        if array.dtype == "str" or array.codec == "none":
            ratio = 1.0
        chunks = math.prod(-(-n // max(c, 1)) for n, c in zip(array.shape, array.chunks, strict=True))
        total += raw * ratio + CHUNK_BYTES * chunks + ARRAY_BYTES
    return int(total)

"""What the tests of statistics share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attlas.engine.contents import Choices, Contents
from attlas.engine.keep import Keep
from attlas.engine.plan import Plan
from attlas.engine.sources import Item
from attlas.engine.store.coordinates import arrays as laid_out
from attlas.engine.store.store import Store
from attlas.exporter.spec import ClassName, GraphSpec, Output, Recipe, Weights

kernel = pytest.importorskip("attlas.analysis.kernels.fused")

SPEC = GraphSpec(
    model="vit_test", tag="", weights=Weights("random", "0"), dtype="float32", image_size=(32, 48),
    recipe=Recipe((32, 48), (32, 48), "center", "bicubic", (0.5,) * 3, (0.5,) * 3), patch_size=(16, 16),
    grid=(2, 3), prefix=("class",), pooling="class", layers=(0, 1), depth=2, heads=2,
    attention_kind="probability", position="absolute", outputs=(Output("logits", ("image", "class"), (None, 4)),),
    classes=tuple(ClassName(f"n{i}", f"class {i}") for i in range(4)),
)  # fmt: skip

IMAGES, BATCH, UNIT, BROKEN = 22, 2, 4, 5

NORMS = tuple(
    Output(f"{name}.{layer}", ("image", *dims), (None, *shape))
    for name, dims, shape in (
        ("value_norm", ("head", "key"), (2, 7)), ("branch_ratio", ("token",), (7,)), ("token_norm", ("token",), (7,)),
    )
    for layer in (0, 1)
)  # fmt: skip

NORMED = dataclasses.replace(SPEC, outputs=(*SPEC.outputs, *NORMS), norms=True)


def attention(spec: GraphSpec = SPEC, images: int = IMAGES) -> np.ndarray:
    """(image, layer, head, query, key), float64 rows that sum to 1."""
    shape = (images, len(spec.layers), spec.heads, spec.tokens, spec.tokens)
    e = np.exp(np.random.default_rng(7).normal(size=shape) * 2)
    return e / e.sum(-1, keepdims=True)


def fill_unit(store: Store, k: int, a: np.ndarray, layers: Any = None, reducer: Any = None) -> None:
    """What a run does with one unit."""
    images = store.plan.unit_range(k)
    at = slice(images.start, images.stop)
    name = next((n for n in ("attention", "attention_code") if n in store), None)
    for place, layer in enumerate(store.spec.layers):
        if name and (layers is None or layer in layers):
            for batch in store.plan.batches(k):
                part = a[batch.start : batch.stop, place]
                part = np.round(255 * np.sqrt(part)) if name == "attention_code" else part
                block = part.astype(store.array(name).dtype)[:, None]
                store.write(name, batch.start, block, slice(place, place + 1))
    small = [key for key, dim in store.unit_arrays() if dim == "image" and key != name]
    arrays = {key: store.array(key) for key in small}
    rows = {key: np.zeros((len(images), *array.shape[1:]), array.dtype) for key, array in arrays.items()}
    for key in ("value_norm", "branch_ratio", "token_norm"):
        if key in rows:
            rows[key] = 1 + np.random.default_rng(k).random(rows[key].shape, np.float32)
    rows["logits"] = np.eye(4, dtype=np.float32)[[i % 3 for i in images]]
    rows["valid"] = np.array([i != BROKEN for i in images])
    if reducer is not None:
        rows |= reducer([np.ascontiguousarray(x.astype(np.float16)) for x in np.moveaxis(a[at], 1, 0)])
        del rows["_finite"]
    for key, values in rows.items():
        store.write(key, at.start, values)
    for place, _ in store.plan.sampled(images):
        store.write("pixels", place, np.zeros((1, *SPEC.image_size, 3), np.uint8))
    store.mark_done(k)


def make_store(
    path: Path, *, dtype: str = "float16", keep: tuple[str, ...] = ("attention",),
    layers: tuple[int, ...] = SPEC.layers, units: Any = None, reduce: bool = False, spec: GraphSpec = SPEC,
) -> Store:  # fmt: skip
    a = attention(spec)
    plan = Plan(images=len(a), batch=BATCH, unit=UNIT, sample=(0,), identity={})
    choice = Keep.choose(spec, keep, layers, dtype)
    reducer = kernel.Reducer(spec) if reduce else None
    items = [Item(f"a/{i:03}.png", "a", 1, 1) for i in range(len(a))]
    kept = Contents.derive(spec, Choices(choice, kernel.Reducer if reduce else None)).templates
    specs, values = laid_out(spec, plan, kept, items, np.zeros(len(a), np.int32))
    values["label"] = np.array([label_of(i) for i in range(len(a))], dtype=np.dtypes.StringDType())
    store = Store.create(path, spec, plan, specs, values=values, attrs={"kept": choice.identity(), "dataset": "test"})
    for k in range(plan.units) if units is None else units:
        fill_unit(store, k, a, layers, reducer)
    return store


def label_of(image: int) -> str:
    """One class of many, one that only late units have, and images without a label."""
    return "late" if image >= 20 else ("dog", "cat", "")[image % 3]


def good(values: np.ndarray) -> np.ndarray:
    return np.delete(values, BROKEN, axis=0)


# Formulas of a user's own, in a module that another process can import.


def strongest(attention: np.ndarray, prefix: int, *, times: float = 1.0) -> np.ndarray:
    """The largest attention between patches of each head."""
    return attention[:, prefix:, prefix:].max(axis=(-2, -1)) * times


def drift(attention: Sequence[np.ndarray], grid: tuple[int, int]) -> np.ndarray:
    """How far the last layer's mean attention on each patch is from the first's."""
    first, last = (attention[i].mean(axis=(0, 1))[-grid[0] * grid[1] :] for i in (0, -1))
    return np.abs(last - first).reshape(grid)

"""What a graph or a store holds, as plain data for the command line and for programs."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from ..exporter.errors import AttlasError
from ..exporter.spec import GraphSpec
from .graph import graph_digest, read_spec
from .places import locate
from .store import Store

__all__ = ["inspect"]


def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Describe a graph or a store; every value is plain JSON.

    Raises:
        AttlasError: `path` is neither.
    """
    path = locate(path)
    if not isinstance(path, Path) or path.is_dir():
        return _store(Store(path))
    if path.suffix == ".json":
        return {"kind": "graph", **_spec(GraphSpec.from_json(path.read_text("utf-8"), str(path)))}
    if not path.exists():
        raise AttlasError(f"{path}: there is no such graph or store")
    return {"kind": "graph", **_spec(read_spec(path)), "sha256": graph_digest(path), "bytes": path.stat().st_size}


def _spec(spec: GraphSpec) -> dict[str, Any]:
    data = spec.to_dict()
    data["recipe"] = str(spec.recipe)
    data["classes"] = len(spec.classes)
    data["outputs"] = {o.name: dict(zip(o.dims, o.shape, strict=True)) for o in spec.outputs}
    data["tokens"] = spec.tokens
    data["readout"] = spec.readout
    data["attention_bytes_per_image"] = 2 * len(spec.layers) * spec.heads * spec.tokens**2
    return data


def _store(store: Store) -> dict[str, Any]:
    attrs, plan = store.attrs, store.plan
    done = store.done
    valid = store.read("valid")
    sizes = Counter[str]()
    for key, size in store.storage.listing():
        sizes[key.partition("/")[0]] += size
    arrays = {}
    for name in store.names:
        array = store.array(name)
        arrays[name] = {
            "dims": dict(zip(store.dims(name), array.shape, strict=True)),
            "dtype": "str" if array.dtype.kind == "T" else str(array.dtype),
            "chunks": list(array.chunks),
            "bytes": sizes[name],
        }
    images_done = int(store.done_images.sum())
    return {
        "kind": "store",
        "attlas_format": attrs["attlas_format"],
        "model": store.spec.name,
        "weights": {"source": store.spec.weights.source, "sha256": store.spec.weights.sha256},
        "graph_sha256": plan.identity.get("graph"),
        "recipe": str(store.spec.recipe),
        "dataset": attrs.get("dataset"),
        "selection": attrs.get("selection"),
        "images": plan.images,
        "images_done": images_done,
        "errors": int((store.done_images & ~valid).sum()),
        "units": plan.units,
        "units_done": int(done.sum()),
        "finished": bool(done.all()),
        "batch": plan.batch,
        "images_per_unit": plan.unit,
        "kept": attrs.get("kept"),
        "bytes": sum(a["bytes"] for a in arrays.values()),
        "arrays": arrays,
        "runs": store.record.get("runs", []),
    }

"""Describe a graph or a store as plain data, for the command line and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..arguments import Where
from ..errors import AttlasError
from ..exporter.spec import GraphSpec
from ..words import counted, ranges
from .amounts import alone_line, amount, duration
from .runtime.decoders import HOST
from .runtime.graph import graph_digest, read_spec
from .store.overview import ENDS, SUMMED, gathered
from .store.schema import CODEC
from .store.storage import locate
from .store.store import Store

__all__ = ["inspect", "screen"]


def inspect(path: Where) -> dict[str, Any]:
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
        "decoder": plan.identity.get("decoder", HOST),
        "dataset": attrs.get("dataset"),
        "selection": attrs.get("selection"),
        "images": plan.images,
        "images_done": images_done,
        "errors": int((store.done_images & ~valid).sum()),
        "units": plan.units,
        "units_done": int(done.sum()),
        "finished": bool(done.all()),
        "batch": plan.batch,
        "inferred_at_once": plan.at_once,
        "images_per_unit": plan.unit,
        "kept": attrs.get("kept"),
        "bytes": sum(a["bytes"] for a in arrays.values()),
        "analyzed": attrs.get("analyzed", []),
        "arrays": arrays,
        "runs": store.record.get("runs", []),
    }


def screen(store: Mapping[str, Any]) -> Iterator[str]:
    """The result of `inspect` for a store, as lines: one per fact, array or statistic."""
    weights, kept, runs = store["weights"], store["kept"] or {}, store["runs"]
    units = f"{store['units_done']} of {store['units']} done"
    large = "no large array, "
    if kept.get("keep"):
        large = f"{_listed(kept['keep'])}, layers {ranges(kept.get('layers') or ())}, {kept.get('store_dtype')}, "
    facts = {
        "model": f"{store['model']}, {weights['source']} weights {weights['sha256'][:16]}",
        "recipe": store["recipe"] + (", JPEGs decoded on the card" if store["decoder"] != HOST else ""),
        "dataset": f"{store['dataset']}, {store['selection']}",
        "images": f"{store['images_done']:,} of {store['images']:,} done, {store['errors']:,} could not be read",
        "units": f"{units}, {counted(store['images_per_unit'], 'image')} each, in batches of {store['batch']}",
        "kept": f"{large}codec {kept.get('codec', CODEC)}",
        "bytes": f"{amount(store['bytes'])}, format {store['attlas_format']}",
        "runs": f"{len(runs)}{f', the last by {_run(runs[-1])}' if runs else ''}",
    }
    if runs and runs[-1].get("alone"):
        facts["its stages"] = alone_line(runs[-1]["alone"])
    yield from (f"{key:<26} {value}" for key, value in facts.items())
    arrays, analyzed = store["arrays"], store["analyzed"]
    dims = {name: list(array["dims"]) for name, array in arrays.items()}
    columns = [name for name in arrays if dims[name] == ["image"]]
    axes = [name for name in arrays if len(dims[name]) == 1 and name not in columns and not SUMMED.fullmatch(name)]
    statistics = _statistics([name for name in analyzed if name not in axes])
    rest = [name for name in arrays if name not in {*columns, *axes, *analyzed, *statistics}]
    yield f"{'columns':<26} {', '.join(columns)}"
    yield f"{'coordinates':<26} {', '.join(f'{name} {arrays[name]["dims"][dims[name][0]]}' for name in axes)}"
    yield "arrays"
    for name in rest:
        yield f"  {name:<24} {arrays[name]['dtype']:<9} {_sizes(arrays[name])}"
    if statistics:
        yield "statistics"
    for name, ways in statistics.items():
        rows = f"rows ({', '.join(dims[name])})" if "image" in dims.get(name, ()) else ""
        yield f"  {name:<38} {'; '.join(filter(None, (rows, *ways)))}"
    yield "every array, and every run: --all, or --json for a program"


def _statistics(names: list[str]) -> dict[str, list[str]]:
    """The summaries of each statistic that exist: `mean, std`, then `by label: mean, q`."""
    return {
        name: [
            (f"by {column}: " if column else "") + ", ".join(sorted(ends, key=ENDS.index))
            for column, ends in sorted(of.items())
        ]
        for name, of in gathered(names).items()
    }


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _sizes(array: Mapping[str, Any]) -> str:
    return f"({', '.join(f'{dim} {size}' for dim, size in array['dims'].items())})  {amount(array['bytes'])}"


def _run(run: Mapping[str, Any]) -> str:
    """The executor, provider and time of a run, as text."""
    version = run.get("versions", {}).get("attlas", "")
    took = duration(run.get("seconds", 0))
    return f"attlas {version}, {run.get('provider', '')}: {counted(run.get('images', 0), 'image')} in {took}"

"""Prepare a run: check the request against graph, images and store, and make the plan."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import AttlasError, UsageError
from ..exporter.spec import GraphSpec
from ..words import counted
from .contents import Choices, Contents, Reducer, Statistics
from .estimate import raw_bytes, stored_bytes
from .keep import Keep
from .labels import map_labels
from .plan import Plan, digest, make_plan, most_at_once, spread
from .runtime.decode import RANGE
from .runtime.decoders import HOST, Decoder, check_decoder
from .runtime.graph import graph_digest, read_spec
from .runtime.probe import probe_batch
from .runtime.providers import OPENVINO, Precision, accelerates, check_precision, resolve_provider
from .runtime.session import constants
from .sources import Items, Source, source_of
from .sources.duplicates import duplicates
from .sources.items import UNKNOWN
from .store.coordinates import COORDINATES, Reserved, arrays, nothing_reserved, with_room
from .store.schema import CODEC, GRADIENTS, MAX_CHUNK, ArraySpec
from .store.storage import Url
from .store.store import Store
from .targets import choose
from .unit import Unit
from .versions import versions

__all__ = ["Estimate", "Job", "Request", "make_job", "open_store"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """The size of a run, known before its first image.

    Attributes:
        images: number of images in the plan; `total`: in the source, before `limit`.
        others: files that the source left out, counted by reason.
        bytes_raw: uncompressed bytes of all arrays; `bytes_expected`: of the store's files, compressed like real
            attention and photographs.
        bytes_free: free bytes on the store's disk; None for a bucket.
        plan: the plan.
        done: units that are already done, when a store is resumed.
    """

    images: int
    total: int
    others: dict[str, int]
    bytes_raw: int
    bytes_expected: int
    bytes_free: int | None
    plan: Plan
    done: int


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of `run` that determine the plan and the store."""

    graph: Path
    output: Path | Url
    keep: Sequence[str]
    layers: Sequence[int] | None
    store_dtype: str
    codec: str
    batch_size: int | None
    provider: str
    precision: Precision
    decoder: Decoder
    target: str
    limit: int | None
    seed: int
    reducer: Callable[[GraphSpec], Reducer] | None
    statistics: Statistics
    overwrite: bool
    dry_run: bool
    reserved: Reserved = nothing_reserved


@dataclass
class Job:
    """A prepared run: everything except the session."""

    request: Request
    choices: Choices
    contents: Contents
    source: Source
    items: Items
    plan: Plan
    estimate: Estimate
    targets: npt.NDArray[np.int64] | None = None
    notes: list[str] = field(default_factory=list)

    def unit(self, k: int) -> Unit:
        """Unit k, ready to be sent to a worker."""
        images = self.plan.unit_range(k)
        at = slice(images.start, images.stop)
        return Unit(k, self.items[at], self.source, None if self.targets is None else self.targets[at])


def make_job(
    request: Request,
    images: str | os.PathLike[str] | Source,
    probe: Callable[..., int] = probe_batch,
    threads: int = 1,
) -> Job:
    """Read the graph, list the images, and make the plan or use that of an existing store.

    Args:
        request: the arguments of the run.
        images: a path or URL, or a source.
        probe: `probe_batch`, or an executor's version of it.
        threads: number of units that will be processed at once, over all workers, for a new plan.

    Raises:
        UsageError: choices that do not fit the graph.
        AttlasError: graph or images cannot be read, or the output is a store of another run.
    """
    for option, number in (("--limit", request.limit), ("--batch-size", request.batch_size)):
        if number is not None and number < 1:
            raise UsageError(f"{option} {number}: at least one image")
    _refuse_other(request.graph)
    spec = read_spec(request.graph)
    keep = Keep.choose(spec, request.keep, request.layers, request.store_dtype, request.codec)
    _check_runtime(request, keep)
    choices = Choices(keep, request.reducer, request.statistics)
    accelerator = accelerates(request.provider)
    source = source_of(images)
    items = Items.of(source.items)
    if request.limit is not None:
        items = items.take(spread(len(items), request.limit))
    contents = Contents.derive(spec, choices)
    items, renamed = with_room(items, spec, contents.templates, request.reserved)
    targets = _targets(request, keep, spec, items)
    existing, notes = None, list[str]()
    if request.output.exists() and not request.overwrite:
        _refuse_taken(request.output)
        existing = Store(request.output).plan
    identity = _identity(request, contents, source, items)  # once: it hashes the whole graph

    def planned(batch: int | None, at_once: int | None = None) -> Plan:
        return make_plan(
            len(items),
            layer_bytes=spec.heads * spec.tokens**2 * (4 if "float32" in keep.widths else 2),
            image_bytes=contents.image_bytes,
            identity=identity,
            batch=batch,
            at_once=at_once,
            threads=threads,
            gpu=accelerator,
            seed=request.seed,
        )

    plan = planned(request.batch_size)
    if existing is not None:
        _compare(request.output, existing, plan, request.batch_size, items)
        plan = existing
        notes = _compare_files(request.output, items)
    elif not request.dry_run and (request.precision != "float32" or (accelerator and request.batch_size is None)):
        fits = _fitting(request, contents, plan, probe, threads)
        plan = planned(min(fits, plan.batch), fits) if fits != plan.batch else plan
    elif not request.dry_run and request.decoder != HOST:
        probe(request.graph, 1, provider=request.provider, decoder=request.decoder)  # before there is a store
    if existing is None:
        _check_chunks(contents, plan)
    estimate = _estimate(request, source, items, plan, contents)
    if existing is None:
        notes += _columns_note(renamed)
        notes += filter(None, [duplicates(source, items)] if not source.reads_ahead else [])
    return Job(request, choices, contents, source, items, plan, estimate, targets, notes)


def _fitting(request: Request, contents: Contents, plan: Plan, probe: Callable[..., int], threads: int) -> int:
    """How many images fit the device's memory and are fastest at once, probed once.

    A processor is asked for its precision in the same way.
    """
    choices = contents.placed(request.provider) | {"provider": request.provider, "precision": request.precision}
    choices["decoder"] = request.decoder
    if accelerates(request.provider) and request.batch_size is None:
        choices["most"] = most_at_once(plan.images, plan.batch, contents.image_bytes, threads)
    return probe(request.graph, plan.batch, **choices)


def _check_chunks(contents: Contents, plan: Plan) -> None:
    """Refuse chunks that no codec encodes."""
    for template in contents.templates:
        array = ArraySpec.from_template(template, plan)
        size = 0 if array.dtype == "str" else math.prod(array.chunks) * np.dtype(array.dtype).itemsize
        if size > MAX_CHUNK:
            raise UsageError(
                f"--batch-size {plan.batch}: a chunk of {array.name} would have {size / 2**30:.3g} GiB, and 2 GiB is "
                f"the most; choose {plan.batch * MAX_CHUNK // size} or fewer"
            )


def _check_runtime(request: Request, keep: Keep) -> None:
    """Refuse what the provider cannot do: its precision, decoding on a card, and statistics in the graph."""
    check_precision(request.provider, request.precision)
    check_decoder(request.decoder, request.provider)
    if keep.gradients and request.precision != "float32":
        raise UsageError(
            f"--precision {request.precision}: gradients would be wrong by up to half of their largest; leave it out"
        )
    if request.statistics == "graph" and resolve_provider(request.provider) == [OPENVINO]:
        raise UsageError("statistics in the graph: OpenVINO would not round attention before them; leave them to auto")


def _refuse_other(graph: Path) -> None:
    """Refuse a GRAPH that looks like another argument of `run`, such as images or a store."""
    if graph.is_dir():
        what = "an attention store" if (graph / "zarr.json").exists() else "a folder"
        raise UsageError(f"{graph}: is {what}, not a graph; the order is `attlas run GRAPH.onnx IMAGES -o STORE.zarr`")


def _refuse_taken(output: Path | Url) -> None:
    """Refuse an OUTPUT that is there and is no store; whether one can be read is seen later."""
    if isinstance(output, Path) and not (output / "zarr.json").exists():
        what = "folder" if output.is_dir() else "file"
        raise AttlasError(f"{output}: exists, and is a {what} that is no attention store; choose another output (-o)")


def _columns_note(renamed: Mapping[str, str]) -> list[str]:
    """A note on columns that were renamed because the name is reserved or not valid for an array."""
    changes = [f"{old!r} as {new}" for old, new in renamed.items()]
    more = f" and {len(changes) - 5} more" if len(changes) > 5 else ""
    return [f"columns kept under another name: {', '.join(changes[:5])}{more}"] if changes else []


def _targets(request: Request, keep: Keep, spec: GraphSpec, items: Items) -> npt.NDArray[np.int64] | None:
    """The class to differentiate for each image, (image) int64; None without gradients."""
    if keep.gradients:
        return choose(request.target, spec, items.labels)
    if request.target != "predicted":
        raise UsageError(f"--target {request.target}: is of gradients; --keep {', '.join(GRADIENTS)} keeps them")
    return None


def _identity(request: Request, contents: Contents, source: Source, items: Items) -> dict[str, Any]:
    """The values that must be equal for a run to resume."""
    keep, reducer, content = contents.keep, contents.reducer, getattr(source, "content", ())
    return {
        "graph": graph_digest(request.graph),
        "images": len(items),
        "items": digest(zip(items.keys, items.labels, strict=True)),
        **({"content": digest(content)} if content else {}),
        "recipe": str(contents.spec.recipe),
        "range": RANGE,
        **keep.identity(),
        **({"target": request.target} if keep.gradients else {}),
        **({"precision": request.precision} if request.precision != "float32" else {}),
        **({"decoder": request.decoder} if request.decoder != HOST else {}),
        "statistics": sorted(t.name for t in reducer.templates) if reducer is not None else [],
        "seed": request.seed,
    }


def _estimate(request: Request, source: Source, items: Items, plan: Plan, contents: Contents) -> Estimate:
    """The estimate for a plan, with the units that are already done."""
    spec, keep = contents.spec, contents.keep
    fixed = {o.name: np.zeros([n for n in o.shape if n], np.float32) for o in spec.outputs if None not in o.shape}
    layout, values = arrays(spec, plan, contents.templates, items, np.zeros(len(items), np.int32), fixed, keep.codec)
    resumed = request.output.exists() and not request.overwrite
    return Estimate(
        images=plan.images,
        total=len(source.items),
        others=dict(source.others),
        bytes_raw=sum(raw_bytes(array, values.get(array.name), keep, spec) for array in layout),
        bytes_expected=stored_bytes(layout, values, keep, spec, plan),
        bytes_free=_free(request.output),
        plan=plan,
        done=int(Store(request.output).done.sum()) if resumed else 0,
    )


def _compare(output: Path | Url, theirs: Plan, ours: Plan, batch_size: int | None, items: Items) -> None:
    """Refuse to resume a store with another plan, and show the difference."""
    old, new = dict(theirs.identity), dict(ours.identity)
    if "range" not in old:  # earlier version: differs only for wide-range pictures, which a unit refuses
        del new["range"]
    if "content" not in old.keys() & new.keys():  # of an earlier version, or the same images in another form
        for names in (old, new):
            names.pop("content", None)
    for names in (old, new):
        names.setdefault("codec", CODEC)
        names.setdefault("decoder", HOST)
        names.setdefault("precision", "float32")
    if batch_size is not None:
        # Earlier versions kept a batch of more than all images as it was asked.
        old["batch_size"], new["batch_size"] = min(theirs.batch, theirs.images), ours.batch
    different = [
        f"{name} {_short(old.get(name))} there, {_short(new.get(name))} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if different:
        raise AttlasError(
            f"{output}: holds another run ({'; '.join([*different, *_other_images(output, items)])}); choose another "
            "output, or --overwrite"
        )


def _other_images(output: Path | Url, items: Items) -> Iterator[str]:
    """Images of only one of two lists, the store's and the source's: a file that was deleted can be put back."""
    store = Store(output)
    if store.whole("path"):
        theirs, ours = set(map(str, store.read("path"))), set(map(str, items.keys))
        for where, some in (("there", theirs - ours), ("now", ours - theirs)):
            if some:
                first = ", the first" if len(some) > 1 else ""
                yield f"{counted(len(some), 'image')} only {where}{first}: {min(some)}"


def _compare_files(output: Path | Url, items: Items) -> list[str]:
    """Compare the source's list with the one that the store was planned from; returns notes.

    Raises:
        AttlasError: the size of an image has changed, so it is another image.
    """
    store = Store(output)
    if not (store.whole("run/size") and store.whole("run/mtime_ns")):
        return ["the images' sizes and times were lost; taken as the same images"]
    size, mtime = store.read("run/size"), store.read("run/mtime_ns")
    other = np.flatnonzero((size != items.sizes) & (size != UNKNOWN) & (items.sizes != UNKNOWN))
    if len(other):
        first = int(other[0])
        raise AttlasError(
            f"{output}: {counted(len(other), 'image has', 'images have')} changed since it was planned (the first: "
            f"{items.keys[first]}, "
            f"{size[first]:,} bytes then, {items.sizes[first]:,} now); choose another output, or --overwrite"
        )
    touched = int(((mtime != items.mtimes) & (mtime != UNKNOWN) & (items.mtimes != UNKNOWN)).sum())
    if touched:
        some = counted(touched, "image has", "images have")
        return [f"{some} another time than when the store was planned; taken as copies of the same"]
    return []


def open_store(job: Job) -> Store:
    """The store to write to: an existing store with this plan, or a new one."""
    output = job.request.output
    if job.request.overwrite:
        Store.remove(output)
    elif output.exists():
        store = Store(output, writable=True)
        lacking = [t.name for t in job.contents.templates if t.name not in store]
        if lacking and not store.done.all():
            version = store.attrs.get("versions", {}).get("attlas", "?")
            raise AttlasError(
                f"{output}: was begun by attlas {version}, which had no {', '.join(lacking)}; finish it with that "
                "version, choose another output, or --overwrite"
            )
        lost = [name for name in store.fixed if not store.whole(name)]
        if lost:
            store.write_fixed(lost, _layout(job)[1])
        return store
    contents, keep = job.contents, job.contents.keep
    layout, values = _layout(job)
    attrs = {
        "dataset": job.source.name,
        "selection": _selection(job),
        "versions": versions(),
        "kept": keep.identity(),
        "coordinates": " ".join([*COORDINATES, *(["target"] if keep.gradients else []), *job.items.columns]),
        "columns": list(job.items.columns),
    }
    return Store.create(output, contents.spec, job.plan, layout, values=values, attrs=attrs)


def _layout(job: Job) -> tuple[list[ArraySpec], dict[str, Any]]:
    """Every array of the store, and the values that are known before the run."""
    contents = job.contents
    labels, known = map_labels(job.items.labels, contents.spec.classes), constants(job.request.graph)
    return arrays(contents.spec, job.plan, contents.templates, job.items, labels, known, contents.keep.codec)


def _selection(job: Job) -> str:
    """How the images were chosen, as text."""
    if job.estimate.total == job.plan.images:
        return f"all {counted(job.plan.images, 'image')}"
    return f"{job.plan.images:,} of {counted(job.estimate.total, 'image')}, evenly spread over the sorted list"


def _free(output: Path | Url) -> int | None:
    """Free bytes on the store's disk; None for a bucket."""
    if isinstance(output, Url):
        return None
    folder = Path(os.path.realpath(output))  # resolve() raises on circular links
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text

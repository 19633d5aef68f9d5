"""Reading a store: its arrays and their chunks, and what of them is there."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ...arguments import Where
from ...errors import AttlasError
from ...exporter.spec import GraphSpec
from ...files import from_json
from ..plan import Plan
from . import arrays as layouts
from .arrays import Array
from .overview import as_html, as_text, overview
from .reading import DamagedError, by_analysis, checked, read_attrs, reading
from .schema import LAYERED
from .storage import ROOT, Storage, Url, storage_at

__all__ = ["MARKS", "Reader", "mark_key"]

MARKS = "run/done"


class Reader:
    """What a store holds, and what of it is there.

    Attributes:
        path: its local path, or a URL.
        storage: reads and writes its files by key.
        spec: spec of the graph that made it.
        plan: plan of the run that made it.
    """

    def __init__(self, path: Where, *, writable: bool = False) -> None:
        """Open an existing store.

        Raises:
            AttlasError: there is no attlas store at `path`, or it has a newer format.
        """
        self.storage: Storage = storage_at(path)
        self.path: Path | Url = self.storage.path
        attrs = read_attrs(self.storage)
        self.spec = GraphSpec.from_dict(attrs["spec"], str(self.path))
        self.plan: Plan = checked(attrs, self.path)
        self._writable = writable
        self._open()
        self.array(MARKS)

    def _open(self) -> None:
        with reading(self.path, "its metadata"):
            self._group = layouts.opened(self.storage, writable=self._writable)
            self._names = frozenset(self._group.array_keys())
        self._arrays: dict[str, Array] = {}

    def __repr__(self) -> str:
        return as_text(f"Store {self.path}", self._overview(), f'attlas.open("{self.path}") opens it as one Dataset')

    def _repr_html_(self) -> str:
        return as_html(f"Store {self.path}", self._overview(), f'attlas.open("{self.path}") opens it as one Dataset')

    def _overview(self) -> dict[str, str]:
        spec, attrs = self.spec, self.attrs
        sizes = {name: dict(zip(self.dims(name), self.array(name).shape, strict=True)) for name in self.names}
        facts = {
            "model": f"{spec.name}, {spec.weights.source} weights",
            "dataset": str(attrs.get("dataset", "")),
            "images": f"{int(self.done_images.sum()):,} of {self.plan.images:,} done",
        }
        return overview(sizes, facts)

    @property
    def attrs(self) -> dict[str, Any]:
        """The group's attributes: `attlas_format`, `spec`, `plan`, `dataset`, `versions` and those of the analysis."""
        return dict(self._group.attrs)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the arrays, sorted."""
        return tuple(sorted(self._names))

    @property
    def zarr(self) -> Any:
        """The object to pass to `zarr.open_group` or xarray."""
        return layouts.zarr_store(self.storage)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def array(self, name: str) -> Array:
        """The zarr array with that name, for slicing; `run/done` is an array in the group `run`.

        Raises:
            AttlasError: there is no such array.
        """
        if name not in self._arrays:
            with reading(self.path, f"the metadata of {name}"):
                try:
                    array = layouts.member(self._group, name)
                except KeyError:
                    if name in self:
                        raise
                    raise AttlasError(f"{self.path}: holds no {name}; it has {', '.join(self.names)}") from None
                self._check_shape(array)
                self._arrays[name] = array
        return self._arrays[name]

    def _check_shape(self, array: Array) -> None:
        """Check that an array is as long as the plan says.

        Raises:
            ValueError: it is not.
        """
        plan, metadata = self.plan, cast(Any, array.metadata)
        sizes = {"image": plan.images, "sample": len(plan.sample), "unit": plan.units, "layer": len(self.spec.layers)}
        for dim, n in zip(metadata.dimension_names or (), array.shape, strict=False):
            if n > sizes.get(dim, n) or (n < sizes.get(dim, n) and dim != "layer"):  # a graph may give it of few layers
                raise ValueError(f"{n} along {dim}, where {sizes[dim]} belong")

    def dims(self, name: str) -> tuple[str, ...]:
        """The dimension names of an array."""
        metadata: Any = self.array(name).metadata
        return tuple(metadata.dimension_names or ())

    def read(self, name: str, selection: Any = ()) -> npt.NDArray[Any]:
        """Part of an array in its stored dtype; by default the whole array.

        Raises:
            DamagedError: the stored data cannot be decoded, or a chunk that was written is missing.
            AttlasError: it cannot be read now, or there is no such array.
        """
        array = self.array(name)
        rows, *inner = (selection or (slice(None),)) if isinstance(selection, tuple) else (selection,)
        plain = isinstance(rows, slice) and rows.step is None and array.ndim and array.chunks[1:] == array.shape[1:]
        # zarr spends half a millisecond on a chunk, and these arrays have a small one for every unit. From a bucket
        # zarr is used anyway, because it reads many chunks at the same time.
        if plain and isinstance(self.path, Path) and layouts.encoded(array):
            return self._read_rows(name, array, range(*rows.indices(array.shape[0])), tuple(inner))
        with self.reading(name):
            found, missing = layouts.read(array, selection)
            if missing:
                self._check_fill(name, rows)
            return found

    def _read_rows(self, name: str, array: Array, rows: range, inner: tuple[Any, ...]) -> npt.NDArray[Any]:
        """`read` for whole rows, or the part `inner` of each row, chunk by chunk in the caller's thread."""
        chunk, long = np.empty(array.chunks, array.dtype), array.chunks[0]
        found, missing = np.empty((len(rows), *chunk[0][inner].shape), array.dtype), list[int]()
        for k in range(rows.start // long, -(-rows.stop // long)) if rows else ():
            if not self.read_chunk(name, (k, *[0] * (array.ndim - 1)), chunk):
                missing.append(k * long)
                chunk.fill(array.fill_value)
            first, last = max(rows.start, k * long), min(rows.stop, (k + 1) * long)
            found[first - rows.start : last - rows.start] = chunk[(slice(first - k * long, last - k * long), *inner)]
        if missing:
            self._check_fill(name, missing)
        return found

    def chunk(self, name: str, index: Iterable[int]) -> bytes | None:
        """The stored bytes of a chunk, compressed and with checksum; None if there is no chunk, which means fill."""
        with self.reading(name):
            try:
                return self.storage.read(self.chunk_key(name, index))
            except FileNotFoundError:
                return None

    def read_chunk(self, name: str, index: Iterable[int], out: npt.NDArray[Any]) -> bool:
        """Decode a chunk in the caller's thread into `out`, of the chunk's shape.

        False if there is no such chunk, or if it has another encoding.

        Raises:
            DamagedError: it cannot be decoded.
        """
        if not layouts.encoded(self.array(name)) or (data := self.chunk(name, index)) is None:
            return False
        with self.reading(name):
            layouts.decode(self.array(name), data, out)
        return True

    def check_whole(self, names: Iterable[str], units: Iterable[int] | None = None) -> None:
        """Check that no chunk is missing that was written: it would read as fill.

        That is what a run writes of units that are done (or of `units` among them), and every other array whole, but
        for rows that an analysis writes, which come later.

        Raises:
            DamagedError: one is missing.
        """
        done: list[int] = list(np.flatnonzero(self.done) if units is None else units)
        own, analyzed = dict(self.unit_arrays()), self.attrs.get("analyzed", ())

        def there(name: str) -> bool:
            rows = name == MARKS or (name in analyzed and self.dims(name)[:1] == ("image",))
            return bool(done) if name in own else not rows

        for name, files in self.storage.inside(list(filter(there, names))):
            held = {f"{name}/{file}" for file in files}
            if name in own:
                wanted = ((key, int(k)) for k in done for key in self._unit_keys(name, own[name], int(k)))
            else:
                wanted = ((key, -1) for key in self.keys(name))
            key, k = next(((key, k) for key, k in wanted if key not in held), ("", -1))
            if key and k >= 0:
                raise DamagedError(
                    f"{self.path}: {name} lacks rows of unit {k}, which is done ({key} is missing); "
                    "`attlas verify --repair` reopens its units"
                )
            if key:
                raise DamagedError(f"{self.path}: {key} is missing; {self.again(name)} writes it again")

    def reading(self, name: str) -> AbstractContextManager[None]:
        """Convert exceptions from what an array holds to a `DamagedError` that says what mends this array."""
        return reading(self.path, name, lambda: self._mended(name))

    def reading_attrs(self, name: str) -> AbstractContextManager[None]:
        """`reading` for the attributes of an array of an analysis, which that analysis writes with the array."""
        again = by_analysis(name).removesuffix("`")
        return reading(self.path, f"what is said of {name}", lambda: f"{again} --overwrite` writes it again")

    def _mended(self, name: str) -> str:
        again = self.again(name)
        repair = "`attlas verify --repair`"
        return f"{repair} removes it, and {again} writes it again" if again else f"{repair} reopens its units"

    def again(self, name: str) -> str:
        """The command that writes an array again if a chunk of it is missing; "" for an array of units."""
        if name in self.attrs.get("analyzed", ()):
            return by_analysis(name)
        return "the same `attlas run`" if name in self.fixed else ""

    @functools.cached_property
    def fixed(self) -> list[str]:
        """The arrays that were written when the store was created: their chunks belong to no unit."""
        constants = [output.name for output in self.spec.outputs if None not in output.shape]
        names = FIXED.union(self.attrs.get("columns", ()), constants).intersection(self._names)
        group: Any = self._group.get("run")
        of_run = [f"run/{n}" for n in (group.array_keys() if group is not None else ()) if f"run/{n}" != MARKS]
        return sorted([*names.difference(self.attrs.get("analyzed", ())), *of_run])

    def whole(self, name: str) -> bool:
        """Whether every chunk of a small array is there."""
        return all(map(self.storage.exists, self.keys(name)))

    def _check_fill(self, name: str, rows: Any) -> None:
        """`check_whole` of the units that rows, selected as in numpy, touch; nor was the store moved meanwhile."""
        self.storage.check_there()
        touched = np.flatnonzero(self.done)
        if self.dims(name)[:1] == ("image",):
            touched = np.intersect1d(touched, np.arange(self.plan.images)[rows] // self.plan.unit)
        self.check_whole([name], touched)

    def has_rows(self, name: str) -> npt.NDArray[np.bool_]:
        """Which units have rows of an array, (unit) bool: a unit is a chunk, and a chunk's file is written whole."""
        there, rest = set(self.storage.names(name)), [0] * (len(self.dims(name)) - 1)
        keys = (self.chunk_key(name, (k, *rest)) for k in range(self.plan.units))
        return np.array([key.rpartition("/")[2] in there for key in keys], np.bool_)

    @property
    def done(self) -> npt.NDArray[np.bool_]:
        """Which units are done: (unit) bool. Read again at each call."""
        done = np.zeros(self.plan.units, np.bool_)
        # A mark's file is written atomically and last, so its existence is the mark. One listing costs as much as one
        # read.
        with reading(self.path, "what is done"):
            marks = self.storage.names(MARKS)
        found = [int(mark[2:]) for mark in marks if mark.startswith("c.") and mark[2:].isdigit()]
        done[[k for k in found if k < done.size]] = True
        return done

    def is_done(self, k: int) -> bool:
        """Whether unit k is marked."""
        return self.storage.exists(mark_key(k))

    @property
    def done_images(self) -> npt.NDArray[np.bool_]:
        """Which images are in done units: (image) bool."""
        return np.repeat(self.done, self.plan.unit)[: self.plan.images]

    @property
    def why_none(self) -> str:
        """Why there is no image to show, in one line: none is done yet, or none could be read."""
        if not self.done.all():
            return f"{self.path}: holds no image that is done and readable yet; `attlas run` goes on with it"
        first = f" (the first: {self.read('path', 0)}: {self.read('error', 0)})" if self.plan.images else ""
        return f"{self.path}: none of its {self.plan.images:,} images could be read{first}; run others into a new store"

    def batches(self) -> Iterator[range]:
        """The batches of done units, in order: those that can be read now."""
        for k in np.flatnonzero(self.done):
            yield from self.plan.batches(int(k))

    def chunk_key(self, name: str, index: Iterable[int]) -> str:
        """The key, in the storage, of the chunk with that index."""
        return layouts.chunk_key(name, index, self.array(name))

    def chunk_path(self, name: str, index: Iterable[int]) -> Path:
        """The file of the chunk with that index; only for local stores."""
        return Path(self.path) / self.chunk_key(name, index)

    def unit_keys(self, k: int) -> Iterator[str]:
        """The keys of the chunks that unit k writes: of every array whose first dimension is image, and of pictures."""
        for name, dim in self.unit_arrays():
            yield from self._unit_keys(name, dim, k)

    def _unit_keys(self, name: str, dim: str, k: int) -> Iterator[str]:
        images, long = self.plan.unit_range(k), self.array(name).chunks[0]
        if dim == "sample":
            return self.keys(name, [index for index, _ in self.plan.sampled(images)])
        return self.keys(name, range(images.start // long, -(-images.stop // long)))

    def keys(self, name: str, first: Iterable[int] | None = None) -> Iterator[str]:
        """The keys of an array's chunks; with `first` only those with these indices on the first axis."""
        array = self.array(name)
        index: list[Iterable[int]] = [range(-(-n // c)) for n, c in zip(array.shape, array.chunks, strict=True)]
        if first is not None:
            index[0] = first
        if name in LAYERED and "layer" in self.dims(name):
            # Layers that are not kept have no chunks and read as fill.
            index[1] = self.kept_layers
        return (self.chunk_key(name, at) for at in itertools.product(*index))

    @functools.cached_property
    def kept_layers(self) -> list[int]:
        """The indices on the layer axis for which attention is stored."""
        kept = self.attrs["kept"]["layers"]
        return [index for index, layer in enumerate(self.spec.layers) if layer in kept]

    @functools.lru_cache(maxsize=1)  # noqa: B019 - the layout never changes while a run writes
    def unit_arrays(self) -> list[tuple[str, str]]:
        """(name, first dimension) of the arrays whose chunks belong to units."""
        analyzed = self.attrs.get("analyzed", ())
        found = [(name, (*self.dims(name), "")[0]) for name in self.names if name not in self.fixed]
        return [(name, dim) for name, dim in found if dim in ("image", "sample") and name not in analyzed]

    @property
    def record(self) -> dict[str, Any]:
        """The record of all runs: versions, provider, seconds per stage. Read again at each call; {} if damaged."""
        try:
            record = dict(from_json(self.storage.read(f"run/{ROOT}"))["attributes"])
            return record if all(isinstance(run, dict) for run in record.get("runs", ())) else {}
        except (OSError, ValueError, TypeError, KeyError):
            return {}


def mark_key(k: int) -> str:
    """The key of the file whose existence means that unit k is done."""
    return layouts.chunk_key(MARKS, [k])


FIXED = frozenset({"path", "label", "label_class", "sample", "layer", "prefix", "class", "class_name"})

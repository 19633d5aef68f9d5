"""A store as one lazy xarray Dataset; the one module that knows xarray."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..arguments import Where
from ..engine.store.coordinates import COORDINATES
from ..engine.store.overview import as_html, as_text, overview
from ..engine.store.store import Store
from ..errors import AttlasError, UsageError, one_line
from .formulas import decode_codes

__all__ = ["Dataset", "open"]

MANY = 24  # variables: more than a screen holds
HINT = "a lazy xarray.Dataset: list(ds.data_vars) names everything, ds.NAME is one array"


class Dataset(xr.Dataset):  # type: ignore[no-untyped-call]
    """xarray's Dataset, of a store: with many variables it is shown on one screen, statistics gathered by name."""

    __slots__ = ()

    def __repr__(self) -> str:
        if len(self.variables) <= MANY:
            return super().__repr__()
        return as_text(f"<xarray.Dataset> of {len(self.variables)} variables", self._overview(), HINT)

    def _repr_html_(self) -> str:
        if len(self.variables) <= MANY:
            return super()._repr_html_()
        return as_html(f"xarray.Dataset of {len(self.variables)} variables", self._overview(), HINT)

    def _overview(self) -> dict[str, str]:
        sizes = {str(name): {str(k): n for k, n in one.sizes.items()} for name, one in self.variables.items()}
        facts = {"model": str(self.attrs.get("model", "")), "dataset": str(self.attrs.get("dataset", ""))}
        return overview(sizes, facts)


def open(path: Where, chunks: Mapping[str, Any] | str | int | None = None) -> Dataset:
    """Open a store: the run's arrays, the statistics beside them, nothing loaded.

    Every large array is cut as it is stored, so that a selection reads its own chunks alone. Attention is float32
    whatever the store holds: float16 is widened, and uint8 codes are decoded with rows renormalised. Images that could
    not be read, units that are not done and layers that were not kept are NaN; the coordinates `valid` and `done`
    (image) say which. Further coordinates: path, label, label_class, error, height and width (image), layer, prefix
    and class.

    Args:
        path: of the store, or a `Store`.
        chunks: other chunks, as `Dataset.chunk` takes them: by dimension, or "auto" for what dask finds convenient.

    Returns:
        The Dataset. Its attributes hold the model's name, the graph's spec as JSON, and what the run recorded. They,
        and those of the arrays, are numbers and text, so that netCDF takes them; what nests is JSON.

    Raises:
        DamagedError: it lacks rows of a unit that is done, which would read as NaN.
        AttlasError: there is no store at `path`, or it does not read.
        UsageError: `chunks` names what is no dimension, or is nothing that dask takes.
    """
    store = Store(path)
    done = store.done
    store.check_whole(store.names, np.flatnonzero(done))
    found: Any
    try:
        # Undecoded, since xarray would make float64 of float16, and would do so before it could be cut.
        found = xr.open_zarr(store.zarr, chunks={}, mask_and_scale=False, decode_times=False, zarr_format=3)
    except (ValueError, OSError, KeyError) as error:
        raise AttlasError(f"{store.path}: does not read as a Zarr store ({one_line(error)})") from None
    found = found.assign({str(name): _decoded(variable) for name, variable in found.data_vars.items()})
    if "attention_code" in found:
        found = found.rename(attention_code="attention")
    found = found.set_coords([name for name in (*COORDINATES, "class_name", "target") if name in found])
    # Small and asked for at every turn.
    found = found.assign_coords({n: v.compute() for n, v in found.coords.variables.items() if v.ndim == 1})
    images = np.repeat(done, store.plan.unit)[: store.plan.images]
    found = found.assign_coords(done=("image", images, {"long_name": "the image's unit is done"}))
    found.attrs = _attrs(store, done)
    made = Dataset(found.data_vars, found.coords, found.attrs)
    made = made if chunks is None else _cut(made, chunks)
    made.encoding["source"] = str(store.path)  # where xarray keeps it, and `attlas.plot` looks for it
    # By which `arguments.path` tells a part of it from the whole.
    made.encoding["whole"] = {str(n): (str(one.dims[0]), one.size) for n, one in made.coords.items() if one.ndim == 1}
    return made


def _cut(found: Dataset, chunks: Mapping[str, Any] | str | int) -> Dataset:
    """With other chunks. Coordinates, by which images are chosen and grouped, stay in memory."""
    given = dict(chunks) if isinstance(chunks, Mapping) else chunks
    try:
        if isinstance(given, dict) and (unknown := set(given) - set(map(str, found.dims))):
            raise ValueError(f"no dimension {', '.join(sorted(unknown))}; there are {', '.join(map(str, found.dims))}")
        numbers = {name: one.variable for name, one in found.data_vars.items() if one.dtype.kind in "biuf"}
        return found.assign(
            {
                name: one.chunk({d: n for d, n in given.items() if d in one.dims} if isinstance(given, dict) else given)
                for name, one in numbers.items()
            }
        )
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UsageError(
            f"chunks={chunks!r}: {one_line(error)}; give sizes by dimension, such as {{'image': 64}}, or 'auto'"
        ) from None


def _decoded(variable: Any) -> Any:
    """float16 as float32, and codes as attention; others as they are."""
    attrs = {key: _plain(value) for key, value in variable.attrs.items() if key != "scale_factor"}
    if variable.name == "attention_code":
        codes = variable.data.rechunk({variable.ndim - 1: -1})
        data = codes.map_blocks(decode_codes, dtype=np.float32, meta=np.empty((0,) * codes.ndim, np.float32))
        variable = variable.copy(data=data)
        attrs |= {"long_name": "attention, decoded from codes", "stored": "uint8"}
    if variable.dtype == np.float16:
        variable = variable.astype(np.float32)
    variable.attrs = attrs
    return variable


def _plain(value: Any) -> Any:
    """A number or text, as every format takes it: JSON where it is anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | np.number):
        return json.dumps(value)
    return value


def _attrs(store: Store, done: npt.NDArray[np.bool_]) -> dict[str, Any]:
    stored = store.attrs
    said = {name: stored[name] for name in ("attlas_format", "dataset", "selection", "versions") if name in stored}
    return {name: _plain(value) for name, value in said.items()} | {
        "model": store.spec.name,
        "readout": store.spec.readout,
        "spec": store.spec.to_json(),
        "units_done": int(done.sum()),
        "units": int(done.size),
    }

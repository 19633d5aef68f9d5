"""A store as one lazy xarray Dataset; the one module that knows xarray."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ..engine.store import Store
from ..exporter.errors import AttlasError
from .formulas import decode_codes

__all__ = ["open"]


def open(path: str | os.PathLike[str], chunks: Mapping[str, Any] | None = None) -> xr.Dataset:
    """Open a store: the run's arrays, the statistics beside them, nothing loaded.

    Every large array is cut as it is stored, so that a selection reads its own chunks alone. Attention is float32
    whatever the store holds: float16 is widened, and uint8 codes are decoded with rows renormalised. Images that could
    not be read, units that are not done and layers that were not kept are NaN; the coordinates `valid` and `done`
    (image) say which. Further coordinates: path, label, label_class, error, height and width (image), layer, prefix
    and class.

    Args:
        path: of the store.
        chunks: other chunks by dimension, as `Dataset.chunk` takes them.

    Returns:
        The Dataset. Its attributes hold the model's name, the graph's spec as JSON, and what the run recorded.

    Raises:
        AttlasError: there is no store at `path`, or it does not read.
    """
    store = Store(path)
    found: Any
    try:
        # Undecoded, since xarray would make float64 of float16, and would do so before it could be cut.
        found = xr.open_zarr(store.zarr, chunks={}, mask_and_scale=False, decode_times=False, zarr_format=3)
    except (ValueError, OSError, KeyError) as error:
        raise AttlasError(f"{path}: does not read as a Zarr store ({' '.join(str(error).split())})") from None
    found = found.assign({str(name): _decoded(variable) for name, variable in found.data_vars.items()})
    if "attention_code" in found:
        found = found.rename(attention_code="attention")
    beside = ("path", "label", "label_class", "valid", "error", "height", "width", "class_name", "target")
    found = found.set_coords([name for name in beside if name in found])
    # Small and asked for at every turn.
    found = found.assign_coords({n: v.compute() for n, v in found.coords.variables.items() if v.ndim == 1})
    found = found.assign_coords(done=("image", store.done_images, {"long_name": "the image's unit is done"}))
    found.attrs = _attrs(store)
    opened: xr.Dataset = found if chunks is None else found.chunk(dict(chunks))
    return opened


def _decoded(variable: Any) -> Any:
    """float16 as float32, and codes as attention; others as they are."""
    attrs = {key: value for key, value in variable.attrs.items() if key != "scale_factor"}
    if variable.name == "attention_code":
        codes = variable.data.rechunk({variable.ndim - 1: -1})
        data = codes.map_blocks(decode_codes, dtype=np.float32, meta=np.empty((0,) * codes.ndim, np.float32))
        return variable.copy(data=data).assign_attrs(long_name="attention, decoded from codes", stored="uint8")
    if variable.dtype == np.float16:
        variable = variable.astype(np.float32)
    variable.attrs = attrs
    return variable


def _attrs(store: Store) -> dict[str, Any]:
    """Plain values, so that the Dataset can be written to any format."""
    stored, done = store.attrs, store.done
    said = {name: stored[name] for name in ("attlas_format", "dataset", "selection") if name in stored}
    said = {name: value if isinstance(value, str | int) else str(value) for name, value in said.items()}
    return said | {
        "model": store.spec.name,
        "readout": store.spec.readout,
        "spec": store.spec.to_json(),
        "units_done": int(done.sum()),
        "units": int(done.size),
    }

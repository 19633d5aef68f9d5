"""Every answer that the page asks for, by path: from stores to JSON and bytes, without a server.

A page is opened by `manifest`, which reads no row of any picture: so a store of a terabyte opens as fast as one of a
megabyte. Whatever else is shown is asked for when it is looked at. Paths are the same in the served page, the single
file and the notebook:

    manifest                   JSON: the stores, their maps and columns
    column/STORE/NAME          packed: one value a picture
    pairs/STORE                packed: for every picture of the list, its index in another store, or -1
    facts/STORE/IMAGE          JSON: what is known of one picture
    rows/STORE/IMAGE/PLACE     packed: attention at one place of the layer axis, as codes
    map/STORE/IMAGE/NAME       packed: a named map, float32 (layer, head, y, x)
    picture/STORE/IMAGE, thumb/STORE/IMAGE      JPEG
    panels/STORE               JSON: the dataset's statistics
    offsets/STORE              packed: mean offset maps, float32 (layer, head, dy, dx)
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from ... import arguments
from ...arguments import Paths
from ...engine.store.store import Store
from ...errors import UsageError
from ...words import counted, part_of
from .. import formulas
from ..originals import folder_of
from . import columns, panels, pictures
from .packing import coded, pack
from .reading import AbsentError, MissingError, Reader

__all__ = ["MOST", "AbsentError", "Answer", "Atlas", "MissingError"]

MOST = 8  # stores side by side
JSON, PACKED, JPEG = "application/json; charset=utf-8", "application/octet-stream", "image/jpeg"
GRADIENT = {"gradient_rollout": "gradient_mean", "chefer": "gradient_positive"}
POOLS = {"pool_attention": "pool_query", "class_attention": "class_query"}  # maps of rows that are no tokens


class Answer(NamedTuple):
    """What a request is answered with."""

    kind: str
    body: bytes


class Atlas:
    """One or several stores, side by side, as the page sees them; for several threads at once.

    Pictures are those of the first store; the others' are found by path. Where only some are chosen, columns and pairs
    are cut to these, and `rows` and the rest still go by the image's index in its store.

    Attributes:
        only: the images of the first store that the page lists, or None for all.
        folder: where pictures are that a store does not keep, or None.
        levels: of the codes that attention is sent as, at most 255.
    """

    def __init__(
        self,
        stores: Paths,
        images: str | os.PathLike[str] | None = None,
        *,
        only: Sequence[int] | None = None,
        levels: int = 255,
    ) -> None:
        """Open the stores.

        Raises:
            UsageError: there is none, there are too many, or `images` is no folder.
            AttlasError: one is no store.
        """
        paths = arguments.paths(stores, "stores", "the path of a store, or a list of them")
        if not 0 < len(paths) <= MOST:
            raise UsageError(f"{counted(len(paths), 'store')}: name 1 to {MOST}")
        self.only, self.levels, self.folder = only, levels, folder_of(images)
        self.readers = [Reader(Store(path)) for path in paths]
        self._columns: dict[tuple[Reader, str, int], bytes] = {}
        self._computing = threading.Lock()

    # -- answers --------------------------------------------------------------------------------------------------

    def answer(self, path: str) -> Answer:
        """The answer to a path.

        Raises:
            AbsentError: the store does not hold it, with the reason in one line.
            MissingError: there is no such address.
            AttlasError: the store does not read.
        """
        if path == "manifest":
            return _json(self.manifest())
        for pattern, method in _ROUTES:
            if found := pattern.fullmatch(path):
                number, *rest = found.groups()
                reader = self._reader(int(number))
                return method(self, reader, *(int(part) if part.isdecimal() else unquote(part) for part in rest))
        raise MissingError("there is no such address")

    def _reader(self, number: int) -> Reader:
        if number >= len(self.readers):
            raise MissingError(f"there is no store {number}")
        return self.readers[number]

    def manifest(self) -> dict[str, Any]:
        """What the page needs before it draws anything. A store that was analysed since is opened again."""
        self.readers = [reader.fresh() for reader in self.readers]
        first = self.readers[0].store
        return {
            "format": 1, "images": first.plan.images if self.only is None else list(map(int, self.only)),
            "levels": self.levels, "stores": [self._described(reader.store) for reader in self.readers],
        }  # fmt: skip

    def _described(self, store: Store) -> dict[str, Any]:
        spec, dims = store.spec, _dims(store)
        whole = next((name for name in ("attention", "attention_code", "attention_mean") if name in dims), "")
        readout = "mean" if spec.readout == "pool" else spec.readout
        return {
            "name": store.path.name, "model": spec.name, "images": store.plan.images,
            "done": int(store.done_images.sum()),
            "grid": spec.grid, "patch": spec.patch_size, "size": spec.image_size, "prefix": spec.prefix,
            "tokens": spec.tokens, "layers": spec.layers, "depth": spec.depth,
            "heads": spec.heads, "whole": whole, "places": store.kept_layers if whole else [],
            "rows": "prefix_attention" in dims, "readout": spec.readout,
            "readout_rows": formulas.readout_rows(spec.prefix, spec.grid, readout),
            "maps": _maps(store, dims, whole), "columns": columns.listed(store, dims),
            "sample": store.plan.sample, "folder": self.folder is not None, "offsets": panels.offsets_name(store),
            "notes": _notes(store, whole, self.folder is not None),
        }  # fmt: skip

    def column(self, reader: Reader, name: str) -> Answer:
        """A column: float32, or uint32 codes into the header's texts."""
        if name not in {one["name"] for one in columns.listed(reader.store, _dims(reader.store))}:
            raise MissingError(f"there is no column {name}")
        done = int(reader.store.done_images.sum())
        with self._computing:  # two requests for one column compute it once
            data = self._columns.get((reader, name, done))
            if data is None:
                found = columns.read(reader.store, name, self._listed())
                data = pack({"texts": found[0]}, found[1]) if isinstance(found, tuple) else pack({}, found)
                self._columns[reader, name, done] = data
        return Answer(PACKED, data)

    def _listed(self) -> npt.NDArray[np.int64] | None:
        return None if self.only is None else np.asarray(self.only, np.int64)

    def pairs(self, reader: Reader) -> Answer:
        """For each picture of the page's list its index in this store, by path: int32, -1 where there is none."""
        return Answer(PACKED, pack({}, self.paired(self.readers.index(reader))))

    def paired(self, number: int) -> npt.NDArray[np.int32]:
        """The same as an array."""
        paths, own = (self.readers[n].store.read("path").astype(object) for n in (0, number))
        if self.only is not None:
            paths = paths[list(self.only)]
        known = {path: i for i, path in reversed(list(enumerate(own)))}
        return np.array([known.get(path, -1) for path in paths], np.int32)

    def facts(self, reader: Reader, image: int) -> Answer:
        """What is known of one picture: its texts, the five most probable classes, and statistics by layer and head."""
        store = reader.store
        if not 0 <= image < store.plan.images:
            raise MissingError(f"there is no image {image}; the store has {store.plan.images}")
        done, label = reader.done(image), int(store.read("label_class", image))
        found: dict[str, Any] = {
            "image": image, "path": str(store.read("path", image)), "done": done,
            "label": columns.words(store, label) or str(store.read("label", image)).replace("_", " "),
        }  # fmt: skip
        if not done:
            return _json(found | {"why": "this picture is not done yet: the run goes on, or was stopped"})
        try:
            reader.check(image)
        except MissingError as error:
            return _json(found | {"why": str(error)})
        if "logits" in store:
            logits = reader.row("logits", image).astype(np.float64)
            share = np.exp(logits - logits.max())
            share /= share.sum()
            best = np.argsort(-share, kind="stable")[:5]
            found["top"] = [[columns.words(store, int(c)), float(share[c]), bool(c == label)] for c in best]
        if "target" in store:
            found["target"] = columns.words(store, int(reader.row("target", image)))
        names = [name for name, own in _dims(store).items() if own == ("image", "layer", "head")]
        found["statistics"] = {
            name: {
                "units": str(store.array(name).attrs.get("units", "")), "values": panels.plain(reader.row(name, image))
            }
            for name in names if store.array(name).dtype.kind == "f"
        }  # fmt: skip
        return _json(found)

    def rows(self, reader: Reader, image: int, place: int) -> Answer:
        """Attention at one place of the layer axis: a header, and the arrays of `Coded` in their order."""
        spec = reader.store.spec
        if place >= len(spec.layers):
            raise MissingError(f"there is no layer at place {place}")
        reader.check(image)
        rows = reader.attention(image, place)
        found = coded(rows, len(spec.prefix), self.levels)
        header = dict(zip(("heads", "rows", "keys"), rows.shape, strict=True)) | {
            "prefix": len(spec.prefix), "signed": found.signed,
            "levels": min(self.levels, 127) if found.signed else self.levels,
        }  # fmt: skip
        return Answer(PACKED, pack(header, found.most, found.scale, found.prefix, found.codes))

    def map(self, reader: Reader, image: int, name: str) -> Answer:
        """A named map in its unit."""
        store = reader.store
        known = {one["name"] for one in _maps(store, _dims(store), "attention")}
        if name not in known:
            raise MissingError(f"the store has no map {name}")
        reader.check(image)
        values = self._map(reader, image, name).astype(np.float32)
        if not np.isfinite(values).any():
            raise AbsentError(f"{name} of this picture holds no number")
        values = values.reshape(*[1] * (4 - values.ndim), *values.shape)
        header = {
            "shape": values.shape,
            "units": str(store.array(name).attrs.get("units", "")) if name in store else "1",
        }
        return Answer(PACKED, pack(header, values))

    def _map(self, reader: Reader, image: int, name: str) -> npt.NDArray[Any]:
        store, (rows, columns_) = reader.store, reader.store.spec.grid
        if name in POOLS:
            values = reader.row(name, image).astype(np.float32)
            values = values.mean(axis=store.dims(name)[1:].index(POOLS[name]))
            on_grid: npt.NDArray[np.float32] = values[..., values.shape[-1] - rows * columns_ :]
            return on_grid.reshape(*values.shape[:-1], rows, columns_)
        if name in store:
            return np.asarray(reader.row(name, image))
        if name == "rollout":
            return reader.rollout(image)
        from ..catalog import CATALOG
        from ..statistics import gradients

        gradients.check(store, CATALOG[name])
        made: npt.NDArray[Any] = gradients.computed(store, [CATALOG[name]], slice(image, image + 1))[0][name][0]
        return np.asarray(made)

    def picture(self, reader: Reader, image: int) -> Answer:
        """The crop that the model saw."""
        reader.check(image)
        return Answer(JPEG, pictures.jpeg(pictures.crop(reader, image, self.folder)))

    def thumb(self, reader: Reader, image: int) -> Answer:
        """The same, small."""
        reader.check(image)
        return Answer(JPEG, pictures.jpeg(pictures.crop(reader, image, self.folder), pictures.EDGE, 80))

    def panels(self, reader: Reader) -> Answer:
        """The dataset's statistics over depth."""
        return _json(panels.panels(reader.store, _dims(reader.store)))

    def offsets(self, reader: Reader) -> Answer:
        """The mean offset map of every head."""
        found = panels.offsets(reader.store)
        if found is None:
            raise AbsentError("mean offset maps were not computed: `attlas analyze STORE offset_map_mean` makes them")
        return Answer(PACKED, pack({"name": found[0], "shape": found[1].shape}, np.nan_to_num(found[1])))


# A path names a store and an image by number alone, of a length that no integer type minds.
_NUMBER, _NAME = r"(\d{1,9})", r"([\w.%+-]{1,400})"
_ROUTES: tuple[tuple[re.Pattern[str], Callable[..., Answer]], ...] = tuple(
    (re.compile(pattern, re.ASCII), method)
    for pattern, method in (
        (rf"rows/{_NUMBER}/{_NUMBER}/{_NUMBER}", Atlas.rows),
        (rf"thumb/{_NUMBER}/{_NUMBER}", Atlas.thumb),
        (rf"picture/{_NUMBER}/{_NUMBER}", Atlas.picture),
        (rf"facts/{_NUMBER}/{_NUMBER}", Atlas.facts),
        (rf"map/{_NUMBER}/{_NUMBER}/{_NAME}", Atlas.map),
        (rf"column/{_NUMBER}/{_NAME}", Atlas.column),
        (rf"pairs/{_NUMBER}", Atlas.pairs),
        (rf"panels/{_NUMBER}", Atlas.panels),
        (rf"offsets/{_NUMBER}", Atlas.offsets),
    )
)


def _json(data: Any) -> Answer:
    return Answer(JSON, json.dumps(data, ensure_ascii=False, allow_nan=False).encode())


def _dims(store: Store) -> dict[str, tuple[str, ...]]:
    return {name: store.dims(name) for name in store.names}


def _maps(store: Store, dims: dict[str, tuple[str, ...]], whole: str) -> list[dict[str, str]]:
    """The maps of one picture beside attention itself: those that are stored, and those that can be made of it."""
    stored = [name for name, own in dims.items() if own[:1] == ("image",) and own[-2:] == ("y", "x")]
    stored += [name for name in POOLS if name in dims]
    every = store.kept_layers == list(range(store.spec.depth)) and bool(whole)
    made = ["rollout"] if every and store.spec.readout != "pool" else []
    if store.spec.readout != "pool" and store.kept_layers == list(range(store.spec.depth)):
        made += [
            name for name, product in GRADIENT.items() if product in dims or {"attention", "gradient"} <= set(dims)
        ]
    first = ("rollout", "chefer", "gradient_rollout")
    names = sorted({*stored, *made}, key=lambda name: (first.index(name) if name in first else 9, name))
    titles = {name: str(store.array(name).attrs.get("long_name", name)) if name in dims else name for name in names}
    return [{"name": name, "title": titles[name]} for name in names]


def _notes(store: Store, whole: str, folder: bool) -> list[str]:
    """What a reader must know of a store, and why something is not shown."""
    spec, found = store.spec, []
    done = int(store.done_images.sum())
    if spec.weights.source == "random":
        found.append("Weights are random: these maps show an untrained model.")
    if done < store.plan.images:
        found.append(f"{part_of(done, store.plan.images, 'image')} done, which is no random sample; reload for more.")
    if whole == "attention_code":
        found.append("Attention is stored as uint8 codes: maps are approximate, and masks by mass are not offered.")
    if whole == "attention_mean":
        found.append("Only the mean over heads was kept: there is one map a layer.")
    if not whole:
        found.append(
            "Attention of patches was not kept (--keep none): only the prefix tokens' rows and stored maps are shown."
            if spec.prefix else
            "Attention was not kept (--keep none), and there is no prefix token: only stored maps are shown."
        )  # fmt: skip
    elif len(store.kept_layers) < len(spec.layers):
        layers = ", ".join(str(spec.layers[place]) for place in store.kept_layers)
        found.append(f"Attention was kept of layers {layers}; of the others only the prefix tokens' rows.")
    if spec.attention_kind == "mixed":
        found.append("Heads are mixed after the softmax: rows are no distributions, and negative entries draw as 0.")
    if not folder and len(store.plan.sample) < store.plan.images:
        found.append(
            f"The store keeps {counted(len(store.plan.sample), 'picture')} of {store.plan.images:,}; the others show "
            "their rollout alone, unless `attlas view --images DIR` names the run's folder."
        )
    return found

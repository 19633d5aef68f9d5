"""Cases for a runtime that attlas does not drive: inputs with expected outputs in one .npz, what came back in another.

An .npz is a zip of numpy's arrays, one a name. Both files are read and written by rows, so that memory does not grow
with the number of pictures, and without pickle.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ...errors import AttlasError, UsageError, one_line
from ...exporter.spec import FORMAT, GraphSpec
from ...files import appearing, from_json
from ...progress import Show, shows
from ..again import differing
from ..runtime.graph import HEADS, TARGET, read_spec
from ..sources.files import expanded
from .inputs import Batch, Computed, pictures_of
from .measures import MAPS, Interval, has_maps

__all__ = ["META", "Cases", "Results", "is_cases", "write_cases"]

META = "attlas"
BATCH = 8
READ_OUT = ("logits", "features")


def is_cases(images: object) -> bool:
    """Whether IMAGES is the name of a file of cases."""
    return isinstance(images, str | os.PathLike) and os.fspath(images).endswith(".npz")


class Archive:
    """The arrays of an .npz, read by rows in order."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open it and read the shapes.

        Raises:
            AttlasError: there is no such file, it is no .npz, or it holds Python objects.
        """
        self.path = Path(path)
        if not self.path.is_file():
            what = "is a folder, not an .npz" if self.path.is_dir() else "there is no such file"
            raise AttlasError(f"{self.path}: {what}")
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, np.dtype[Any]] = {}
        self._open: dict[str, IO[bytes]] = {}
        with self._reading():
            self._zip = zipfile.ZipFile(self.path)
            for member in self._zip.namelist():
                if member.endswith(".npy"):
                    name = member.removesuffix(".npy")
                    self.shapes[name], fortran, self.dtypes[name], self._open[name] = self._header(member)
                    if self.dtypes[name].hasobject:
                        raise AttlasError(f"{self.path}: {name} holds Python objects, which are never loaded")
                    if fortran and len(self.shapes[name]) > 1:
                        raise AttlasError(
                            f"{self.path}: {name} lies in Fortran's order; save numpy.ascontiguousarray of it"
                        )

    def _header(self, member: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], IO[bytes]]:
        stream = self._zip.open(member)
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            return (*np.lib.format.read_array_header_1_0(stream), stream)
        if version == (2, 0):
            return (*np.lib.format.read_array_header_2_0(stream), stream)
        raise ValueError(f"{member} is of a later version")

    def rows(self, name: str, count: int) -> npt.NDArray[Any]:
        """The next `count` rows of an array."""
        shape, dtype = (count, *self.shapes[name][1:]), self.dtypes[name]
        size = math.prod(shape) * dtype.itemsize
        with self._reading():
            data = self._open[name].read(size)
            if len(data) < size:
                raise EOFError(f"{name} is cut off")
        return np.frombuffer(data, dtype).reshape(shape)

    def text(self, name: str) -> str:
        """An array of one text; "" if there is none."""
        if name not in self.shapes or self.dtypes[name].kind != "U" or self.shapes[name] != ():
            return ""
        with self._reading():
            return str(np.frombuffer(self._open[name].read(self.dtypes[name].itemsize), self.dtypes[name])[0])

    def _reading(self) -> Any:
        return _Reading(self.path)


class _Reading:
    """Says in one line that an archive does not read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, NotImplementedError)):
            raise AttlasError(f"{self._path}: is no .npz that can be read ({one_line(error, 150)})") from None


class Cases:
    """Expected is what a file of `write_cases` holds."""

    hidden = 0.0

    def __init__(self, path: str | os.PathLike[str], graph: Path, spec: GraphSpec) -> None:
        """Open it and check it against the graph.

        Raises:
            AttlasError: it does not read, is no file of cases, or is of another graph.
        """
        self._archive = Archive(path)
        try:
            said = from_json(self._archive.text(META))
        except ValueError:
            said = None
        if not (isinstance(said, dict) and isinstance(said.get("spec"), dict) and "image" in self._archive.shapes):
            raise AttlasError(f"{path}: holds no cases; `attlas conform {graph} --export {path}` writes some")
        if not isinstance(said.get("format"), int) or said["format"] > FORMAT:
            raise AttlasError(f"{path}: is of a newer format; install a newer attlas")
        of = GraphSpec.from_dict(said["spec"], str(path))
        differ = differing(of, spec) + (["dtype"] if of.dtype != spec.dtype else [])
        if differ:
            raise AttlasError(
                f"{path}: its cases are of another graph ({', '.join(differ)} differ); "
                f"`attlas conform {graph} --export {path}` writes those of this one"
            )
        pictures = said.get("pictures")
        self.names = [str(name) for name in pictures] if isinstance(pictures, list) else []
        self.count = len(self.names)
        self.dtype: str = of.dtype
        self.words = f"{path}, {said.get('by', 'unknown')}"
        known = {output.name for output in spec.outputs}
        self.shapes = {name: shape[1:] for name, shape in self._archive.shapes.items() if name in known}
        self.outputs = frozenset(self.shapes)
        self._check(graph, spec)

    def _check(self, graph: Path, spec: GraphSpec) -> None:
        right: dict[str, tuple[int, ...]] = {"image": (*spec.image_size, 3)}
        right |= {o.name: tuple(n or 0 for n in o.shape[1:]) for o in spec.outputs}
        right |= {TARGET: ()} if spec.gradients else {}
        kinds = {"image": np.dtype(np.uint8), TARGET: np.dtype(np.int64)}
        shapes, dtypes = self._archive.shapes, self._archive.dtypes
        wrong = [n for n, shape in shapes.items() if n in right
                 and (shape != (self.count, *right[n]) or dtypes[n] != kinds.get(n, np.dtype(np.float32)))]  # fmt: skip
        if wrong or not self.count or not has_maps(self.outputs):
            what = "holds no attention" if self.count else "names no pictures"
            what = f"{wrong[0]} has the shape {shapes[wrong[0]]}, {dtypes[wrong[0]]}" if wrong and self.count else what
            raise AttlasError(f"{self._archive.path}: {what}; `attlas conform {graph} --export` writes it again")

    def batches(self, size: int) -> Iterator[Batch]:
        """See `inputs.Expected`."""
        for start in range(0, self.count, size):
            count = min(size, self.count - start)
            pixels = self._archive.rows("image", count)
            target = self._archive.rows(TARGET, count) if TARGET in self._archive.shapes else np.full(count, -1)
            expected: dict[str, Interval] = {}
            for name in self.outputs:
                values = self._archive.rows(name, count)
                if not np.isfinite(values).all():
                    raise AttlasError(f"{self._archive.path}: expects values of {name} that are no numbers")
                expected[name] = values, values
            yield Batch(self.names[start : start + count], pixels, target, expected)


class Results:
    """What a runtime gave for cases: an array for each output, under the output's name.

    Attributes:
        outputs: the names of the outputs that it holds, of those that were expected.
        left_out: the names of those that it lacks; never maps of attention, logits or features.
    """

    def __init__(self, path: str | os.PathLike[str], cases: Cases) -> None:
        """Open it and check it against the cases.

        Raises:
            AttlasError: it does not read, lacks an output, or has one of another shape or dtype.
        """
        self._archive = Archive(path)
        self.path = self._archive.path
        shapes, dtypes = self._archive.shapes, self._archive.dtypes
        if META in shapes:
            raise AttlasError(f"{path}: holds cases, not results; save what the runtime gave for them, and only that")
        lacking = sorted(cases.outputs - shapes.keys())
        needed = [name for name in lacking if name in READ_OUT or name.partition(".")[0] in MAPS]
        if needed:
            holds = ", ".join(shapes) or "nothing"
            raise AttlasError(
                f"{path}: lacks {_some(needed)}; it holds {_some(list(shapes)) if shapes else holds}: save each output "
                "under its name in the graph"
            )
        for name in cases.outputs & shapes.keys():
            promised = (cases.count, *cases.shapes[name])
            if shapes[name] != promised or dtypes[name].kind != "f":
                raise AttlasError(
                    f"{path}: {name} has the shape {shapes[name]}, {dtypes[name]}; the cases expect {promised}, float32"
                )
        self.outputs, self.left_out = cases.outputs & shapes.keys(), tuple(lacking)

    def __call__(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        """The outputs of the next pictures, in the order of the cases."""
        return {name: self._archive.rows(name, len(batch.names)) for name in self.outputs}


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@shows("pictures", "conform --export")
def write_cases(
    graph: str | os.PathLike[str],
    output: str | os.PathLike[str],
    images: Any = None,
    *,
    limit: int = 16,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Show[[int, int]] = None,
) -> int:
    """Write inputs of a graph and what onnxruntime gives for them on the processor; docs/conform.md has the format.

    Args:
        graph: an ONNX file from `attlas export`.
        output: the file, NAME.npz.
        images: as for `conform`.
        limit: take this many pictures.
        threads: threads within one operator; all cores by default.
        overwrite: replace an existing file.
        progress: True shows a bar; a function is called with the pictures done and their number.

    Returns:
        The number of pictures.

    Raises:
        AttlasError: a picture or the graph cannot be read, or the file cannot be written.
        UsageError: the file exists, or is not called .npz.
    """
    graph = Path(expanded(graph, "graph", "the path of an ONNX file"))
    path = Path(expanded(output, "output", "the path of the file to write, NAME.npz"))
    if path.suffix != ".npz":
        raise UsageError(f"{path}: cases are one .npz; name it so")
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file")
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: exists; --overwrite replaces it")
    if is_cases(images):
        raise UsageError(f"{images}: holds cases already; name pictures, or leave IMAGES out to have some made")
    spec = read_spec(graph)
    if not has_maps(o.name for o in spec.outputs):
        raise AttlasError(f"{graph}: has no attention outputs to compare; export it with `attlas export`")
    expected = Computed(graph, spec, pictures_of(spec, images, limit), threads)
    try:
        with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=f".{path.stem}.") as folder:
            names, files = _fill(Path(folder), expected, spec, progress if callable(progress) else None)
            files += _heads(Path(folder), spec)
            about = {"format": FORMAT, "by": expected.words, "pictures": names}
            about["spec"] = {**spec.to_dict(), "versions": {}}
            np.save(Path(folder) / "meta.npy", np.array(json.dumps(about, ensure_ascii=False)))
            with appearing(path) as draft:
                _pack(draft, [(META, Path(folder) / "meta.npy"), *files])
    except OSError as error:
        raise AttlasError(f"{path}: cannot be written ({error.strerror or error})") from None
    return expected.count


def _fill(
    folder: Path, expected: Computed, spec: GraphSpec, progress: Callable[[int, int], None] | None
) -> tuple[list[str], list[tuple[str, Path]]]:
    """Write each array into a file of its own, batch by batch; returns the pictures' names, and (array, file)."""
    wanted: dict[str, tuple[tuple[int, ...], str]] = {"image": ((*spec.image_size, 3), "uint8")}
    if spec.gradients:
        wanted[TARGET] = (), "int64"
    for output in spec.outputs:
        if output.name in expected.outputs:
            wanted[output.name] = tuple(n for n in output.shape if n is not None), "float32"
    files = [(name, folder / f"{i}.npy") for i, name in enumerate(wanted)]
    names: list[str] = []
    with contextlib.ExitStack() as stack:
        # Not mapped into memory: their pages would count as this process's.
        streams = {name: stack.enter_context(file.open("wb")) for name, file in files}
        for name, (shape, dtype) in wanted.items():
            about = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (expected.count, *shape)}
            np.lib.format.write_array_header_1_0(streams[name], about)
        for batch in expected.batches(BATCH):
            given: dict[str, npt.NDArray[Any]] = {"image": batch.pixels, TARGET: batch.target}
            given |= {name: low for name, (low, _) in batch.expected.items()}
            for name, stream in streams.items():
                stream.write(given[name].astype(wanted[name][1], copy=False).tobytes())
            names += batch.names
            if progress is not None:
                progress(len(names), expected.count)
    return names, files


def _heads(folder: Path, spec: GraphSpec) -> list[tuple[str, Path]]:
    """The inputs that silence heads, which keep all of them, if the graph has any: (input, file)."""
    written = next((o for o in spec.outputs if o.name.startswith("head_output.")), None)
    if not spec.ablate or written is None:
        return []
    head, channel = (n or 0 for n in written.shape[1:])
    shapes = {"head_mask": (spec.depth, head), "head_fill": (spec.depth, head, channel)}
    for name, shape in shapes.items():
        np.save(folder / f"{name}.npy", np.full(shape, HEADS[name], np.float32))
    return [(name, folder / f"{name}.npy") for name in shapes]


def _pack(path: Path, files: Iterable[tuple[str, Path]]) -> None:
    """An .npz of numpy's files, not compressed and without times, so that the same cases are the same bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, file in files:
            info = zipfile.ZipInfo(f"{name}.npy")
            with file.open("rb") as source, archive.open(info, "w", force_zip64=file.stat().st_size > 2**31) as target:
                shutil.copyfileobj(source, target, 1 << 20)

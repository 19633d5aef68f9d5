"""Datasets as people have them: every source gives the same store, and says clearly what is wrong with it."""

import csv
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import pytest
from attlas.engine import Store
from attlas.engine import runner as engine
from attlas.engine.sources import BaseSource, Folder, Manifest, Shards, open_source
from attlas.engine.sources.columns import Columns, guessed
from attlas.engine.sources.files import expand
from attlas.engine.sources.items import HIDDEN, Item, Items, repeated, text
from attlas.engine.sources.tarfiles import BrokenError, members
from attlas.engine.unit import Unit
from attlas.errors import AttlasError, UsageError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support import chunk_files, make_images

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
fsspec = pytest.importorskip("fsspec")

Row = tuple[str, str, bytes]  # key, label, encoded image


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 13 pictures in four class folders."""
    return make_images(tmp_path_factory.mktemp("few"), 13)


@pytest.fixture(scope="module")
def rows(few: Path) -> list[Row]:
    """Key, label and bytes of its pictures, in order."""
    source = Folder.scan(few)
    return [(item.key, item.label, source.read(item)) for item in source.items]


@pytest.fixture
def memory() -> Iterator[Any]:
    """The file system that lies in memory, empty."""
    found = fsspec.filesystem("memory")
    found.store.clear()
    found.pseudo_dirs[:] = [""]
    yield found
    found.store.clear()


def run(graph: Path, images: Any, store: Path, **choices: Any) -> Store:
    return Store(engine.run(graph, images, store, **choices).path)


def write_tar(path: Path, files: Sequence[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_700_000_000
            archive.addfile(info, io.BytesIO(data))
    return path


def web(rows: Sequence[Row], **more: Mapping[str, Any]) -> list[tuple[str, bytes]]:
    """The members of a WebDataset: numbered samples with a label beside each image."""
    found = []
    for i, (key, label, data) in enumerate(rows):
        found += [(f"{i:06d}{Path(key).suffix}", data), (f"{i:06d}.cls", label.encode())]
    return found


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def huggingface(rows: Sequence[Row], path: Path, **options: Any) -> Path:
    """As `datasets` writes images: a struct of bytes and path, labels as numbers named in the metadata."""
    names = sorted({label for _, label, _ in rows})
    table = pa.table(
        {
            "image": pa.array([{"bytes": data, "path": key} for key, _, data in rows]),
            "label": pa.array([names.index(label) for _, label, _ in rows], pa.int64()),
        }
    )
    meta = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(meta)}), path, **options)
    return path


def kinds(few: Path, rows: Sequence[Row], place: Path) -> dict[str, Any]:
    """The same images in every form."""
    place.mkdir(exist_ok=True)
    table = [{"path": f"{few}/{key}", "label": label} for key, label, _ in rows]
    (place / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    pq.write_table(pa.Table.from_pylist(table), place / "list.parquet")
    write_tar(place / "tree.tar", [(key, data) for key, _, data in rows])
    for n in range(3):
        part = rows[n * 5 : n * 5 + 5]
        write_tar(place / f"shard-{n:04d}.tar", web(part))
        (place / "tables").mkdir(exist_ok=True)
        huggingface(part, place / "tables" / f"part-{n}-of-3.parquet", row_group_size=3)
    plain = {"jpg": [d for _, _, d in rows], "label": [n for _, n, _ in rows]}
    pq.write_table(pa.table(plain), place / "plain.parquet")
    return {
        "csv": write_csv(place / "list.csv", table),
        "json lines": place / "list.jsonl",
        "parquet manifest": place / "list.parquet",
        "tar": place / "tree.tar",
        "webdataset": str(place / "shard-{0000..0002}.tar"),
        "hugging face": place / "tables",
        "binary column": place / "plain.parquet",
    }


def comparable(store: Store) -> dict[str, bytes]:
    """The chunk files but for keys, and what the source knew of files."""
    own = ("path/", "run/size/", "run/mtime_ns/")
    return {name: data for name, data in chunk_files(store.path).items() if not name.startswith(own)}


def test_every_source_of_the_same_images_gives_the_same_chunks(
    tiny_graph: Path, few: Path, rows: list[Row], tmp_path: Path
) -> None:
    """Folder, manifests, tar, WebDataset and Parquet differ in keys alone."""
    expected = comparable(run(tiny_graph, few, tmp_path / "folder.zarr"))
    assert any(name.startswith("attention/") for name in expected)
    for kind, images in kinds(few, rows, tmp_path / "data").items():
        store = run(tiny_graph, images, tmp_path / f"{kind}.zarr")
        assert comparable(store) == expected, kind
        assert not any(str(tmp_path) in path or path.startswith("/") for path in store.read("path")), kind


def test_every_source_on_fsspec_gives_the_same_chunks(
    tiny_graph: Path, few: Path, rows: list[Row], tmp_path: Path, memory: Any
) -> None:
    """A URL is read as a file is."""
    expected = comparable(run(tiny_graph, few, tmp_path / "folder.zarr"))
    data = tmp_path / "data"
    kinds(few, rows, data)
    write_csv(data / "beside.csv", [{"path": f"few/{key}", "label": label} for key, label, _ in rows])
    memory.put(f"{data}/", "/data/", recursive=True)
    memory.put(f"{few}/", "/data/few/", recursive=True)
    places = ("few", "beside.csv", "tree.tar", "shard-{0000..0002}.tar", "shard-*.tar", "tables", "plain.parquet")
    for n, place in enumerate(places):
        store = run(tiny_graph, f"memory://data/{place}", tmp_path / f"{n}.zarr")
        assert comparable(store) == expected, place
    assert comparable(run(tiny_graph, f"file://{few}", tmp_path / "file.zarr")) == expected


def test_a_url_in_a_manifest_is_read_and_its_bucket_not_stored(rows: list[Row], tmp_path: Path, memory: Any) -> None:
    """Keys follow the folder that all share."""
    for key, _, data in rows:
        memory.pipe(f"/bucket/images/{key}", data)
    table = [{"path": f"memory://bucket/images/{key}"} for key, _, _ in rows]
    source = open_source(write_csv(tmp_path / "list.csv", table))
    assert [i.key for i in source.items] == [key for key, _, _ in rows]
    assert [source.read(i) for i in source.items] == [data for _, _, data in rows]


def test_a_run_resumes_from_every_source(tiny_graph: Path, few: Path, rows: list[Row], tmp_path: Path) -> None:
    """What a second process lists is what the plan was made from."""
    for kind, images in kinds(few, rows, tmp_path / "data").items():
        run(tiny_graph, images, tmp_path / f"{kind}.zarr", shard=(1, 2))
        result = engine.run(tiny_graph, images, tmp_path / f"{kind}.zarr")
        assert result.finished, kind
        assert 0 < result.done < len(rows), kind


def test_sources_travel_between_processes(few: Path, rows: list[Row], tmp_path: Path) -> None:
    """A worker gets one pickled, and reads from it."""
    for kind, images in kinds(few, rows, tmp_path / "data").items():
        source = open_source(images)
        source.read(source.items[4])
        copy = pickle.loads(pickle.dumps(source))
        assert copy.read(copy.items[7]) == rows[7][2], kind


@dataclass(frozen=True)
class Painted(BaseSource):
    """A source as somebody else writes one: a colour for each label, and by chance as many colours as images."""

    items: Sequence[Item]
    palette: np.ndarray[Any, Any]
    name: str = "painted"

    def read(self, item: Item) -> bytes:
        out = io.BytesIO()
        Image.new("RGB", (8, 8), tuple(self.palette[int(item.label)].tolist())).save(out, "PNG")
        return out.getvalue()


def test_a_source_of_somebody_else_travels_whole(tiny_graph: Path, tmp_path: Path) -> None:
    """None of its tables is cut, whatever their length; each item is read as from the whole."""
    items = [Item(f"{n}.png", str(11 - n)) for n in range(12)]
    source = Painted(items, np.arange(36, dtype=np.uint8).reshape(12, 3))
    for places in ([7, 9], [11, 0, 4]):
        share = Unit(0, Items.of(items).take(places), source).alone()
        part = pickle.loads(pickle.dumps(share.source))
        assert [i.key for i in part.items] == [items[n].key for n in places]
        assert [part.read(i) for i in share.items] == [source.read(items[n]) for n in places]
        assert (part.name, part.reads_ahead, dict(part.others)) == ("painted", 0, {})
    store = run(tiny_graph, source, tmp_path / "s.zarr")
    np.testing.assert_array_equal(store.read("pixels")[:, 0, 0], source.palette[::-1])


def test_what_is_no_source_is_refused(tiny_graph: Path, tmp_path: Path) -> None:
    """It says what is missing, and what has it."""
    for images, missing in ((["a.jpg"], "name, items, read"), (None, "name, items"), (object(), "name")):
        with pytest.raises(UsageError, match=rf"{type(images).__name__} is no path, .* has no {missing}.*BaseSource"):
            run(tiny_graph, images, tmp_path / "s.zarr")


# -- items and columns -------------------------------------------------------------------------------------------------

names = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=20)


@given(st.lists(st.tuples(names, names), max_size=40), st.data())
def test_items_are_a_list(pairs: list[tuple[str, str]], data: st.DataObject) -> None:
    """Columns behave as the list of items that they stand for."""
    items = Items.make([k for k, _ in pairs], [n for _, n in pairs], sizes=range(len(pairs)))
    plain = [Item(k, n, i, -1, i) for i, (k, n) in enumerate(pairs)]
    assert list(items) == plain
    assert list(Items.of(plain)) == plain
    chosen = data.draw(st.lists(st.integers(0, len(pairs) - 1), max_size=9) if pairs else st.just([]))
    assert list(items.take(chosen)) == [plain[i] for i in chosen]
    assert list(items[1::2]) == plain[1::2]


@given(st.lists(names, max_size=60))
def test_a_repeated_key_is_found(keys: list[str]) -> None:
    """Exactly where there is one."""
    found = repeated(text(keys))
    assert (found is None) == (len(set(keys)) == len(keys))
    if found is not None:
        first, second = found
        assert first < second
        assert keys[first] == keys[second]


scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | names


@given(st.lists(st.dictionaries(st.sampled_from("abc"), scalars), max_size=30), st.integers(0, 30), st.integers(1, 7))
def test_columns_give_back_what_was_put_in(rows: list[dict[str, Any]], cut: int, block: int) -> None:
    """Numbers as numbers, the rest as text; missing is NaN or "", wherever blocks and parts begin."""
    from attlas.engine.sources import columns as module

    before, module.BLOCK = module.BLOCK, block
    try:
        parts = Columns(), Columns()
        for i, row in enumerate(rows):
            parts[i >= cut].add(row)
        parts[0].extend(parts[1])
        found = parts[0].arrays()
    finally:
        module.BLOCK = before
    assert found.keys() == {name for row in rows for name, value in row.items() if value is not None}
    for name, values in found.items():
        given_values = [row.get(name) for row in rows]
        for value, got in zip(given_values, values.tolist(), strict=True):
            if values.dtype.kind == "T":
                assert got == ("" if value is None else value if isinstance(value, str) else json.dumps(value))
            elif value is None:
                assert np.isnan(got)
            else:
                assert got == value or (np.isnan(got) and np.isnan(value))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (["1", "-2"], [1, -2]),
        (["1", ""], [1.0, float("nan")]),
        (["0.5", "1e-3", "nan"], [0.5, 1e-3, float("nan")]),
        (["true", "false"], [True, False]),
        (["True", "False"], [True, False]),
        (["FALSE", "TRUE"], [False, True]),
        (["True", ""], ["True", ""]),
        (["True", "no"], ["True", "no"]),
        (["007", "8"], ["007", "8"]),
        (["1_0", "2"], ["1_0", "2"]),
        (["9007199254740993", ""], ["9007199254740993", ""]),
        (["123456789012345678901", "1"], ["123456789012345678901", "1"]),
        (["a", "1"], ["a", "1"]),
        (["", ""], ["", ""]),
    ],
)
def test_a_table_s_text_becomes_numbers_where_nothing_is_lost(fields: list[str], expected: list[Any]) -> None:
    """Codes with leading zeros and long numbers stay as they are written."""
    np.testing.assert_array_equal(guessed(text(fields)), text(expected) if isinstance(expected[0], str) else expected)


def test_a_manifest_s_columns_are_coordinates_of_the_store(tiny_graph: Path, few: Path, tmp_path: Path) -> None:
    """Along image, under their own names, in xarray, and left alone by what follows."""
    keys = [item.key for item in Folder.scan(few).items]
    table = [
        {"path": f"{few}/{key}", "score": i / 4, "patient": f"p{i:03d}", "visit": i, "left": "true"}
        for i, key in enumerate(keys)
    ]
    manifest = write_csv(tmp_path / "list.csv", table)
    result = attlas.run(tiny_graph, manifest, tmp_path / "s.zarr", limit=5)
    ds = attlas.open(result.path)
    chosen = [keys.index(path) for path in ds.path.values]
    assert chosen == sorted(chosen)
    np.testing.assert_array_equal(ds.coords["score"], [i / 4 for i in chosen])
    assert list(ds.coords["patient"].values) == [f"p{i:03d}" for i in chosen]
    assert ds.visit.dtype == np.int64
    assert ds.left.dtype == bool
    attlas.analyze(result.path)
    assert not attlas.verify(result.path).faults
    assert ds.rollout.groupby("visit").mean().sizes["visit"] == 5


def test_a_column_whose_name_is_taken_is_kept_under_another(tiny_graph: Path, few: Path, tmp_path: Path) -> None:
    """An array's, a dimension's or a coming statistic's name, and what is no name at all; the values stay."""
    expected = {
        "height": "column_height", "attention": "column_attention", "key": "column_key", "y": "column_y",
        "rollout": "column_rollout", "quantile": "column_quantile", "bound": "column_bound",
        "distance_mean": "column_distance_mean", "self_mass": "column_self_mass", "label_group": "label_group_column",
        "distance_mean_by_x": "column_distance_mean_by_x", "predicted": "column_predicted",
        "zarr.json": "column_zarr.json", "Patient ID": "Patient_ID", "a/b": "a_b", ".c": "c", "a b": "column_a_b",
        "Unnamed: 0": "Unnamed_0", "__index_level_0__": "index_level_0", "age": "age", "column_height": "",
        "...": "unnamed", "Größe (cm)": "Größe_cm",
    }  # fmt: skip
    expected |= {"height": "height_column", "column_height": "column_height"}  # what has its name keeps it
    key = next(iter(Folder.scan(few).items)).key
    row = {"path": f"{few}/{key}"} | {column: str(i) for i, column in enumerate(expected)}
    result = attlas.run(tiny_graph, write_csv(tmp_path / "list.csv", [row]), tmp_path / "s.zarr")
    store = Store(result.path)
    assert store.attrs["columns"] == list(expected.values())
    assert [int(store.read(name)[0]) for name in expected.values()] == list(range(len(expected)))
    assert result.notes == (
        "columns kept under another name: 'height' as height_column, 'attention' as column_attention, 'key' as "
        "column_key, 'y' as column_y, 'rollout' as column_rollout and 16 more",
    )
    attlas.analyze(store.path, by="predicted")
    attlas.analyze(store.path, ["self_mass"])
    assert list(attlas.open(store.path).predicted_group.values) == [store.read("logits")[0].argmax()]
    assert not attlas.verify(store.path).faults


def test_every_name_of_an_analysis_is_reserved(tiny_graph: Path, few: Path, tmp_path: Path) -> None:
    """What `analyze` writes, whole and by group, and every dimension of it."""
    from attlas.analysis.catalog import CATALOG, FUSED, reserved

    path = attlas.run(tiny_graph, few, tmp_path / "s.zarr").path
    before = {name for name in Store(path).names if name not in FUSED}
    names = [name for name, one in CATALOG.items() if not one.needs]
    attlas.analyze(path, [*names, *FUSED])
    attlas.analyze(path, by="label")
    store = Store(path)
    made = set(store.names) - before
    dims = {dim for name in made for dim in store.dims(name)} - {d for name in before for d in store.dims(name)}
    assert not [name for name in made | dims if not reserved(name)]
    assert {"distance_mean", "distance_mean_by_label", "label_group", "other_head"} <= made | dims
    assert not [name for name in ("age", "patient", "score", "mean", "distance_km", "class_mean") if reserved(name)]


# -- manifests ---------------------------------------------------------------------------------------------------------


def test_a_manifest_s_paths_are_its_folder_s(few: Path, rows: list[Row], tmp_path: Path) -> None:
    """Keys are as written, and are found wherever the process stands."""
    for key, _, data in rows[:3]:
        (tmp_path / key).parent.mkdir(exist_ok=True)
        (tmp_path / key).write_bytes(data)
    source = open_source(
        write_csv(tmp_path / "list.csv", [{"path": f"./{key}", "label": "x"} for key, _, _ in rows[:3]])
    )
    assert [(i.key, i.label) for i in source.items] == [(key, "x") for key, _, _ in rows[:3]]
    assert [source.read(i) for i in source.items] == [data for _, _, data in rows[:3]]
    (tmp_path / "lists").mkdir()
    source = open_source(write_csv(tmp_path / "lists" / "up.csv", [{"path": f"../{key}"} for key, _, _ in rows[:3]]))
    assert [i.key for i in source.items] == [Path(key).name for key, _, _ in rows[:3]]
    assert source.read(source.items[2]) == rows[2][2]


def test_a_table_as_spreadsheets_and_pandas_leave_it(few: Path, rows: list[Row], tmp_path: Path) -> None:
    """Spaces around names, a blank one, rows of commas, and quoted line breaks."""
    lines = [
        ", path ,label , a note",
        f'0,{few}/{rows[0][0]},x,"two\nlines"',
        ",,,",
        f"1,{few}/{rows[1][0]},y,",
        ",,,",
        "",
    ]
    (tmp_path / "l.csv").write_bytes("\ufeff".encode() + "\r\n".join(lines).encode())
    source = open_source(tmp_path / "l.csv")
    assert [(i.key, i.label) for i in source.items] == [
        (Path(key).name, label) for (key, _, _), label in zip(rows[:2], "xy", strict=True)
    ]
    assert {name: list(values) for name, values in source.items.columns.items()} == {
        "Unnamed: 0": [0, 1], "a note": ["two\nlines", ""],
    }  # fmt: skip


def test_absent_files_cost_their_images(tiny_graph: Path, few: Path, tmp_path: Path) -> None:
    """They are in `error`, every other row is as without them."""
    keys = [item.key for item in Folder.scan(few).items]
    table = [{"path": f"{few}/{key}"} for key in [*keys[:4], "n00000000/gone.jpg", *keys[4:]]]
    store = run(tiny_graph, write_csv(tmp_path / "list.csv", table), tmp_path / "s.zarr")
    assert [i for i, why in enumerate(store.read("error")) if why] == [4]
    assert store.read("error")[4] == "there is no such file"
    whole = run(tiny_graph, few, tmp_path / "whole.zarr")
    np.testing.assert_array_equal(np.delete(store.read("attention"), 4, axis=0), whole.read("attention"))


def test_a_manifest_whose_folder_is_gone_ends_the_run(few: Path, rows: list[Row], tmp_path: Path) -> None:
    """A network folder that fell off is no list of absent images."""
    place = make_images(tmp_path / "images", 3)
    source = open_source(write_csv(tmp_path / "list.csv", [{"path": f"{i.key}"} for i in Folder.scan(tmp_path).items]))
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}.away"))
    with pytest.raises(OSError, match="No such file"):
        source.read(source.items[0])
    moved.rename(tmp_path)
    assert source.read(source.items[0]) == next(place.rglob("*.png")).read_bytes()


BAD_TABLES = [
    ("l.csv", b"file,label\na.jpg,x\n", "which names the files; found file, label; rename 'file' if it does"),
    ("l.csv", b"path,label\na.jpg,x\n,\n\n,\nb.jpg\n", "line 6 has 1 fields, the header 2"),
    ("l.csv", b"path\na\\b.jpg\n", "own folder, and written with /"),
    ("l.csv", b"path;label\na.jpg;x\n", "its fields are separated by ';': save it with commas"),
    ("l.csv", "path,label\na.jpg,x\n".encode("utf-16"), "line 1 is no UTF-8 text; save the file as UTF-8"),
    ("l.csv", b"", "has no column path, which names the files; found no column"),
    ("l.csv", b"path\n", "names no image"),
    ("l.csv", b"path,label\na.jpg,x\nb.jpg\n", "line 3 has 1 fields, the header 2"),
    ("l.csv", b'path\n"a.jpg\n', "line 2 does not read"),
    ("l.csv", b"path\na.jpg\n\xff.jpg\n", "line 3 is no UTF-8 text"),
    ("l.csv", b"path,label\na.jpg,x\n,y\n", "line 3 has an empty path"),
    ("l.csv", b"path,path\na.jpg,x\n", "two columns of the name 'path'"),
    ("l.csv", b"path\na.jpg\nb.jpg\n./a.jpg\n", "line 4 names a.jpg again, which line 2 has"),
    ("l.csv", b"path\nhttps://host/a.jpg?token=1\n", "line 2 names a URL with a query or a password"),
    ("l.csv", b"path\ns3://a/x.jpg\n/b/y.jpg\n", "share no folder or bucket"),
    ("l.csv", b"path\n/nowhere/x.jpg\ny.jpg\n", "share no folder or bucket"),
    ("l.tsv", b"path\tx\na.jpg\t1\n", "none of 1 files that were looked for is there"),
    ("l.jsonl", b'{"path": "a.jpg"}\n{"path": \n', "line 2 is no JSON"),
    ("l.jsonl", b"[1]\n", "line 1 is no JSON object"),
    ("l.jsonl", b'{"path": "a.jpg"}\n\n{"path": 3}\n', "line 3 has a path that is no text"),
    ("l.jsonl", b'{"path": "a.jpg"}\n{"label": 3}\n', "line 2 has an empty path"),
    ("l.json", b'{"file": "a.jpg"}\n', "has no column path, which names the files; found file"),
    ("l.parquet", b"PAR1 nothing", "does not read as Parquet"),
]


@pytest.mark.parametrize(("name", "data", "message"), BAD_TABLES)
def test_a_bad_manifest_says_which_line(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    """One line: which file, where in it, what was found."""
    (tmp_path / name).write_bytes(data)
    with pytest.raises(AttlasError, match=r"^[^\n]*$") as caught:
        open_source(tmp_path / name)
    assert message in str(caught.value)
    assert name in str(caught.value)


# -- tar ---------------------------------------------------------------------------------------------------------------

tree = st.lists(
    st.tuples(st.lists(names.filter(lambda n: n.strip(".")), min_size=1, max_size=9), st.binary(max_size=1500)),
    unique_by=lambda entry: tuple(entry[0]),
    max_size=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(tree, st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]), st.floats(0, 2**33))
def test_tar_headers_are_read_as_python_s_tarfile_does(entries: Any, form: int, time: float) -> None:
    """Names long and foreign, sizes, places and times, in all three formats."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for parts, data in entries:
            info = tarfile.TarInfo("/".join(parts))
            info.size, info.mtime = len(data), time if form == tarfile.PAX_FORMAT else int(time)
            try:
                archive.addfile(info, io.BytesIO(data))
            except ValueError:  # too long for ustar
                continue
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        expected = [(i.name, i.offset_data, i.size, i.mtime) for i in archive]
    found = list(members(io.BytesIO(out.getvalue()), len(out.getvalue())))
    assert [(m.name, m.offset, m.size) for m in found] == [e[:3] for e in expected]
    assert [m.mtime_ns / 1e9 for m in found] == pytest.approx([e[3] for e in expected], abs=1e-6)


@given(st.binary(min_size=1, max_size=3000).filter(any))
def test_bytes_of_anything_else_are_refused(data: bytes) -> None:
    """Nothing else is raised."""
    with pytest.raises(BrokenError, match=r"is no tar archive|is compressed|ends"):
        list(members(io.BytesIO(data), len(data)))


@given(st.integers(0, 10_239), st.integers(0, 255))
def test_a_flipped_byte_never_moves_a_member_unseen(place: int, value: int) -> None:
    """Headers have a checksum: with one byte changed, what is still listed lies where it lay."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("a.jpg", "b.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 700
            archive.addfile(info, io.BytesIO(bytes(700)))
    whole = bytearray(out.getvalue())
    expected = {(m.name, m.offset, m.size) for m in members(io.BytesIO(bytes(whole)), len(whole))}
    whole[place] = value
    try:
        found = {(m.name, m.offset, m.size) for m in members(io.BytesIO(bytes(whole)), len(whole))}
    except BrokenError:
        return
    assert found == expected


def test_webdataset_s_convention(rows: list[Row], tmp_path: Path) -> None:
    """Labels from .cls or the JSON, its scalars and a .txt as columns; a sample without an image is counted."""
    data = [d for _, _, d in rows]
    files = [
        ("0.jpg", data[0]), ("0.cls", b"n00000001\n"), ("0.txt", b"a cat"),
        ("1.json", json.dumps({"label": "hen", "score": 0.5, "boxes": [1]}).encode()), ("1.jpg", data[1]),
        ("2.left.jpg", data[2]), ("2.right.JPG", data[3]), ("2.json", b'{"score": 2, "label": 7}'),
        ("3.cls", b"5"), ("4.jpg", data[4]), ("4.json", b"{broken"), ("5.seg.npy", b"x"), ("6.jpg", data[5]),
    ]  # fmt: skip
    source = Shards.scan("x.tar", [str(write_tar(tmp_path / "x.tar", files))])
    assert [i.key for i in source.items] == ["0.jpg", "1.jpg", "2.left.jpg", "2.right.JPG", "4.jpg", "6.jpg"]
    assert [i.label for i in source.items] == ["n00000001", "hen", "7", "7", "", ""]
    assert source.items.columns.keys() == {"txt", "score"}
    np.testing.assert_array_equal(source.items.columns["score"], [np.nan, 0.5, 2, 2, np.nan, np.nan])
    assert list(source.items.columns["txt"]) == ["a cat", "", "", "", "", ""]
    assert [source.read(i) for i in source.items] == [data[i] for i in (0, 1, 2, 3, 4, 5)]
    assert source.others == {
        "samples without an image": 1, ".json members that do not read": 1, "members without an image suffix": 1,
        "values of samples that are no plain text or number": 1,
    }  # fmt: skip


def test_img2dataset_s_own_height_does_not_stop_a_run(tiny_graph: Path, rows: list[Row], tmp_path: Path) -> None:
    """Columns that the store has itself are put aside, and it says so."""
    files = [("0.jpg", rows[0][2]), ("0.json", b'{"key": "0", "height": 3, "caption": "a cat"}')]
    result = engine.run(tiny_graph, write_tar(tmp_path / "x.tar", files), tmp_path / "s.zarr")
    assert result.notes == ("columns kept under another name: 'key' as column_key, 'height' as column_height",)
    assert list(Store(result.path).read("caption")) == ["a cat"]
    assert list(Store(result.path).read("column_height")) == [3]


def test_a_sample_s_mask_is_no_image_of_its_own(rows: list[Row], tmp_path: Path) -> None:
    """By WebDataset's convention; files of a plain tree that share a beginning each count."""
    data = [d for _, _, d in rows]
    files = [
        ("0.jpg", data[0]), ("0.seg.png", data[1]), ("0.cls", b"cat"),
        ("1.depth.png", data[1]), ("1.jpg", data[2]),  # nothing else beside them
        ("2.mask.png", data[1]), ("2.image.png", data[3]), ("2.json", b"{}"),
        ("3.png", data[1]), ("3.jpg", data[4]), ("3.txt", b"a mask of the other suffix"),
        ("4.seg.png", data[1]), ("4.cls", b"cat"),
        ("5.thing.png", data[1]), ("5.webp", data[5]), ("5.npy", b"x"),
        ("scan.001.jpg", data[6]), ("scan.002.jpg", data[7]), ("v.jpg", data[8]), ("v.2.jpg", data[9]),
    ]  # fmt: skip
    source = open_source(write_tar(tmp_path / "x.tar", files))
    keys = ["0.jpg", "1.jpg", "2.image.png", "3.jpg", "5.webp", "scan.001.jpg", "scan.002.jpg", "v.jpg", "v.2.jpg"]
    assert [i.key for i in source.items] == keys
    assert [source.read(i) for i in source.items] == [data[i] for i in (0, 2, 3, 4, 5, 6, 7, 8, 9)]
    assert source.others == {
        "images beside a sample's own (such as NAME.seg.png)": 6, "samples without an image": 1,
        "members without an image suffix": 1,
    }  # fmt: skip


def test_what_an_archive_may_hold_besides_images(rows: list[Row], tmp_path: Path) -> None:
    """Links, devices, and names that lead out are counted, never followed; nothing is unpacked."""
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (("d", tarfile.DIRTYPE), ("l.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE),
                           ("p.jpg", tarfile.FIFOTYPE), ("c.jpg", tarfile.CHRTYPE)):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        for name in ("/abs/a.jpg", "../b.jpg", "d/../../c.jpg", "d/ok.jpg", ".hidden.jpg", "x/.hidden.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(rows[0][2])
            archive.addfile(info, io.BytesIO(rows[0][2]))
    before = set(tmp_path.iterdir())
    source = open_source(path)
    assert [i.key for i in source.items] == ["d/ok.jpg"]
    assert source.others == {
        "links": 2, "special files": 2, "members whose name leads out of the archive": 3,
        HIDDEN: 2,
    }  # fmt: skip
    assert source.read(source.items[0]) == rows[0][2]
    assert set(tmp_path.iterdir()) == before


def test_a_plain_tree_has_the_labels_of_its_folder(few: Path, rows: list[Row], tmp_path: Path) -> None:
    """Also with one folder above all, as `tar -cf images.tar images` makes it, and with one class alone."""
    for top in ("", "./", "images/"):
        path = write_tar(tmp_path / "x.tar", [(f"{top}{key}", data) for key, _, data in rows])
        assert [i.label for i in open_source(path).items] == [label for _, label, _ in rows]
    path = write_tar(tmp_path / "x.tar", [("n00000001/a.jpg", rows[0][2]), ("n00000001/b.jpg", rows[1][2])])
    assert [i.label for i in open_source(path).items] == ["n00000001"] * 2


BAD_ARCHIVES: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("within an image", lambda d: d[:900], r"ends at byte 900 within '000000\.png', which reaches to"),
    ("within a header", lambda d: d[: d.index(b"000001.jpg") + 40], "ends within a header at byte"),
    ("at a member's end", lambda d: d[: d.index(b"000001.jpg")], "without tar's end mark: truncated, copy it again"),
    ("zeros at its end", lambda d: d[: d.index(b"000001.jpg")] + bytes(2**21), "was not copied to its end"),
    ("two in one", lambda d: d + d, "or is several archives in one"),
    ("a header overwritten", lambda d: d.replace(b"000001.jpg", b"000009.jpg"), "has a broken header at byte"),
    ("compressed", lambda d: __import__("gzip").compress(d), "is compressed (gzip)"),
    ("text", lambda _: b"hello " * 200, "is no tar archive"),
    ("empty", lambda _: b"", "ends at byte 0, after 0 members"),
    ("no image", lambda _: bytes(10240), "no images found (nothing at all)"),
]


@pytest.mark.parametrize(("what", "damage", "message"), BAD_ARCHIVES, ids=[b[0] for b in BAD_ARCHIVES])
def test_a_broken_archive_says_where(
    what: str, damage: Callable[[bytes], bytes], message: str, rows: list[Row], tmp_path: Path
) -> None:
    """Which shard, which byte, what to do; nothing is run."""
    path = write_tar(tmp_path / "shard-0.tar", web(rows[:3]))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(AttlasError, match=r"^[^\n]*shard-0\.tar[^\n]*$") as caught:
        open_source(path)
    assert message.replace("\\", "") in str(caught.value)


def test_a_pax_header_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    """What a header claims is bounded before it is believed."""
    info = tarfile.TarInfo("a")
    info.type, info.size = tarfile.XHDTYPE, 2**30
    path = tmp_path / "x.tar"
    path.write_bytes(info.tobuf() + bytes(10240))
    with pytest.raises(AttlasError, match="has a header of 1,073,741,824 bytes at byte 0"):
        open_source(path)


def test_an_archive_that_changed_ends_the_run(tiny_graph: Path, rows: list[Row], tmp_path: Path) -> None:
    """One line that names it; with the same images again in it, the run goes on, with others it is refused."""
    path = write_tar(tmp_path / "x.tar", web(rows))
    source = open_source(path)
    os.utime(path, (1, 1))
    with pytest.raises(AttlasError, match=r"x\.tar: has changed since the run was planned"):
        run(tiny_graph, source, tmp_path / "s.zarr")
    assert run(tiny_graph, path, tmp_path / "s.zarr", shard=(1, 2)).done.any()
    changed = source.items[3].key
    other = [(name, data + b"more" if name == changed else data) for name, data in web(rows)]
    write_tar(path, other)
    with pytest.raises(AttlasError, match=rf"1 images are not those .* \(the first: {changed}"):
        run(tiny_graph, path, tmp_path / "s.zarr")


def test_a_touched_folder_is_resumed_with_a_note(tiny_graph: Path, few: Path, tmp_path: Path) -> None:
    """A copy of the dataset on another disk is the same dataset."""
    place = make_images(tmp_path / "images", 8)
    run(tiny_graph, place, tmp_path / "s.zarr", shard=(1, 2))
    for path in place.rglob("*.png"):
        os.utime(path, (1, 1))
    result = engine.run(tiny_graph, place, tmp_path / "s.zarr")
    assert result.finished
    assert any("3 images have another time" in note for note in result.notes)


# -- Parquet -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("group", [1, 5, 1000])
def test_rows_are_read_in_any_order(nested: bool, group: int, rows: list[Row], tmp_path: Path) -> None:
    """Forwards a row group is gone through once, backwards it is begun again; the bytes are the row's."""
    values = [{"bytes": d, "path": None} for _, _, d in rows] if nested else [d for _, _, d in rows]
    pq.write_table(pa.table({"image": pa.array(values)}), tmp_path / "x.parquet", row_group_size=group)
    source = open_source(tmp_path / "x.parquet")
    assert [i.key for i in source.items] == [f"x.parquet/{i}" for i in range(len(rows))]
    for i in [*range(len(rows)), 3, 12, 0, 11, 4, 4]:
        assert source.read(source.items[i]) == rows[i][2]


def test_hugging_face_s_struct(rows: list[Row], tmp_path: Path) -> None:
    """Its own paths are keys where they can be, labels have their names, a null image costs one row."""
    source = open_source(huggingface(rows, tmp_path / "x.parquet"))
    assert [(i.key, i.label) for i in source.items] == [(key, label) for key, label, _ in rows]
    absolute = [(f"/home/me/{key}", label, data) for key, label, data in rows]
    source = open_source(huggingface(absolute, tmp_path / "y.parquet"))
    assert [i.key for i in source.items][:2] == ["y.parquet/0", "y.parquet/1"]
    table = pa.table({"image": pa.array([{"bytes": None, "path": "a.jpg"}, {"bytes": rows[0][2], "path": "b.jpg"}])})
    pq.write_table(table, tmp_path / "z.parquet")
    source = open_source(tmp_path / "z.parquet")
    with pytest.raises(Exception, match="the row holds no image"):
        source.read(source.items[0])
    assert source.read(source.items[1]) == rows[0][2]


def test_a_table_s_columns_travel(tiny_graph: Path, rows: list[Row], tmp_path: Path) -> None:
    """Numbers with nulls are NaN, categories and dates are text, lists are left out."""
    import datetime

    table = pa.table({
        "image": pa.array([d for _, _, d in rows[:3]]), "age": pa.array([1, None, 3], pa.int32()),
        "sex": pa.array(["f", "m", None]).dictionary_encode(), "boxes": pa.array([[1], [], [2]]),
        "day": pa.array([datetime.date(2026, 1, n) for n in (1, 2, 3)]), "ok": [True, False, True],
        "id": pa.array([2**60, 1, 2]),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "x.parquet")
    store = run(tiny_graph, tmp_path / "x.parquet", tmp_path / "s.zarr")
    np.testing.assert_array_equal(store.read("age"), [1, np.nan, 3])
    assert list(store.read("sex")) == ["f", "m", ""]
    assert list(store.read("day")) == ["2026-01-01", "2026-01-02", "2026-01-03"]
    assert list(store.read("id")) == [2**60, 1, 2]
    assert store.read("ok").dtype == bool
    assert "boxes" not in store


def test_parquet_without_images_or_paths_says_what_it_has(tmp_path: Path) -> None:
    """The columns and their types."""
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "x.parquet")
    with pytest.raises(
        AttlasError, match=r"has no column path, .* nor one of images .*; found a \(int64\), b \(string"
    ):
        open_source(tmp_path / "x.parquet")
    with pytest.raises(AttlasError, match=r"no column of images .* found a \(int64\), b \(string\)"):
        open_source(str(tmp_path / "*.parquet"))


def test_a_column_of_images_that_holds_paths_alone_names_the_files(
    tiny_graph: Path, few: Path, rows: list[Row], tmp_path: Path
) -> None:
    """As `datasets` writes images that were never embedded; with the same rows as the folder's."""
    table = pa.table({
        "image": pa.array([{"bytes": None, "path": f"{few}/{key}"} for key, _, _ in rows],
                          pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        "label": [label for _, label, _ in rows], "__index_level_0__": list(range(len(rows))),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "x.parquet")
    store = run(tiny_graph, tmp_path / "x.parquet", tmp_path / "s.zarr")
    assert store.read("valid").all()
    whole = run(tiny_graph, few, tmp_path / "whole.zarr")
    np.testing.assert_array_equal(store.read("attention"), whole.read("attention"))
    assert list(store.read("path")) == list(whole.read("path"))
    assert list(store.read("index_level_0")) == list(range(len(rows)))
    with pytest.raises(AttlasError, match="holds the paths of images and not their bytes; give one such file"):
        open_source(str(tmp_path / "*.parquet"))


def test_a_table_without_rows_says_so(tmp_path: Path) -> None:
    """It has the column, and no image."""
    pq.write_table(
        pa.table({"path": pa.array([], pa.string()), "age": pa.array([], pa.int64())}), tmp_path / "x.parquet"
    )
    with pytest.raises(AttlasError, match=r"x\.parquet: names no image \(it has no rows\)"):
        open_source(tmp_path / "x.parquet")


@pytest.mark.parametrize("kind", ["binary", "large_binary", "binary_view"])
def test_bytes_are_read_in_every_form(kind: str, rows: list[Row], tmp_path: Path) -> None:
    """As Polars and others write them."""
    pq.write_table(pa.table({"image": pa.array([rows[0][2]], getattr(pa, kind)())}), tmp_path / "x.parquet")
    source = open_source(tmp_path / "x.parquet")
    assert source.read(source.items[0]) == rows[0][2]


def test_two_columns_of_bytes_are_not_guessed_between(rows: list[Row], tmp_path: Path) -> None:
    """It names them, and the way out; one that is called image is the one."""
    data = [d for _, _, d in rows[:2]]
    pq.write_table(pa.table({"front": data, "back": data}), tmp_path / "x.parquet")
    message = r"has 2 columns that may hold images \(front, back\); call the one to read image"
    with pytest.raises(AttlasError, match=message):
        open_source(tmp_path / "x.parquet")
    with pytest.raises(AttlasError, match=message):
        open_source(str(tmp_path / "*.parquet"))
    pq.write_table(pa.table({"front": data, "image": data[::-1]}), tmp_path / "y.parquet")
    source = open_source(tmp_path / "y.parquet")
    assert [source.read(i) for i in source.items] == data[::-1]


def test_a_broken_page_ends_the_run_and_names_the_file(tiny_graph: Path, rows: list[Row], tmp_path: Path) -> None:
    """Found on reading, since planning reads no image."""
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [d for _, _, d in rows]}), path, compression="gzip")
    data = bytearray(path.read_bytes())
    data[200:400] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(AttlasError, match=r"x\.parquet: does not read as Parquet .*copy or make it again"):
        run(tiny_graph, path, tmp_path / "s.zarr")


# -- what is no image of the user's -----------------------------------------------------------------------------------

ASIDE = (
    ".ipynb_checkpoints/a-checkpoint.jpg", "n00000001/.ipynb_checkpoints/b.png", "@eaDir/c.jpg/SYNOPHOTO_THUMB_M.jpg",
    "__MACOSX/n00000001/._d.jpg", ".hidden.jpg", "n00000001/._e.jpg", ".Trash/f.jpg", "Thumbs/g.jpg",
    "$RECYCLE.BIN/h.png",
)  # fmt: skip


def test_hidden_and_system_files_are_no_images(rows: list[Row], tmp_path: Path, memory: Any) -> None:
    """In a folder, a bucket and an archive alike: no image, no class, and counted."""
    kept = [(key, data) for key, _, data in rows[:4]] + [("Thumbs up/x.jpg", rows[4][2])]
    for name, data in (*kept, *((name, rows[0][2]) for name in ASIDE)):
        for root in ("here", ".cache/there"):
            (tmp_path / root / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / root / name).write_bytes(data)
        memory.pipe(f"/bucket/{name}", data)
    for n, order in enumerate((1, -1)):
        write_tar(tmp_path / f"{n}.tar", [*kept, *((name, rows[0][2]) for name in ASIDE)][::order])
    for place in (
        tmp_path / "here",
        tmp_path / ".cache" / "there",
        "memory://bucket",
        tmp_path / "0.tar",
        tmp_path / "1.tar",
    ):
        source = open_source(place)
        assert sorted(i.key for i in source.items) == sorted(key for key, _ in kept), place
        assert source.others == {HIDDEN: len(ASIDE)}, place
        assert {i.label for i in source.items} == {"n00000000", "Thumbs up"}, place


def test_hidden_archives_are_not_opened(rows: list[Row], tmp_path: Path) -> None:
    """A Mac leaves `._x.tar` beside `x.tar`; and an upper-case suffix is one, too."""
    write_tar(tmp_path / "A.TAR", [(key, data) for key, _, data in rows])
    (tmp_path / "._A.TAR").write_bytes(b"Mac OS X")
    for place in (tmp_path, tmp_path / "A.TAR", str(tmp_path / "*.TAR"), str(tmp_path / "{A,A}.TAR").replace(",A", "")):
        assert len(open_source(place).items) == len(rows), place


def test_equal_bytes_are_noticed(tiny_graph: Path, rows: list[Row], tmp_path: Path, monkeypatch: Any) -> None:
    """Once, when the run is planned, with the first pair, from a folder and from an archive; within limits."""
    from attlas.engine.sources import duplicates as module

    files = [(f"{i}.png", rows[i][2]) for i in range(6)] + [("7.png", rows[1][2]), ("8.png", rows[2][2])]
    files.append(("9.png", rows[3][2][:-1] + b"x"))  # of the same size alone
    for name, data in files:
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "images" / name).write_bytes(data)
    write_tar(tmp_path / "x.tar", files)
    expected = "2 images have the same bytes as another, and count each time (the first: 1.png and 7.png)"
    for place in ("images", "x.tar"):
        assert engine.run(tiny_graph, tmp_path / place, tmp_path / "d.zarr", dry_run=True).notes == (expected,)
    assert expected in engine.run(tiny_graph, tmp_path / "images", tmp_path / "s.zarr").notes
    assert engine.run(tiny_graph, tmp_path / "images", tmp_path / "s.zarr").notes == ()
    source = Folder.scan(tmp_path / "images")
    asked: list[str] = []
    real = Folder.read
    monkeypatch.setattr(Folder, "read", lambda self, item: asked.append(item.key) or real(self, item))
    monkeypatch.setattr(module, "READS", 2)
    assert module.duplicates(source, source.items).endswith("; 2 of 6 files of equal size were compared)")
    assert len(asked) == 2
    monkeypatch.setattr(module, "BYTES", 0)
    assert module.duplicates(source, source.items) == ""
    assert len(asked) == 2


def test_what_another_argument_takes_is_said(tiny_graph: Path, few: Path, tmp_path: Path) -> None:
    """A store or a folder where the graph should be: the order is named."""
    store = run(tiny_graph, few, tmp_path / "s.zarr").path
    for graph, what in ((store, "an attention store"), (few, "a folder")):
        with pytest.raises(UsageError, match=f"is {what}, not a graph; the order is `attlas run GRAPH"):
            engine.run(graph, few, tmp_path / "t.zarr")


def test_a_tilde_is_the_user_s_folder(
    tiny_graph: Path, few: Path, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Python, where no shell has replaced it: graph, images, store and picture; in a pattern, too."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "images").symlink_to(few)
    (tmp_path / "g.onnx").write_bytes(tiny_graph.read_bytes())
    write_tar(tmp_path / "x-0.tar", web(rows))
    result = attlas.run("~/g.onnx", "~/images", "~/s.zarr")
    assert result.path == tmp_path / "s.zarr"
    assert Store("~/s.zarr").done.all()
    assert len(open_source("~/x-*.tar").items) == len(open_source("file://~/x-0.tar").items) == len(rows)
    session = attlas.Session("~/g.onnx")
    assert len(session([f"~/images/{rows[0][0]}"])["logits"]) == 1
    table = write_csv(tmp_path / "l.csv", [{"path": f"~/images/{key}"} for key, _, _ in rows])
    assert [i.key for i in open_source(table).items] == [key for key, _, _ in rows]
    with pytest.raises(AttlasError, match="~nobody-of-that-name/x: there is no such folder"):
        open_source("~nobody-of-that-name/x")


# -- what IMAGES is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}{1..2}", ["a1", "a2", "b1", "b2"]),
        ("plain", ["plain"]),
    ],
)
def test_patterns_name_files(pattern: str, expected: list[str]) -> None:
    """As a shell's braces do, zeros kept."""
    assert expand(pattern) == expected


def test_a_missing_shard_is_named(rows: list[Row], tmp_path: Path) -> None:
    """A pattern promises every file in it."""
    write_tar(tmp_path / "s-0.tar", web(rows))
    with pytest.raises(AttlasError, match=r"s-1\.tar: there is no such file \(one of 3 that were named\)"):
        open_source(f"{tmp_path}/s-{{0..2}}.tar")
    with pytest.raises(AttlasError, match=r"no file has such a name"):
        open_source(f"{tmp_path}/t-*.tar")
    with pytest.raises(AttlasError, match="names more than"):
        open_source(f"{tmp_path}/t-{{0..99999999999}}.tar")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.zip", "absent.zip: there is no such file"),
        ("absent.tar.gz", "absent.tar.gz: there is no such file"),
        ("loop", "is a file, not a folder of images"),
        ("x.onnx", "is a graph, not images; the order is `attlas run GRAPH.onnx IMAGES -o STORE.zarr`"),
        ("x.zarr", "is an attention store, not images; the order is"),
        ("x.tar.gz", "is compressed, so that no image can be read by its offset"),
        ("x.zip", "is compressed"),
        ("x.npy", "is a file, not a folder of images"),
        ("absent", "there is no such folder"),
        ("absent.tar", "there is no such file"),
        ("absent.csv", "absent.csv: there is no such file"),
        ("absent.parquet", "absent.parquet: there is no such file"),
        ("memory://absent/x.csv", "x.csv: there is no such file"),
        ("both", "holds .tar and .parquet files; say which with a pattern"),
        ("empty", "no images found (nothing at all)"),
        ("{x.npy,x.zip}", "a pattern names .tar or .parquet files"),
        ("memory://absent", "no images found"),
        ("memory://absent.tar", "there is no such file"),
        ("nosuch://x", "Protocol not known: nosuch"),
    ],
)
def test_what_is_no_dataset_is_refused(name: str, message: str, tmp_path: Path, memory: Any) -> None:
    """One line that says what was found."""
    for made in ("x.tar.gz", "x.zip", "x.npy", "both/a.tar", "both/b.parquet", "x.zarr/zarr.json"):
        (tmp_path / made).parent.mkdir(exist_ok=True)
        (tmp_path / made).write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(AttlasError, match=r"^[^\n]*$") as caught:
        open_source(name if "://" in name else f"{tmp_path}/{name}")
    assert message in str(caught.value)


def test_a_bucket_that_cannot_be_listed_is_one_line(monkeypatch: pytest.MonkeyPatch, memory: Any) -> None:
    """Whatever its library raises."""

    def find(*_: Any, **__: Any) -> None:
        raise RuntimeError("AccessDenied:\n not yours")

    monkeypatch.setattr(type(memory), "find", find)
    with pytest.raises(AttlasError, match=r"memory://bucket: cannot be listed \(AccessDenied: not yours\)"):
        open_source("memory://bucket")


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The core needs neither pyarrow nor fsspec."""
    from attlas.engine.sources import remote

    pq.write_table(pa.table({"path": ["a.jpg"]}), tmp_path / "x.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(AttlasError, match=r"pip install 'attlas\[parquet\]'"):
        open_source(tmp_path / "x.parquet")
    remote._system.cache_clear()
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(AttlasError, match=r"pip install 'attlas\[remote\]'"):
        open_source("s3://bucket/images")


def test_a_stumbling_network_is_asked_again(rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice it fails, the third time it answers; then it has failed."""
    from attlas.engine.sources import files

    monkeypatch.setattr(files.time, "sleep", lambda _: None)
    source = open_source(write_tar(tmp_path / "x.tar", web(rows)))
    real, left = files.opened, [2]

    def opened(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(5, "Input/output error")
        return real(*arguments, **options)

    monkeypatch.setattr(files, "opened", opened)
    files._let_go()
    assert source.read(source.items[2]) == rows[2][2]
    files._let_go()
    left[0] = 3
    with pytest.raises(OSError, match="Input/output"):
        source.read(source.items[2])


def test_a_manifest_follows_links_and_reads_no_pipe(rows: list[Row], tmp_path: Path) -> None:
    """Its paths are somebody's choice; what is no regular file costs one image and never blocks."""
    (tmp_path / "a.jpg").write_bytes(rows[0][2])
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    source = Manifest.scan(write_csv(tmp_path / "l.csv", [{"path": "link.jpg"}, {"path": "pipe.jpg"}]))
    assert source.read(source.items[0]) == rows[0][2]
    with pytest.raises(Exception, match="is no regular file"):
        source.read(source.items[1])


def test_a_member_of_two_gigabytes_is_no_picture(tmp_path: Path) -> None:
    """It costs one image, and no memory."""
    info = tarfile.TarInfo("a.jpg")
    info.size = 2**31
    path = tmp_path / "x.tar"
    with path.open("wb") as file:
        file.write(info.tobuf())
        file.truncate(512 + 2**31 + 10240)
    source = open_source(path)
    with pytest.raises(Exception, match="has 2,147,483,648 bytes, more than the limit"):
        source.read(source.items[0])


def test_the_command_lists_the_first_absent_files_and_ends_with_3(tiny_graph: Path, few: Path, tmp_path: Path) -> None:
    """A script sees the code, a person the names."""
    keys = [item.key for item in Folder.scan(few).items]
    table = [{"path": f"{few}/{key}"} for key in [*keys, *(f"n00000000/gone{i}.jpg" for i in range(7))]]
    command = [
        sys.executable,
        "-m",
        "attlas.cli",
        "run",
        tiny_graph,
        write_csv(tmp_path / "l.csv", table),
        "-o",
        "s.zarr",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 3, done.stderr
    listed = done.stdout.partition("7 images could not be read")[2].splitlines()[1:]
    assert listed == [*(f"  n00000000/gone{i}.jpg: there is no such file" for i in range(5)), "  ..."]

"""Every kind of source gives the same images, or says what is wrong."""

import io
import json
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import pytest
from attlas.engine import Store, sources
from attlas.engine import runner as engine
from attlas.engine.sources import BaseSource, Folder, open_source
from attlas.engine.sources.items import HIDDEN, Item, Items, repeated, text
from attlas.engine.unit import Unit
from attlas.errors import AttlasError
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support import chunk_files, make_images
from support_sources import Row, huggingface, names, run, web, write_csv, write_tar

pa = pytest.importorskip("pyarrow")

pq = pytest.importorskip("pyarrow.parquet")


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


def test_every_name_of_an_analysis_is_reserved(tiny_graph: Path, few: Path, tmp_path: Path) -> None:
    """What `analyze` writes, whole and by group, and every dimension of it."""
    from attlas.analysis.catalog import CATALOG, reserved

    path = attlas.run(tiny_graph, few, tmp_path / "s.zarr").path
    before = {name for name in Store(path).names if name not in CATALOG}
    attlas.analyze(path, [n for n, one in CATALOG.items() if one.listed and set(one.needs) == {"attention"}])
    attlas.analyze(path, by="label")
    store = Store(path)
    made = set(store.names) - before
    dims = {dim for name in made for dim in store.dims(name)} - {d for name in before for d in store.dims(name)}
    assert not [name for name in made | dims if not reserved(name)]
    assert {"distance_mean", "distance_mean_by_label", "label_group", "other_head"} <= made | dims
    assert not [name for name in ("age", "patient", "score", "mean", "distance_km", "class_mean") if reserved(name)]


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


def test_a_touched_folder_is_resumed_with_a_note(tiny_graph: Path, few: Path, tmp_path: Path) -> None:
    """A copy of the dataset on another disk is the same dataset."""
    place = make_images(tmp_path / "images", 8)
    run(tiny_graph, place, tmp_path / "s.zarr", shard=(1, 2))
    for path in place.rglob("*.png"):
        os.utime(path, (1, 1))
    result = engine.run(tiny_graph, place, tmp_path / "s.zarr")
    assert result.finished
    assert any("3 images have another time" in note for note in result.notes)


@pytest.mark.parametrize("kind", ["binary", "large_binary", "binary_view"])
def test_bytes_are_read_in_every_form(kind: str, rows: list[Row], tmp_path: Path) -> None:
    """As Polars and others write them."""
    pq.write_table(pa.table({"image": pa.array([rows[0][2]], getattr(pa, kind)())}), tmp_path / "x.parquet")
    source = open_source(tmp_path / "x.parquet")
    assert source.read(source.items[0]) == rows[0][2]


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


def test_a_new_kind_of_archive_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found by its suffix, by a pattern, and in a folder that holds no images."""
    opened: list[list[str]] = []

    def scan(name: str, found: Sequence[str]) -> Any:
        opened.append([Path(one).name for one in found])
        return name

    monkeypatch.setitem(sources.ARCHIVES, ".pak", scan)
    for name in ("a.pak", "b.pak"):
        (tmp_path / name).touch()
    assert [open_source(tmp_path / name) for name in ("a.pak", "*.pak", "")] == ["a.pak", "*.pak", tmp_path.name]
    assert opened == [["a.pak"], ["a.pak", "b.pak"], ["a.pak", "b.pak"]]
    (tmp_path / "c.tar").touch()
    with pytest.raises(AttlasError, match=r"holds \.tar and \.pak files; say which with a pattern, .*\*\*/\*\.tar"):
        open_source(tmp_path)


@pytest.mark.parametrize("end", ["tar", "parquet"])
def test_files_of_equal_names_in_several_folders(end: str, rows: list[Row], tmp_path: Path) -> None:
    """At any depth, in the order of their paths; keys begin where the paths differ, so that none is of two images."""
    for folder, row in zip(("a", "b/deep"), rows, strict=False):
        (tmp_path / "all" / folder).mkdir(parents=True)
        where = tmp_path / "all" / folder / f"x.{end}"
        if end == "parquet":
            pq.write_table(pa.table({"image": [row[2]]}), where)
        else:
            write_tar(where, [("1.png", row[2])])
    key = "0" if end == "parquet" else "1.png"
    for name in ("all", f"all/**/*.{end}", f"all/{{a,b/deep}}/x.{end}"):
        source = open_source(tmp_path / name)
        assert [item.key for item in source.items] == [f"a/x.{end}/{key}", f"b/deep/x.{end}/{key}"], name
        assert [source.read(item) for item in source.items] == [rows[0][2], rows[1][2]]
    with pytest.raises(AttlasError, match=rf"a/x\.{end}: is named twice"):
        open_source(tmp_path / f"all/{{a,a}}/x.{end}")


def test_images_that_are_gone_or_new_on_resuming_are_named(tiny_graph: Path, rows: list[Row], tmp_path: Path) -> None:
    """Whoever knows which one is missing can put it back, and the run goes on."""
    place = tmp_path / "images"
    for key, _, data in rows[:3]:
        (place / key).parent.mkdir(parents=True, exist_ok=True)
        (place / key).write_bytes(data)
    run(tiny_graph, place, tmp_path / "s.zarr")
    gone, new = place / rows[1][0], place / "new.png"
    new.write_bytes(gone.read_bytes())
    gone.unlink()
    with pytest.raises(AttlasError, match=rf"; 1 image only there: {rows[1][0]}; 1 image only now: new\.png\);"):
        run(tiny_graph, place, tmp_path / "s.zarr")
    new.rename(gone)
    assert run(tiny_graph, place, tmp_path / "s.zarr").done.all()

"""Parquet with a column of images."""

from pathlib import Path

import numpy as np
import pytest
from attlas.engine.sources import open_source
from attlas.errors import AttlasError
from support_sources import Row, huggingface, run

pa = pytest.importorskip("pyarrow")

pq = pytest.importorskip("pyarrow.parquet")


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


def test_a_broken_page_ends_the_run_and_names_the_file(tiny_graph: Path, rows: list[Row], tmp_path: Path) -> None:
    """Found on reading, since planning reads no image."""
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [d for _, _, d in rows]}), path, compression="gzip")
    data = bytearray(path.read_bytes())
    data[200:400] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(AttlasError, match=r"x\.parquet: does not read as Parquet .*copy or make it again"):
        run(tiny_graph, path, tmp_path / "s.zarr")


def test_columns_have_one_type_over_all_files(rows: list[Row], tmp_path: Path) -> None:
    """Whole numbers with nulls, categories that are numbers, and what is missing in one file: numbers, as in a CSV."""
    parts = {
        "age": [pa.array([63, 64]), pa.array([None, 65], pa.int64())],
        "big": [pa.array([1, 2]), pa.array([None, 2**60], pa.int64())],
        "size": [pa.array([1, 2], pa.uint64()), pa.array([3, 4], pa.uint64())],
        "kind": [pa.array([7, 8]).dictionary_encode(), pa.array([8, 7]).dictionary_encode()],
        "dose": [pa.array([0.5, 1.5]), pa.nulls(2)],
        "ok": [pa.array([True, False]), pa.array([True, None])],
        "none": [pa.nulls(2), pa.nulls(2)],
    }
    for n in range(2):
        images = pa.array([d for _, _, d in rows[2 * n : 2 * n + 2]])
        table = pa.table({"image": images, **{name: part[n] for name, part in parts.items()}})
        pq.write_table(table, tmp_path / f"{n}.parquet")
    source = open_source(tmp_path)
    found = {name: values.tolist() for name, values in source.items.columns.items()}
    np.testing.assert_array_equal(found.pop("age"), [63, 64, np.nan, 65])
    np.testing.assert_array_equal(found.pop("dose"), [0.5, 1.5, np.nan, np.nan])
    assert found == {
        "big": ["1", "2", "", str(2**60)],
        "size": [1, 2, 3, 4],
        "kind": [7, 8, 8, 7],
        "ok": ["true", "false", "true", ""],
    }
    assert not source.others


def test_the_column_that_names_the_images_is_not_left_out(rows: list[Row], tmp_path: Path) -> None:
    """Hugging Face's struct without bytes: a table of paths, and nothing of it is lost."""
    key, _, data = rows[0]
    (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / key).write_bytes(data)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array([{"bytes": None, "path": key}], kind)}), tmp_path / "x.parquet")
    source = open_source(tmp_path / "x.parquet")
    assert source.read(source.items[0]) == data
    assert not source.others


def test_other_images_under_the_same_keys_are_not_resumed(tiny_graph: Path, rows: list[Row], tmp_path: Path) -> None:
    """A file that was written anew in another order has the same keys; a copy is the same."""
    path, data = tmp_path / "x.parquet", [d for _, _, d in rows]
    pq.write_table(pa.table({"image": data}), path, row_group_size=4)
    run(tiny_graph, path, tmp_path / "s.zarr", shard=(1, 2))
    copy = path.read_bytes()
    path.unlink()
    path.write_bytes(copy)
    assert run(tiny_graph, path, tmp_path / "s.zarr", shard=(1, 2)).done.any()
    pq.write_table(pa.table({"image": data[::-1]}), path, row_group_size=4)
    with pytest.raises(AttlasError, match=r"holds another run \(content \w+ there, \w+ now\)"):
        run(tiny_graph, path, tmp_path / "s.zarr")


def test_a_file_that_is_gone_is_not_said_to_have_changed(rows: list[Row], tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [rows[0][2]]}), tmp_path / "x.parquet")
    source = open_source(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").unlink()
    with pytest.raises(FileNotFoundError):
        source.read(source.items[0])


def test_paths_that_are_no_keys_stay_a_column(tiny_graph: Path, rows: list[Row], tmp_path: Path) -> None:
    """Two crops of one picture have its path; absolute ones are not stored."""
    data = [d for _, _, d in rows[:2]]
    pq.write_table(pa.table({"image": data, "path": ["a.png", "a.png"]}), tmp_path / "x.parquet")
    store = run(tiny_graph, tmp_path / "x.parquet", tmp_path / "s.zarr")
    assert list(store.read("path")) == ["x.parquet/0", "x.parquet/1"]
    assert list(store.read("column_path")) == ["a.png", "a.png"]
    pq.write_table(pa.table({"image": data, "path": ["/home/me/a.png"] * 2}), tmp_path / "y.parquet")
    assert "path" not in open_source(tmp_path / "y.parquet").items.columns

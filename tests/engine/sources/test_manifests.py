"""Tables of paths, and the columns that stay with the images."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import pytest
from attlas.engine import Store
from attlas.engine.sources import Folder, Manifest, open_source
from attlas.engine.sources.columns import Columns, guessed
from attlas.engine.sources.items import ChangedError, text
from attlas.errors import AttlasError
from hypothesis import given
from hypothesis import strategies as st
from support import make_images
from support_sources import Row, names, run, write_csv

pa = pytest.importorskip("pyarrow")

pq = pytest.importorskip("pyarrow.parquet")


def test_a_url_in_a_manifest_is_read_and_its_bucket_not_stored(rows: list[Row], tmp_path: Path, memory: Any) -> None:
    """Keys follow the folder that all share."""
    for key, _, data in rows:
        memory.pipe(f"/bucket/images/{key}", data)
    table = [{"path": f"memory://bucket/images/{key}"} for key, _, _ in rows]
    source = open_source(write_csv(tmp_path / "list.csv", table))
    assert [i.key for i in source.items] == [key for key, _, _ in rows]
    assert [source.read(i) for i in source.items] == [data for _, _, data in rows]


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
        "age_group": "age_group_column", "weight_group": "weight_group", "a_b_group_images": "a_b_group_images_column",
        "...": "unnamed", "Größe (cm)": "Größe_cm",
    }  # fmt: skip
    expected |= {"height": "height_column", "column_height": "column_height"}  # what has its name keeps it
    key = next(iter(Folder.scan(few).items)).key
    row = {"path": f"{few}/{key}"} | {column: str(i) for i, column in enumerate(expected)}
    result = attlas.run(tiny_graph, write_csv(tmp_path / "list.csv", [row]), tmp_path / "s.zarr")
    store = Store(result.path)
    assert store.attrs["columns"] == list(expected.values())
    assert [int(store.read(name)[0]) for name in expected.values()] == list(range(len(expected)))
    assert [note for note in result.notes if note.startswith("columns")] == [
        "columns kept under another name: 'height' as height_column, 'attention' as column_attention, 'key' as "
        "column_key, 'y' as column_y, 'rollout' as column_rollout and 18 more",
    ]
    attlas.analyze(store.path, by="predicted")
    attlas.analyze(store.path, ["self_mass"])
    assert list(attlas.open(store.path).predicted_group.values) == [store.read("logits")[0].argmax()]
    assert not attlas.verify(store.path).faults


def test_a_column_has_no_name_of_what_another_run_would_keep(tiny_graph: Path, few: Path, tmp_path: Path) -> None:
    """A run that keeps nothing had a column `attention`, which its analysis took for the attention."""
    names = ("attention", "attention_code", "tokens", "gradient", "gradient_mean", "head", "query", "features",
             "value_norm", "position_embedding")  # fmt: skip
    key = next(iter(Folder.scan(few).items)).key
    row = {"path": f"{few}/{key}"} | dict.fromkeys(names, "yes")
    table = write_csv(tmp_path / "list.csv", [row])
    store = Store(attlas.run(tiny_graph, table, tmp_path / "s.zarr", keep="none").path)
    assert store.attrs["columns"] == [f"column_{name}" for name in names]
    attlas.analyze(store.path, by="column_tokens")
    assert list(attlas.open(store.path).column_tokens_group.values) == ["yes"]


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


def test_a_manifest_follows_links_and_reads_no_pipe(rows: list[Row], tmp_path: Path) -> None:
    """Its paths are somebody's choice; what is no regular file costs one image and never blocks."""
    (tmp_path / "a.jpg").write_bytes(rows[0][2])
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    none = ["pipe.jpg", "folder.jpg", "circle.jpg", f"{'long' * 75}.jpg", "a.jpg/b.jpg"]
    source = Manifest.scan(write_csv(tmp_path / "l.csv", [{"path": path} for path in ("link.jpg", *none)]))
    assert source.read(source.items[0]) == rows[0][2]
    for item in source.items[1:]:
        with pytest.raises(ChangedError, match=r"is no regular file|there is no such file"):
            source.read(item)
    with pytest.raises(AttlasError, match="none of 5 files that were looked for is there"):
        Manifest.scan(write_csv(tmp_path / "none.csv", [{"path": path} for path in none]))


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

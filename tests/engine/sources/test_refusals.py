"""What is no dataset is said in one line, and paths as people write them."""

import sys
from pathlib import Path
from typing import Any

import attlas
import pytest
from attlas.engine import Store
from attlas.engine import runner as engine
from attlas.engine.sources import open_source
from attlas.engine.sources.files import expand
from attlas.errors import AttlasError, UsageError
from support_sources import Row, run, web, write_csv, write_tar

pa = pytest.importorskip("pyarrow")

pq = pytest.importorskip("pyarrow.parquet")


def test_what_is_no_source_is_refused(tiny_graph: Path, tmp_path: Path) -> None:
    """It says what is missing, and what has it."""
    for images, missing in ((None, "name, items"), (object(), "name")):
        with pytest.raises(UsageError, match=rf"{type(images).__name__} is no path, .* has no {missing}.*BaseSource"):
            run(tiny_graph, images, tmp_path / "s.zarr")


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
        ("x.onnx", "is a graph, not images; the order is GRAPH.onnx IMAGES, as in `attlas run GRAPH"),
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

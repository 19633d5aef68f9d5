"""Tar files and WebDataset shards."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attlas.engine import Store
from attlas.engine import runner as engine
from attlas.engine.sources import Shards, open_source
from attlas.engine.sources.items import HIDDEN
from attlas.engine.sources.tarfiles import BrokenError, members
from attlas.errors import AttlasError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support_sources import Row, names, run, web, write_tar

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
    with pytest.raises(AttlasError, match=rf"1 image has changed since .* \(the first: {changed}"):
        run(tiny_graph, path, tmp_path / "s.zarr")


def test_hidden_archives_are_not_opened(rows: list[Row], tmp_path: Path) -> None:
    """A Mac leaves `._x.tar` beside `x.tar`; and an upper-case suffix is one, too."""
    write_tar(tmp_path / "A.TAR", [(key, data) for key, _, data in rows])
    (tmp_path / "._A.TAR").write_bytes(b"Mac OS X")
    for place in (tmp_path, tmp_path / "A.TAR", str(tmp_path / "*.TAR"), str(tmp_path / "{A,A}.TAR").replace(",A", "")):
        assert len(open_source(place).items) == len(rows), place


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

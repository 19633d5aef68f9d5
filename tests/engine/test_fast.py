"""The faster ways to decode give Pillow's pixels and Pillow's errors."""

import io
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attlas.engine import Store, run
from attlas.engine.runtime import fast as ways_of
from attlas.engine.runtime.cuda import OrtCopies
from attlas.engine.runtime.decode import PILLOW, DecodeError, Fast, decode, decode_into, size_of
from attlas.engine.runtime.decoders import HostFiller
from attlas.engine.runtime.markers import plain
from attlas.exporter.spec import Recipe
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import make_picture

pytest.importorskip("numba")
simplejpeg = pytest.importorskip("simplejpeg")

HALF = (0.5, 0.4, 0.3)
CENTER = Recipe((74, 74), (64, 64), "center", "bicubic", HALF, HALF)


@pytest.fixture(scope="module")
def fast() -> Fast:
    found = ways_of.load()
    assert found.resample is not None
    assert found.jpeg is not None
    return found


def outcome(data: bytes, recipe: Recipe, fast: Fast = PILLOW) -> Any:
    """Pixels as bytes, size and remarks, or the error."""
    pixels = np.full((*recipe.crop, 3), 7, np.uint8)
    try:
        return pixels, *decode_into(pixels, data, recipe, fast)
    except DecodeError as error:
        return str(error), None, None


def assert_as_pillow(data: bytes, recipe: Recipe, fast: Fast) -> None:
    ours, theirs = outcome(data, recipe, fast), outcome(data, recipe)
    assert ours[1:] == theirs[1:]
    np.testing.assert_array_equal(ours[0], theirs[0])


def encode(picture: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    mode = draw(st.sampled_from(["center", "squash", "border"]))
    crop = draw(st.tuples(st.integers(1, 50), st.integers(1, 50)))
    if mode == "squash":
        resize = (crop[0] + draw(st.integers(0, 9)), crop[1] + draw(st.integers(0, 9)))
    else:
        resize = draw(st.sampled_from([crop, (max(crop),) * 2, (60, 60), (20, 30)]))
    kind = draw(st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]))
    return Recipe(resize, crop, mode, kind, HALF, HALF)


@st.composite
def pictures(draw: st.DrawFn) -> bytes:
    """Encoded pictures of noise; some are cut short or have a wrong byte."""
    height, width = draw(st.tuples(st.integers(1, 99), st.integers(1, 99)) | st.tuples(st.just(640), st.integers(1, 6)))
    noise = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
    kind = draw(st.sampled_from(["JPEG", "JPEG", "JPEG", "PNG"]))
    mode = draw(st.sampled_from(["RGB", "RGB", "L", "CMYK"] if kind == "JPEG" else ["RGB", "L", "P", "RGBA"]))
    options: dict[str, Any] = {}
    if kind == "JPEG":
        options["quality"] = draw(st.integers(1, 100))
        options["progressive"] = draw(st.sampled_from([False, False, True]))
        options["subsampling"] = draw(st.integers(0, 2))
        options["restart_marker_rows"] = draw(st.integers(0, 1))
    data = encode(Image.fromarray(noise).convert(mode), kind, **options)
    damage = draw(st.sampled_from([None, None, "cut", "changed"]))
    at = draw(st.integers(0, len(data) - 1))
    if damage == "cut":
        return data[:at]
    return data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :] if damage else data


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(data=pictures(), recipe=recipes())
def test_any_picture_by_any_recipe_is_as_pillow_decodes_it(data: bytes, recipe: Recipe) -> None:
    assert_as_pillow(data, recipe, ways_of.load())


def changed(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) == 1
    return data.replace(old, new)


PLAIN = encode(make_picture(1, 120, 90), subsampling=0)
FRAME = PLAIN.index(b"\xff\xc0")
NOISE = np.random.default_rng(1).integers(0, 256, (90, 120, 3), np.uint8)
CMYK = encode(make_picture(1, 120, 90).convert("CMYK"))
RESTARTS = encode(make_picture(1, 120, 90), restart_marker_rows=1)
# Whether the faster way decodes it, and the data.
KINDS: dict[str, tuple[bool, bytes]] = {
    "plain": (True, PLAIN),
    "grey": (True, encode(make_picture(1, 120, 90).convert("L"))),
    "4:1:1": (True, simplejpeg.encode_jpeg(NOISE, 90, "RGB", "411")),
    "4:4:0": (True, simplejpeg.encode_jpeg(NOISE, 90, "RGB", "440")),
    "coded as RGB": (True, encode(make_picture(1, 120, 90), keep_rgb=True)),
    "restarts": (True, RESTARTS),
    "of several": (True, encode(make_picture(1), "MPO", save_all=True, append_images=[make_picture(2)])),
    "more after its end": (True, PLAIN + b"more"),
    "an extended frame": (True, changed(PLAIN, b"\xff\xc0", b"\xff\xc1")),
    "one pixel": (True, encode(Image.new("RGB", (1, 1), (9, 200, 77)))),
    "CMYK": (False, CMYK),
    "YCCK": (False, changed(CMYK, b"Adobe\0\x64\0\0\0\0\0", b"Adobe\0\x64\0\0\0\0\2")),
    "progressive": (False, encode(make_picture(1), progressive=True)),
    "arithmetic codes": (False, changed(PLAIN, b"\xff\xc0", b"\xff\xc9")),
    "lossless": (False, changed(PLAIN, b"\xff\xc0", b"\xff\xc3")),
    "12 bits": (False, PLAIN[: FRAME + 4] + b"\x0c" + PLAIN[FRAME + 5 :]),
    "without height": (False, PLAIN[: FRAME + 5] + b"\0\0" + PLAIN[FRAME + 7 :]),
    "two frames": (False, PLAIN[:FRAME] + PLAIN[FRAME : FRAME + 19] + PLAIN[FRAME:]),
    "other bytes between segments": (False, PLAIN[:FRAME] + b"\0\0" + PLAIN[FRAME:]),
    "without its end": (False, PLAIN[:-2]),
    "cut": (False, PLAIN[: len(PLAIN) // 2]),
    "a restart too few": (False, changed(RESTARTS, b"\xff\xd3", b"")),
    "a wrong restart": (False, changed(RESTARTS, b"\xff\xd3", b"\xff\xd5")),
    "a short header": (False, changed(PLAIN, b"JFIF\0", b"JFIF\1")),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_an_unusual_jpeg_is_as_pillow_decodes_it(name: str, fast: Fast) -> None:
    """Only what is ordinary is decoded by simplejpeg."""
    ordinary, data = KINDS[name]
    taken = []

    def jpeg(data: bytes, size: tuple[int, int]) -> Any:
        assert fast.jpeg is not None
        taken.append(fast.jpeg(data, size))
        return taken[-1]

    assert_as_pillow(data, CENTER, fast._replace(jpeg=jpeg))
    if name != "a short header":  # Pillow reads it, too
        assert bool(taken and taken[-1] is not None) == ordinary


def with_segment(kind: int, contents: bytes) -> bytes:
    """`PLAIN` with one more segment at its beginning."""
    return PLAIN[:2] + bytes([0xFF, kind]) + (len(contents) + 2).to_bytes(2) + contents + PLAIN[2:]


TABLE = bytes([0x03, *range(1, 65)])
# Whether Pillow could find no fault in the header, and the data.
HEADERS: dict[str, tuple[bool, bytes]] = {
    "plain": (True, PLAIN),
    "a comment": (True, with_segment(0xFE, b"any")),
    "a profile": (True, with_segment(0xE2, b"ICC_PROFILE\0\1\1profile")),
    "Adobe": (True, with_segment(0xEE, b"Adobe\0\x64\0\0\0\0\1")),
    "one more table": (True, with_segment(0xDB, TABLE)),
    "a profile that is cut": (False, with_segment(0xE2, b"ICC_PROFILE\0")),
    "JFIF that is cut": (False, with_segment(0xE0, b"JFIF\0")),
    "Adobe that is cut": (False, with_segment(0xEE, b"Adob")),
    "a table that is cut": (False, with_segment(0xDB, TABLE[:-1])),
    "a table of 16 bits": (False, with_segment(0xDB, bytes([0x13]) + 2 * TABLE[1:])),
    "Exif": (False, with_segment(0xE1, b"Exif\0\0II*\0")),
    "several pictures": (False, with_segment(0xE2, b"MPF\0")),
    "Photoshop": (False, with_segment(0xED, b"Photoshop 3.0\x008BIM")),
    "a length that ends beyond the file": (False, PLAIN[:2] + b"\xff\xfe\xff\xff" + PLAIN[2:]),
    "no length": (False, PLAIN[:2] + b"\xff\xfe\0\0" + PLAIN[2:]),
    "a frame with other lengths": (False, PLAIN[: FRAME + 9] + b"\1" + PLAIN[FRAME + 10 :]),
    "a frame that is cut": (False, with_segment(0xC0, b"")),
    "no size": (False, PLAIN[: FRAME + 5] + b"\0\0" + PLAIN[FRAME + 7 :]),
    "more pixels than are read": (False, PLAIN[: FRAME + 5] + b"\xff\xff\xff\xff" + PLAIN[FRAME + 9 :]),
    "another beginning": (False, b"\xff\xd9" + PLAIN[2:]),
    "nothing": (False, b""),
}


@pytest.mark.parametrize("name", HEADERS)
def test_only_a_header_without_a_fault_is_kept_from_pillow(
    name: str, fast: Fast, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, data = HEADERS[name]
    assert_as_pillow(data, CENTER, fast)
    assert (plain(data) is not None) == known
    if known:
        assert plain(data) == (90, 120) == size_of(data)
        monkeypatch.setattr(Image, "open", None)
        assert isinstance(outcome(data, CENTER, fast)[0], np.ndarray)


def test_a_resize_that_would_explode_is_refused_alike(fast: Fast) -> None:
    """Before anything of that size is allocated."""
    data = encode(Image.new("RGB", (30_000, 1)))
    assert outcome(data, CENTER, fast)[0].startswith("would be resized to")
    assert_as_pillow(data, CENTER, fast)


@pytest.fixture
def _anew() -> Iterator[None]:
    ways_of.load.cache_clear()
    yield
    ways_of.load.cache_clear()


@pytest.mark.usefixtures("_anew")
@pytest.mark.parametrize(
    ("package", "found"),
    [
        ("numba", {"JPEG": "Pillow", "resize": "Pillow"}),
        ("simplejpeg", {"JPEG": "Pillow", "resize": "numba"}),
    ],
)
def test_without_a_package_pillow_does_its_part(
    package: str, found: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And `doctor` says so."""
    for name in ("resample", "jpeg"):
        monkeypatch.delitem(sys.modules, f"attlas.engine.runtime.{name}", raising=False)
        monkeypatch.delattr(f"attlas.engine.runtime.{name}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(ways_of, "find_spec", lambda name: None if name == package else name)
    assert {what: way.partition(",")[0] for what, way in ways_of.ways().items()} == found
    assert (
        f"`pip install 'attlas[fast]'` brings {package}" in ways_of.ways()["JPEG" if package != "numba" else "resize"]
    )
    assert_as_pillow(PLAIN, CENTER, ways_of.load())


@pytest.mark.usefixtures("_anew")
def test_what_gives_other_pixels_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as with a Pillow that resizes in an order that is not known."""
    from attlas.engine.runtime import resample

    monkeypatch.setattr(resample, "ORDERS", (lambda *_sizes: True,))
    assert ways_of.load() == PILLOW
    assert "gives other pixels" in ways_of.ways()["resize"]


@pytest.mark.usefixtures("_anew")
def test_a_jpeg_library_that_gives_other_pixels_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from attlas.engine.runtime import jpeg

    right = jpeg.decode_jpeg
    monkeypatch.setattr(jpeg, "decode_jpeg", lambda data, size: right(data, size) ^ 1)
    assert ways_of.load().jpeg is None
    assert ways_of.load().resample is not None


def test_a_run_stores_the_same_either_way(
    tiny_graph: Path, tmp_path: Path, fast: Fast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures, sizes and errors."""
    (tmp_path / "images").mkdir()
    for name, (_, data) in KINDS.items():
        (tmp_path / "images" / f"{name.replace(':', '')}.jpg").write_bytes(data)
    stores = []
    for way in (fast, PILLOW):
        done: Future[Fast] = Future()
        done.set_result(way)
        monkeypatch.setattr("attlas.engine.runtime.decoders.loading", lambda done=done: done)
        stores.append(Store(run(tiny_graph, tmp_path / "images", tmp_path / f"{len(stores)}.zarr").path))
    for name in ("pixels", "height", "width", "error", "valid", "logits"):
        np.testing.assert_array_equal(stores[0].read(name), stores[1].read(name))
    assert stores[0].read("valid").sum() >= sum(ordinary for ordinary, _ in KINDS.values())


def test_what_is_loaded_within_a_batch_decodes_the_rest_of_it(fast: Fast) -> None:
    """A card's batch is long, and loading begins before the first picture is there."""
    seen: list[bool] = []

    class Loading(Future[Fast]):
        def done(self) -> bool:
            seen.append(len(seen) == 2)
            return seen[-1]

    loaded = Loading()
    loaded.set_result(fast._replace(jpeg=lambda data, size: None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attlas.engine.runtime.decoders.loading", lambda: loaded)
        filler = HostFiller(CENTER, OrtCopies())
        pixels = filler.pixels(6)
        data = encode(make_picture(0))
        assert len(list(filler.fill(pixels, [data] * 5))) == 5
    assert seen == [False, False, True]
    assert np.array_equal(pixels[0], pixels[4])
    assert not pixels[5].any()


def test_the_shared_photographs_are_as_pillow_decodes_them(shared: Path, fast: Fast) -> None:
    """By the recipe of most models."""
    recipe = Recipe((248, 248), (224, 224), "center", "bicubic", HALF, HALF)
    for path in sorted((shared / "images").rglob("*.JPEG")) + sorted((shared / "images").rglob("*.jpg")):
        assert_as_pillow(path.read_bytes(), recipe, fast)
        assert decode(path.read_bytes(), recipe).pixels.shape == (224, 224, 3)

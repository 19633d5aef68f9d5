"""Pixels equal those of timm's evaluation transform, bit for bit."""

import io
import json
import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attlas.engine import Session, Store, run
from attlas.engine.runtime.decode import (
    MAX_PIXELS,
    NARROW,
    RANGE,
    WIDE,
    DecodeError,
    colours_of,
    crop_box,
    decode,
    decode_into,
    prepare,
)
from attlas.engine.runtime.fast import load
from attlas.engine.sources import SUFFIXES
from attlas.errors import AttlasError
from attlas.exporter.spec import Recipe
from PIL import Image
from support import make_picture

RECIPES = {
    "center": Recipe((248, 248), (224, 224), "center", "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "squash": Recipe((64, 80), (64, 80), "squash", "bilinear", (0.5,) * 3, (0.5,) * 3),
    "border": Recipe((96, 96), (96, 96), "border", "bicubic", (0.5, 0.4, 0.3), (0.5,) * 3),
    "tall": Recipe((110, 55), (96, 48), "center", "bicubic", (0.5,) * 3, (0.5,) * 3),
}


def timm_pixels(picture: Image.Image, recipe: Recipe) -> Any:
    """What timm's transform gives before it normalises."""
    pytest.importorskip("timm")
    from timm.data.transforms_factory import transforms_imagenet_eval

    # The percentage of which timm's floor gives the recipe's resize.
    pct = recipe.crop[0] / (recipe.resize[0] + 0.5) if recipe.resize != recipe.crop else 1.0
    transform = transforms_imagenet_eval(
        img_size=recipe.crop, crop_pct=pct, crop_mode=recipe.crop_mode, interpolation=recipe.interpolation,
        mean=recipe.mean, std=recipe.std, normalize=False,
    )  # fmt: skip
    return transform(picture.convert("RGB")).permute(1, 2, 0).numpy()


def encode(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("size", [(500, 333), (333, 500), (224, 224), (248, 248), (40, 900), (31, 17), (1, 1)])
def test_every_recipe_and_shape_gives_timms_pixels(name: str, size: tuple[int, int]) -> None:
    """Upscaled, downscaled, wide, tall, and a single pixel."""
    picture = make_picture(3, *size) if size != (1, 1) else Image.new("RGB", (1, 1), (10, 200, 30))
    pixels, original, remarks = decode(encode(picture), RECIPES[name])
    assert original == (size[1], size[0])
    assert remarks == ()
    np.testing.assert_array_equal(pixels, timm_pixels(picture, RECIPES[name]))


@pytest.mark.parametrize(
    ("picture", "kind"),
    [
        (make_picture(1, 300, 200).convert("L"), "JPEG"),
        (make_picture(1, 300, 200).convert("CMYK"), "JPEG"),
        (make_picture(1, 300, 200).convert("RGBA"), "PNG"),
        (make_picture(1, 300, 200).convert("P"), "PNG"),
        (make_picture(1, 300, 200).convert("P"), "GIF"),
        (make_picture(1, 300, 200).convert("1"), "PNG"),
        (make_picture(1, 300, 200).convert("LA"), "PNG"),
        (make_picture(1, 300, 200), "WEBP"),
        (make_picture(1, 300, 200), "TIFF"),
        (make_picture(1, 300, 200), "BMP"),
        (make_picture(1, 300, 200).convert("L").quantize(4), "PNG"),
        (make_picture(1, 300, 200).convert("CMYK"), "TIFF"),
        (make_picture(1, 300, 200).convert("1"), "TIFF"),
        (make_picture(1, 300, 200).convert("LA"), "TIFF"),
        (make_picture(1, 20_000, 90), "JPEG"),
    ],
    ids=lambda v: v if isinstance(v, str) else v.mode,
)
def test_every_mode_is_read_as_timm_reads_it(picture: Image.Image, kind: str) -> None:
    """Greyscale, CMYK, alpha, palettes, few bits, and one 20,000 pixels wide."""
    data = encode(picture, kind)
    reopened = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(decode(data, RECIPES["center"])[0], timm_pixels(reopened, RECIPES["center"]))


@pytest.mark.filterwarnings("ignore:Palette images")
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK"])
def test_transparency_is_treated_as_the_recipe_says(mode: str) -> None:
    """Dropped, laid on white, or resized with the colours; with the fast ways, too, and for a picture in memory."""
    picture = make_picture(1, 100, 80).convert("RGBA" if mode == "P" else mode)
    if "A" in picture.getbands():
        picture.putalpha(make_picture(2, 100, 80).convert("L"))
    if mode == "P":
        picture = picture.quantize(9)
    data = encode(picture, "TIFF" if mode == "CMYK" else "PNG")
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
    over = opened.convert("RGBA")
    white = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    plain = RECIPES["squash"]
    height, width = plain.resize
    expected = {
        "dropped": opened.convert("RGB").resize((width, height), Image.Resampling.BILINEAR),
        "white": white.resize((width, height), Image.Resampling.BILINEAR),
        "resized": opened.resize((width, height), Image.Resampling.BILINEAR).convert("RGB"),
    }
    for how, wanted in expected.items():
        recipe = replace(plain, transparency=how)
        whole = np.asarray(prepare(wanted, recipe))  # crops alone
        np.testing.assert_array_equal(decode(data, recipe).pixels, whole)
        out = np.empty_like(whole)
        decode_into(out, data, recipe, load())
        np.testing.assert_array_equal(out, whole)
        np.testing.assert_array_equal(np.asarray(prepare(colours_of(opened, recipe)[0], recipe)), whole)
    differ = {how: np.asarray(image) for how, image in expected.items()}
    assert (differ["white"] != differ["dropped"]).any() == (mode != "CMYK")


def test_a_jpeg_with_exif_rotation_is_read_unrotated() -> None:
    """As timm and torchvision read it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(make_picture(2, 300, 200), "JPEG", exif=exif)
    np.testing.assert_array_equal(
        decode(data, RECIPES["center"])[0], timm_pixels(Image.open(io.BytesIO(data)), RECIPES["center"])
    )


# -- more than 8 bits --------------------------------------------------------------------------------------------------

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)  # every shade
AS_IT_IS = Recipe((16, 16), (16, 16), "squash", "bilinear", (0.5,) * 3, (0.5,) * 3)


def tiff(values: Any, bits: int, *, kind: int = 1, order: str = "<", white_is_zero: bool = False) -> bytes:
    """A grey TIFF by hand: `kind` is 1 of unsigned integers, 2 of signed ones, 3 of floats."""
    if bits == 12:
        odd, even = values.reshape(-1, 2).astype(np.uint16).T
        body = np.stack([odd >> 4, (odd & 15) << 4 | even >> 8, even & 255], axis=1).astype(np.uint8).tobytes()
    elif bits < 8:
        each = values.reshape(-1, 8 // bits)
        body = sum(each[:, i].astype(np.uint8) << (8 - bits * (i + 1)) for i in range(8 // bits)).tobytes()
    else:
        body = values.astype(f"{order}{' uif'[kind]}{bits // 8}").tobytes()
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 8, 277: 1, 278: height,
            279: len(body), 339: kind}  # fmt: skip
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    entries = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    return (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(body)) + body + entries


def pgm(values: Any, white: int) -> bytes:
    return f"P5 {values.shape[1]} {values.shape[0]} {white}\n".encode() + values.astype(">u2").tobytes()


WIDE_PICTURES = {
    "16-bit PNG": encode(Image.fromarray(GREY.astype(np.uint16) * 257)),
    "16-bit TIFF": tiff(GREY.astype(np.uint16) * 257, 16),
    "16-bit TIFF, big-endian": tiff(GREY.astype(np.uint16) * 257, 16, order=">"),
    "16-bit TIFF, white is zero": tiff(65535 - GREY.astype(np.uint16) * 257, 16, white_is_zero=True),
    "16-bit TIFF, signed": tiff(GREY.astype(np.int16) * 128, 16, kind=2),
    "16-bit TIFF, compressed": encode(Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF", compression="tiff_lzw"),
    "12-bit TIFF": tiff(GREY.astype(np.uint16) * 16 + 15, 12),
    "32-bit TIFF": tiff(GREY.astype(np.uint32) << 24, 32),
    "32-bit TIFF, signed": tiff(GREY.astype(np.int32) << 23, 32, kind=2),
    "float TIFF": tiff(GREY / 255, 32, kind=3),
    "float TIFF, big-endian": tiff(GREY / 255, 32, kind=3, order=">"),
    "float TIFF, white is zero": tiff(1 - GREY / 255, 32, kind=3, white_is_zero=True),
    "PGM of 12 bits": pgm(np.rint(GREY / 255 * 4095), 4095),
    "PGM of 16 bits": pgm(GREY.astype(np.uint16) * 257, 65535),
    "16-bit JPEG 2000": encode(Image.fromarray(GREY.astype(np.uint16) * 257), "JPEG2000"),
}


@pytest.mark.parametrize("name", WIDE_PICTURES)
def test_a_grey_picture_of_many_bits_keeps_its_shades(name: str) -> None:
    """Pillow's own conversion makes all but the darkest white, or all of a float one black."""
    pixels, size, remarks = decode(WIDE_PICTURES[name], AS_IT_IS)
    np.testing.assert_array_equal(pixels, np.stack([GREY] * 3, axis=-1))
    assert size == (16, 16)
    assert remarks == (WIDE,)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_picture_of_few_bits_reaches_from_black_to_white(bits: int) -> None:
    """In TIFF and in PNG."""
    white = 2**bits - 1
    values = GREY % (white + 1)
    expected = np.stack([values * (255 // white)] * 3, axis=-1)
    np.testing.assert_array_equal(decode(tiff(values, bits), AS_IT_IS)[0], expected)
    rows = np.packbits((values[..., None] >> np.arange(bits - 1, -1, -1)) & 1).reshape(16, -1)
    data = png(16, 16, bits, 0, b"".join(b"\0" + row.tobytes() for row in rows))
    assert decode(data, AS_IT_IS).remarks == ()
    np.testing.assert_array_equal(decode(data, AS_IT_IS)[0], expected)


def test_grey_and_colours_of_16_bits_agree() -> None:
    """The same shades as grey and as RGB are the same pixels, between the 256 shades, too."""
    values = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16) + np.arange(256, dtype=np.uint16).reshape(16, 16)
    rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in values)
    colours = decode(png(16, 16, 16, 2, rows), AS_IT_IS)
    np.testing.assert_array_equal(colours.pixels, decode(encode(Image.fromarray(values)), AS_IT_IS).pixels)
    assert colours.remarks == ()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tiff(GREY.astype(np.int32) - 5, 32, kind=2), "has values from -5 to 250, where 0 is black and 2147483647"),
        (tiff(GREY.astype(np.int16) - 5, 16, kind=2), "has values from -5 to 250, where 0 is black and 32767 white"),
        (tiff(GREY, 32, kind=2), "has no value above 255, where 2147483647 is white, so that all of it would be black"),
        (tiff(GREY, 32, kind=3), "has floating-point values from 0 to 255, where 0 is black and 1 white"),
        (tiff(GREY / 255 - 0.5, 32, kind=3), "has floating-point values from -0.5 to 0.5"),
        (tiff(np.where(GREY == 7, np.nan, GREY / 255), 32, kind=3), "has floating-point values from nan to nan"),
        (tiff(np.where(GREY == 7, np.inf, GREY / 255), 32, kind=3), "has floating-point values from 0 to inf"),
    ],
)
def test_values_without_a_known_black_and_white_are_an_error(data: bytes, message: str) -> None:
    """No guess: it costs the image, and says what to do."""
    with pytest.raises(DecodeError, match="rescale") as caught:
        decode(data, AS_IT_IS)
    assert str(caught.value).startswith(message)


def test_12_bits_in_a_16_bit_file_are_noticed() -> None:
    """Such a file does not say so: it is read as it says, and counted."""
    found = decode(encode(Image.fromarray(GREY.astype(np.uint16) * 16)), AS_IT_IS)
    np.testing.assert_array_equal(found.pixels[..., 0], GREY >> 4)
    assert found.remarks == (WIDE, NARROW)
    assert decode(encode(Image.new("I;16", (9, 9))), AS_IT_IS).remarks == (WIDE,)  # all black is what it is


def test_a_run_says_how_it_read_them(tiny_graph: Path, tmp_path: Path) -> None:
    """As a note with their number, in the plan and in the account; and their rows are those of the 8-bit pictures."""
    for folder, factor in (("eight", 1), ("sixteen", 257)):
        (tmp_path / folder).mkdir()
        for seed in range(3):
            grey = np.asarray(make_picture(seed).convert("L"))
            Image.fromarray(grey.astype(np.uint8 if factor == 1 else np.uint16) * factor).save(
                tmp_path / folder / f"{seed}.png"
            )
    eight = run(tiny_graph, tmp_path / "eight", tmp_path / "eight.zarr")
    sixteen = run(tiny_graph, tmp_path / "sixteen", tmp_path / "sixteen.zarr")
    assert eight.notes == ()
    assert sixteen.notes == (f"3 {WIDE}",)
    stores = Store(eight.path), Store(sixteen.path)
    np.testing.assert_array_equal(stores[0].read("attention"), stores[1].read("attention"))
    assert stores[1].read("valid").all()
    assert stores[1].plan.identity["range"] == RANGE
    assert stores[1].record["runs"][-1]["remarks"] == {WIDE: 3}


def test_a_session_reads_them_alike(tiny_graph: Path, tmp_path: Path) -> None:
    """As a path, as bytes and as a Pillow image; what has no known black and white is one line."""
    session = Session(tiny_graph)
    grey = np.asarray(make_picture(1).convert("L"))
    wide = Image.fromarray(grey.astype(np.uint16) * 257)
    wide.save(tmp_path / "x.png")
    expected = session([Image.fromarray(grey)])["logits"]
    for image in (wide, tmp_path / "x.png", encode(wide)):
        np.testing.assert_array_equal(session([image])["logits"], expected)
    with pytest.raises(AttlasError, match=r"^a picture: cannot be decoded .has values from -5"):
        session([Image.fromarray(grey.astype(np.int32) * 0 - 5)])


def test_a_store_of_an_earlier_version_goes_on_with_8_bits_alone(tiny_graph: Path, tmp_path: Path) -> None:
    """Its plan names no rule: what is of 8 bits is read as ever, and what was clipped then is not mixed in."""
    for seed in range(40):
        make_picture(seed).save(tmp_path / f"{seed:02d}.png")

    def begin(store: Path) -> None:
        run(tiny_graph, tmp_path, store, shard=(1, 2))
        root = json.loads((store / "zarr.json").read_text())
        del root["attributes"]["plan"]["identity"]["range"]
        (store / "zarr.json").write_text(json.dumps(root))

    begin(tmp_path / "a.zarr")
    assert run(tiny_graph, tmp_path, tmp_path / "a.zarr").finished
    begin(tmp_path / "b.zarr")
    path = tmp_path / "02.png"
    time, size = path.stat().st_mtime_ns, path.stat().st_size
    data = encode(Image.fromarray(np.full((5, 5), 40_000, np.uint16)))
    path.write_bytes(data + bytes(size - len(data)))
    os.utime(path, ns=(time, time))
    with pytest.raises(AttlasError, match=r"b\.zarr: was begun by an earlier version.*02\.png is one.*--overwrite"):
        run(tiny_graph, tmp_path, tmp_path / "b.zarr")


# -- formats -----------------------------------------------------------------------------------------------------------

OPTIONS: dict[str, Any] = {".webp": {"lossless": True}, ".avif": {"quality": 100, "subsampling": "4:4:4"}}


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_suffix_that_is_listed_can_be_read(suffix: str, tmp_path: Path) -> None:
    """A file as Pillow writes it under that suffix."""
    picture = make_picture(4, 64, 64)
    picture = picture.convert("L") if suffix == ".pgm" else picture
    Image.init()
    picture.save(tmp_path / f"x{suffix}", Image.EXTENSION[suffix], **OPTIONS.get(suffix, {}))
    pixels = decode((tmp_path / f"x{suffix}").read_bytes(), RECIPES["squash"])[0]
    expected = timm_pixels(Image.open(tmp_path / f"x{suffix}"), RECIPES["squash"])
    np.testing.assert_array_equal(pixels, expected)
    assert np.abs(expected.astype(float) - timm_pixels(picture, RECIPES["squash"])).mean() < 8


def test_the_first_picture_of_several_is_read() -> None:
    """MPO, as cameras write it under .jpg, and animations."""
    expected = decode(encode(make_picture(1, 64, 64)), RECIPES["squash"])[0].astype(float)
    for kind in ("MPO", "GIF", "WEBP", "PNG", "TIFF"):
        data = encode(make_picture(1, 64, 64), kind, save_all=True, append_images=[make_picture(2, 64, 64)])
        assert np.abs(decode(data, RECIPES["squash"])[0] - expected).mean() < 8


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (bytes(4096), "holds nothing but zero bytes"),
        (b"\n<!DOCTYPE HTML>\n<html>404", "is a web page, not an image"),
        (b"\xef\xbb\xbf<html lang='en'>", "is a web page, not an image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git LFS pointer .*git lfs pull"),
        (b"hello", "is in no image format that is read"),
        (b"%PDF-1.7", "is a PDF, not an image"),
        (bytes(128) + b"DICM" + b"\1" * 9, "is DICOM, which is not read; export it"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "is HEIC, which is not read; convert it"),
        (b"II*\0\1\2\3\4", "is TIFF, but damaged or of a kind that is not read"),
        (b"\x89PNG\r\n\x1a\n" + b"\1" * 20, "is PNG, but damaged"),
    ],
)
def test_what_is_no_picture_is_called_by_its_name(data: bytes, message: str) -> None:
    """In one line that says what to do where something can be done."""
    with pytest.raises(DecodeError, match=f"^{message}"):
        decode(data, RECIPES["center"])


@pytest.mark.parametrize(
    "data",
    [b"", b"not a picture", encode(make_picture(1, 300, 200), "JPEG")[:2000], encode(make_picture(1, 99, 99))[:300]],
    ids=["empty", "text", "truncated JPEG", "truncated PNG"],
)
def test_what_pillow_cannot_read_is_a_decode_error(data: bytes) -> None:
    """In one line, without an address of memory."""
    with pytest.raises(DecodeError) as caught:
        decode(data, RECIPES["center"])
    assert str(caught.value)
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)


def png(width: int, height: int, bits: int, kind: int, rows: bytes) -> bytes:
    """A PNG by hand: `kind` is 0 of grey and 2 of colours."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_refused_from_its_header() -> None:
    """Before anything of that size is allocated."""
    with pytest.raises(DecodeError, match="limit"):
        decode(png(60_000, 60_000, 8, 2, b""), RECIPES["center"])


def test_a_picture_whose_resize_would_explode_is_refused() -> None:
    """One pixel high and 30,000 wide becomes 248 x 7,440,000 when the shorter edge is scaled."""
    with pytest.raises(DecodeError, match="resized"):
        decode(encode(Image.new("RGB", (30_000, 1))), RECIPES["center"])
    assert MAX_PIXELS < 10**8


def test_an_eps_file_under_an_image_name_starts_no_program() -> None:
    """Its decoder would run Ghostscript."""
    with pytest.raises(DecodeError):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", RECIPES["center"])


@pytest.mark.parametrize("name", ["center", "squash", "tall"])
def test_the_crop_box_is_where_the_crop_was_taken(name: str) -> None:
    """A picture of coordinates, cropped, shows the box's own corners."""
    height, width = 480, 640
    y, x = np.mgrid[0:height, 0:width]
    coordinates = np.stack([y / height * 255, x / width * 255, 0 * x], axis=-1).astype(np.uint8)
    recipe = RECIPES[name]
    pixels = decode(encode(Image.fromarray(coordinates)), recipe)[0].astype(float)
    top, left, bottom, right = crop_box(height, width, recipe)
    assert pixels[0, 0, 0] == pytest.approx(top / height * 255, abs=4)
    assert pixels[0, 0, 1] == pytest.approx(left / width * 255, abs=4)
    assert pixels[-1, 0, 0] == pytest.approx(bottom / height * 255, abs=4)
    assert pixels[0, -1, 1] == pytest.approx(right / width * 255, abs=4)

"""Pixels equal those of timm's evaluation transform, bit for bit."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from attlas.engine.decode import MAX_PIXELS, DecodeError, crop_box, decode
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
    pixels, original = decode(encode(picture), RECIPES[name])
    assert original == (size[1], size[0])
    np.testing.assert_array_equal(pixels, timm_pixels(picture, RECIPES[name]))


def sixteen_bit() -> Image.Image:
    return Image.fromarray((np.arange(60 * 50).reshape(50, 60) * 20).astype(np.uint16))


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
        (sixteen_bit(), "PNG"),
        (sixteen_bit(), "TIFF"),
        (make_picture(1, 20_000, 90), "JPEG"),
    ],
    ids=lambda v: v if isinstance(v, str) else v.mode,
)
def test_every_mode_is_read_as_timm_reads_it(picture: Image.Image, kind: str) -> None:
    """Greyscale, CMYK, alpha, palettes, 16 bits, and one 20,000 pixels wide."""
    data = encode(picture, kind)
    reopened = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(decode(data, RECIPES["center"])[0], timm_pixels(reopened, RECIPES["center"]))


def test_a_jpeg_with_exif_rotation_is_read_unrotated() -> None:
    """As timm and torchvision read it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(make_picture(2, 300, 200), "JPEG", exif=exif)
    np.testing.assert_array_equal(
        decode(data, RECIPES["center"])[0], timm_pixels(Image.open(io.BytesIO(data)), RECIPES["center"])
    )


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


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_refused_from_its_header() -> None:
    """Before anything of that size is allocated."""
    with pytest.raises(DecodeError, match="limit"):
        decode(png_header(60_000, 60_000), RECIPES["center"])


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

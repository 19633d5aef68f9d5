"""Decode a picture to the graph's pixels by the graph's recipe, without torch: the only module that uses Pillow.

The pixels equal those of timm's evaluation transform bit for bit (`timm.data.create_transform`, which is torchvision's
Resize and CenterCrop on a Pillow image converted to RGB), or those of the library that the recipe comes from, where it
treats transparency otherwise. That conversion would clip grey pictures with more than 8
bits per sample; here the range of their format is mapped to black to white instead (`RANGE`).
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from ...exporter.spec import Recipe

__all__ = [
    "MAX_PIXELS",
    "PILLOW",
    "RANGE",
    "DecodeError",
    "DecodeJpeg",
    "Fast",
    "Picture",
    "Pixels",
    "Resample",
    "border_colour",
    "colours_of",
    "crop_box",
    "decode",
    "decode_into",
    "decode_mask",
    "placed",
    "prepare",
    "rgbx",
    "size_of",
]

# Pillow's own threshold for a decompression bomb, here an error: at most 268 MB of RGB per worker.
MAX_PIXELS = 89_478_485

# Only these formats are decoded, so that no file can start another program through its decoder (as EPS does).
# The JPEG opener also handles MPO.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")

# How samples of more than 8 bits become 8 bits, as a name for the plan: full unsigned range, or 0 to 1 for floats.
RANGE = "format range"
WIDE = "grey pictures have more than 8 bits a sample: 0 is black, the largest value of their format (float: 1) is white"
NARROW = (
    "of them use less than a sixteenth of that range and are nearly one shade (12 bits in a 16-bit file?): rescale them"
)
# TIFF's tags
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
_WIDE_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")

# First bytes of other files that have an image's name.
_OTHERS = {
    b"version https://git-lfs": "is a Git LFS pointer and not the picture itself: `git lfs pull` fetches it",
    b"%PDF": "is a PDF, not an image",
    b"<svg": "is SVG, which has no pixels: render it as PNG",
    b"<!doctype html": "is a web page, not an image: the download went wrong",
    b"<html": "is a web page, not an image: the download went wrong",
    b"<?xml": "is XML, not an image",
    b"PK\x03\x04": "is a zip archive, not an image",
    b"\x1f\x8b": "is compressed (gzip), not an image",
}
# First bytes of formats that Pillow recognises but may not decode.
_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\0\0\0\x0cjP": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
}
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC"}

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


class DecodeError(Exception):
    """A picture that cannot be read; the run continues without it."""


type Pixels = npt.NDArray[np.uint8]


class Picture(NamedTuple):
    """A decoded picture.

    Attributes:
        pixels: (row, column, channel) uint8 RGB of the recipe's crop.
        size: (height, width) of the original in pixels.
        remarks: notes that a run counts and shows: `WIDE` if `RANGE` was used, and `NARROW`.
    """

    pixels: Pixels
    size: tuple[int, int]
    remarks: tuple[str, ...] = ()


type Resample = Callable[[Pixels, tuple[int, int], str, tuple[int, int], Pixels], None]
type DecodeJpeg = Callable[[bytes, tuple[int, int] | None], Pixels | None]


class Fast(NamedTuple):
    """Faster ways that give Pillow's pixels (`fast.load`); Pillow does what is None.

    Attributes:
        resample: `resample.resample`.
        jpeg: `jpeg.decode_jpeg`; used together with `resample`.
    """

    resample: Resample | None = None
    jpeg: DecodeJpeg | None = None


PILLOW = Fast()


def decode(data: bytes, recipe: Recipe) -> Picture:
    """The graph's pixels of an encoded picture.

    Raises:
        DecodeError: Pillow cannot read it, it is larger than `MAX_PIXELS` before or after the resize, or its values
            for black and white are unknown.
    """
    pixels = np.empty((*recipe.crop, 3), np.uint8)
    return Picture(pixels, *decode_into(pixels, data, recipe))


def decode_into(
    out: Pixels, data: bytes, recipe: Recipe, fast: Fast = PILLOW
) -> tuple[tuple[int, int], tuple[str, ...]]:
    """Write the graph's pixels of an encoded picture into `out`; returns its size and remarks (see `Picture`).

    Args:
        out: (row, column, channel) uint8 in C order, of the recipe's crop. After an error its contents are undefined.
        data: the bytes of an image file.
        recipe: the graph's recipe.
        fast: the faster ways to use; neither pixels nor errors depend on them.

    Raises:
        DecodeError: as for `decode`.
    """
    try:
        if fast.jpeg is not None and (source := fast.jpeg(data, None)) is not None:
            _place(source, recipe, fast, out)
            return (source.shape[0], source.shape[1]), ()
        with warnings.catch_warnings():
            # Pillow warns of corrupt EXIF, odd palettes and the like, but only the pixels matter here.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_formats()) as picture:
                size = (picture.height, picture.width)
                _bounded(size, "has")
                if fast.jpeg is not None and picture.format in ("JPEG", "MPO") and picture.mode in ("L", "RGB"):
                    source = fast.jpeg(data, size)
                    if source is not None:
                        _place(source, recipe, fast, out)
                        return size, ()
                colours, remarks = colours_of(picture, recipe)
            if fast.resample is None or colours.mode != "RGB":
                out[...] = np.asarray(prepare(colours, recipe))
            else:
                _place(rgbx(colours), recipe, fast, out)
            return size, remarks
    except DecodeError:
        raise
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise DecodeError(_unidentified(data)) from None
    except Exception as error:  # Pillow's decoders raise many types; one image must not end the run.
        text = " ".join(str(error).split()).split("<_io.BytesIO")[0].strip()
        raise DecodeError(text or type(error).__name__) from None


def decode_mask(data: bytes, recipe: Recipe, known: tuple[int, int]) -> tuple[npt.NDArray[np.bool_], tuple[int, int]]:
    """A mask of an object in an encoded picture: (row, column) bool of the recipe's crop, and its own (height, width).

    Every value but 0 is the object; transparency is no value. A mask of the picture's size `known` is resized, by the
    nearest pixel, and cropped as the picture is; another one of the crop's size is taken as it is.

    Raises:
        DecodeError: Pillow cannot read it, or it is larger than `MAX_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a bomb, which the next lines refuse
            with Image.open(io.BytesIO(data), formats=_formats()) as picture:
                size, bands = (picture.height, picture.width), len(picture.getbands())
                bands -= picture.getbands()[-1] == "A"
                _bounded(size, "has")
                values = np.asarray(picture)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DecodeError(" ".join(str(error).split("<_io.BytesIO")[0].split()) or type(error).__name__) from None
    inside = (values.reshape(*size, -1)[..., :bands] != 0).any(axis=-1)
    if size == recipe.crop and size != known:
        return inside, size
    white = Image.fromarray(255 * inside.astype(np.uint8)).convert("RGB")
    nearest = dataclasses.replace(recipe, interpolation="nearest", mean=(0.0, 0.0, 0.0))
    return np.asarray(prepare(white, nearest))[..., 0] > 0, size


def size_of(data: bytes) -> tuple[int, int]:
    """(height, width) in pixels of an encoded picture that `decode` reads."""
    with Image.open(io.BytesIO(data), formats=_formats()) as picture:
        return picture.height, picture.width


def colours_of(picture: Image.Image, recipe: Recipe) -> tuple[Image.Image, tuple[str, ...]]:
    """A picture as 8-bit RGB, unless the recipe resizes it before, and its remarks (see `Picture`).

    Raises:
        DecodeError: its values for black and white are unknown.
    """
    if picture.mode in _WIDE_MODES:
        grey, remarks = _eight_bits(picture)
        return grey.convert("RGB"), remarks
    if recipe.transparency == "resized" and picture.mode not in ("L", "RGB"):
        return picture.copy(), ()  # its file may be closed before it is resized
    if recipe.transparency == "white" and ("A" in picture.getbands() or picture.info.get("transparency") is not None):
        over = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", over.size, (255, 255, 255, 255)), over)
    return picture.convert("RGB"), ()


def rgbx(picture: Image.Image) -> Pixels:
    """An RGB picture as (row, column, 4) uint8: RGB and a byte of anything, as Pillow keeps it."""
    # Writable, as from a JPEG: numba takes twice the time to recognise what is not.
    data = bytearray(picture.tobytes("raw", "RGBX"))
    return np.frombuffer(data, np.uint8).reshape(picture.height, picture.width, 4)


def prepare(picture: Image.Image, recipe: Recipe) -> Image.Image:
    """Resize and crop a picture by the recipe, as timm's evaluation transform does; RGB in the end."""
    height, width = resized(picture.height, picture.width, recipe)
    _bounded((height, width), "would be resized to")
    # Like torchvision's Resize, do not resample a picture that already has the right size.
    if (picture.height, picture.width) != (height, width):
        picture = picture.resize((width, height), _FILTERS[recipe.interpolation])
    crop_height, crop_width = recipe.crop
    if crop_height > height or crop_width > width:
        missing_y, missing_x = max(0, crop_height - height), max(0, crop_width - width)
        picture = picture.convert("RGB")
        border = (missing_x // 2, missing_y // 2, (missing_x + 1) // 2, (missing_y + 1) // 2)
        picture = ImageOps.expand(picture, border, border_colour(recipe))
        height, width = picture.height, picture.width
    top, left = _offset(height, crop_height, recipe), _offset(width, crop_width, recipe)
    cropped = picture.crop((left, top, left + crop_width, top + crop_height))
    return cropped if cropped.mode == "RGB" else cropped.convert("RGB")


def _place(source: Pixels, recipe: Recipe, fast: Fast, out: Pixels) -> None:
    """`prepare` without Pillow: (row, column, 4) RGB and a byte of anything, resized and cropped into `out`."""
    assert fast.resample is not None
    (height, width), offset = placed(source.shape[0], source.shape[1], recipe)
    if recipe.crop[0] > height or recipe.crop[1] > width:
        out[...] = border_colour(recipe)
    fast.resample(source, (height, width), recipe.interpolation, offset, out)


def placed(height: int, width: int, recipe: Recipe) -> tuple[tuple[int, int], tuple[int, int]]:
    """What `resample` makes of a picture: (height, width) after the resize, and (row, column) of the crop in that.

    Raises:
        DecodeError: it would be too large, or nothing.
    """
    size = resized(height, width, recipe)
    _bounded(size, "would be resized to")
    return size, (_offset(size[0], recipe.crop[0], recipe), _offset(size[1], recipe.crop[1], recipe))


def border_colour(recipe: Recipe) -> tuple[int, int, int]:
    """The colour around a picture that is smaller than the crop."""
    if recipe.crop_mode != "border":
        return 0, 0, 0
    red, green, blue = (min(max(round(255 * v), 0), 255) for v in recipe.mean)
    return red, green, blue


def resized(height: int, width: int, recipe: Recipe) -> tuple[int, int]:
    """(height, width) of a picture after the recipe's resize."""
    target_h, target_w = recipe.resize
    if recipe.crop_mode == "squash":
        return target_h, target_w
    if recipe.crop_mode == "center" and target_h == target_w:
        # torchvision: the shorter edge becomes the target, the longer one is truncated.
        if width <= height:
            return int(target_h * height / width), target_h
        return target_h, int(target_h * width / height)
    ratios = (height / target_h, width / target_w)
    ratio = max(ratios) if recipe.crop_mode == "border" else min(ratios)
    return round(height / ratio), round(width / ratio)


def crop_box(height: int, width: int, recipe: Recipe) -> tuple[float, float, float, float]:
    """The position of the crop in the original picture: (top, left, bottom, right) in its pixels.

    A border that padding added is outside the picture.
    """
    new_height, new_width = resized(height, width, recipe)
    crop_height, crop_width = recipe.crop
    top = _offset(new_height, crop_height, recipe)
    left = _offset(new_width, crop_width, recipe)
    y, x = height / new_height, width / new_width
    return top * y, left * x, (top + crop_height) * y, (left + crop_width) * x


@functools.cache
def _formats() -> list[str]:
    """The formats of `FORMATS` that this Pillow supports."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _eight_bits(picture: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """A grey picture of more than 8 bits converted to 8 bits by `RANGE`, and its remarks.

    Integers lose their low bits, as in Pillow for 16-bit colours; floats are rounded, as in scikit-image.

    Raises:
        DecodeError: it has values below 0, a float above 1 or NaN, or would be completely black.
    """
    tags = picture.tag_v2 if isinstance(picture, TiffImagePlugin.TiffImageFile) else {}
    values = np.asarray(picture)
    if picture.mode == "F":
        low, high, white = float(values.min()), float(values.max()), 1
        if not (low >= 0 and high <= 1):
            raise DecodeError(
                f"has floating-point values from {low:g} to {high:g}, where 0 is black and 1 white; rescale them"
            )
        grey = np.rint(values * 255).astype(np.uint8)
    else:
        # Pillow spreads PGM's maxval and JPEG 2000's precision over 16 bits.
        bits, signed = int(tags.get(BITS, (16,))[0]), tags.get(SAMPLE_FORMAT, (1,))[0] == 2
        if bits == 32 and not signed:
            values = values.view(np.uint32)
        low, high, white = int(values.min()), int(values.max()), (1 << (bits - signed)) - 1
        if low < 0 or high > white:
            raise DecodeError(f"has values from {low} to {high}, where 0 is black and {white} white; rescale them")
        grey = (values >> (bits - signed - 8)).astype(np.uint8)
    if high > 0 and not grey.any():
        raise DecodeError(
            f"has no value above {high:g}, where {white} is white, so that all of it would be black; rescale it"
        )
    if tags.get(PHOTOMETRIC) == 0:  # white is zero; up to 8 bits, Pillow inverts it itself
        grey = 255 - grey
    return Image.fromarray(grey), (WIDE, NARROW) if 0 < high < white / 16 else (WIDE,)


def _unidentified(data: bytes) -> str:
    """The kind of a file that Pillow does not recognise, from its first bytes."""
    if not data:
        return "the file is empty"
    if not any(data):
        return "holds nothing but zero bytes: the copy or download went wrong"
    begin = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for mark, what in _OTHERS.items():
        if begin.startswith(mark.lower()):
            return what
    if data[128:132] == b"DICM":
        return "is DICOM, which is not read; export it as PNG or TIFF"
    known = next((name for mark, name in _MAGIC.items() if data.startswith(mark)), None)
    if data[4:8] == b"ftyp":
        known = _BRANDS.get(data[8:12], known)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        known = "WebP"
    if known == "HEIC":
        return "is HEIC, which is not read; convert it to JPEG or PNG"
    if known:
        such = " (such as 64-bit or coloured floats)" if known == "TIFF" else ""
        return f"is {known}, but damaged or of a kind that is not read{such}"
    return f"is in no image format that is read ({', '.join(FORMATS)})"


def _offset(edge: int, crop: int, recipe: Recipe) -> int:
    if edge < crop:
        return -((crop - edge) // 2)
    return (edge - crop) // 2 if recipe.crop_rounding == "down" else round((edge - crop) / 2.0)


def _bounded(size: tuple[int, int], what: str) -> None:
    if math.prod(size) > MAX_PIXELS:
        raise DecodeError(f"{what} {size[1]}x{size[0]} pixels, more than the limit of {MAX_PIXELS}")
    if 0 in size:
        raise DecodeError(f"{what} {size[1]}x{size[0]} pixels")

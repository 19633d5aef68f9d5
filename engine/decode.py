"""Bytes of a picture to the graph's pixels, by the graph's recipe, without torch: the one module that knows Pillow.

The pixels equal those of timm's evaluation transform bit for bit (`timm.data.create_transform`, which is torchvision's
Resize and CenterCrop on a Pillow image converted to RGB).
"""

from __future__ import annotations

import io
import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from ..exporter.spec import Recipe

__all__ = ["MAX_PIXELS", "DecodeError", "crop_box", "decode", "prepare"]

# Pillow's own threshold for a decompression bomb, held here as an error: 268 MB of RGB per worker at most.
MAX_PIXELS = 89_478_485

# Formats are named, so that a file's content cannot call on a decoder that starts another program (EPS does).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "MPO", "AVIF")

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


class DecodeError(Exception):
    """A picture that cannot be read; the run goes on without it."""


def decode(data: bytes, recipe: Recipe) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    """The graph's pixels of an encoded picture.

    Returns:
        (row, column, channel) uint8 RGB of the recipe's crop, and the original's (height, width).

    Raises:
        DecodeError: Pillow cannot read it, or it is larger than `MAX_PIXELS`, before or after the resize.
    """
    try:
        with warnings.catch_warnings():
            # Corrupt EXIF, odd palettes and the like are warnings to Pillow, and its pixels are what counts here.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                size = (picture.height, picture.width)
                _bounded(size, "has")
                rgb = picture.convert("RGB")
            return np.asarray(prepare(rgb, recipe)), size
    except DecodeError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever their parsers meet; one image is one image.
        text = " ".join(str(error).split()).split("<_io.BytesIO")[0].strip()
        raise DecodeError(text or type(error).__name__) from None


def prepare(picture: Image.Image, recipe: Recipe) -> Image.Image:
    """Resize and crop an RGB picture by the recipe, as timm's evaluation transform does."""
    height, width = resized(picture.height, picture.width, recipe)
    _bounded((height, width), "would be resized to")
    # torchvision's Resize leaves a picture alone whose size is right already.
    if (picture.height, picture.width) != (height, width):
        picture = picture.resize((width, height), _FILTERS[recipe.interpolation])
    crop_height, crop_width = recipe.crop
    if crop_height > height or crop_width > width:
        missing_y, missing_x = max(0, crop_height - height), max(0, crop_width - width)
        border = (missing_x // 2, missing_y // 2, (missing_x + 1) // 2, (missing_y + 1) // 2)
        fill: Any = tuple(round(255 * v) for v in recipe.mean) if recipe.crop_mode == "border" else 0
        picture = ImageOps.expand(picture, border, fill)
        height, width = picture.height, picture.width
    top = round((height - crop_height) / 2.0)
    left = round((width - crop_width) / 2.0)
    return picture.crop((left, top, left + crop_width, top + crop_height))


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
    """Where the crop lies in the original picture: (top, left, bottom, right) in its pixels.

    A border that padding added lies outside the picture.
    """
    new_height, new_width = resized(height, width, recipe)
    crop_height, crop_width = recipe.crop
    top = _offset(new_height, crop_height)
    left = _offset(new_width, crop_width)
    y, x = height / new_height, width / new_width
    return top * y, left * x, (top + crop_height) * y, (left + crop_width) * x


def _offset(edge: int, crop: int) -> int:
    return round((edge - crop) / 2.0) if edge >= crop else -((crop - edge) // 2)


def _bounded(size: tuple[int, int], what: str) -> None:
    if math.prod(size) > MAX_PIXELS:
        raise DecodeError(f"{what} {size[1]}x{size[0]} pixels, more than the limit of {MAX_PIXELS}")
    if 0 in size:
        raise DecodeError(f"{what} {size[1]}x{size[0]} pixels")

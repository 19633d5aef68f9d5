"""Convert the kinds of pictures that people have in a notebook to the pixels of a graph."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import AttlasError, UsageError
from ...exporter.spec import GraphSpec
from ..sources.files import expanded
from .decode import DecodeError, colours_of, decode, prepare, size_of

__all__ = ["crop_of", "each_picture", "name_of", "original_size"]

KINDS = "a path, encoded bytes, a Pillow image or a uint8 array"


def each_picture(images: Any) -> list[Any]:
    """A list of pictures from one picture, several, or one array of several.

    Raises:
        UsageError: it is something else.
    """
    if isinstance(images, str | os.PathLike | bytes | bytearray) or hasattr(images, "convert"):
        return [images]
    if _is_array(images):
        values = _array(images)
        if values.dtype.kind in "OUT":  # an array or a table's column of paths
            return list(values.reshape(-1))
        if values.ndim == 4:
            return list(values)
        return [values]
    if isinstance(images, Mapping) or not isinstance(images, Iterable):
        raise UsageError(f"{type(images).__name__}: pass {KINDS}, or several of these")
    return list(images)


def name_of(image: Any, index: int) -> str:
    """What a picture is called: its file's name, or its number."""
    return Path(expanded(image)).name if isinstance(image, str | os.PathLike) else f"picture {index}"


def original_size(image: Any) -> tuple[int, int] | None:
    """(height, width) in pixels of a picture that `crop_of` takes; None for an array, which is already a crop."""
    if hasattr(image, "convert"):
        return int(image.height), int(image.width)
    if isinstance(image, str | os.PathLike):
        return size_of(Path(expanded(image)).read_bytes())
    return size_of(bytes(image)) if isinstance(image, bytes | bytearray) else None


def crop_of(image: Any, spec: GraphSpec) -> npt.NDArray[np.uint8]:
    """The graph's pixels of one picture: (row, column, channel) uint8 RGB.

    Raises:
        UsageError: it is not a picture, or an array of another form.
        AttlasError: it cannot be read.
    """
    if not hasattr(image, "convert") and not isinstance(image, str | os.PathLike | bytes | bytearray):
        if _is_array(image):
            return _cropped(_array(image), spec)
        raise UsageError(f"{type(image).__name__}: is no picture; pass {KINDS}")
    try:
        if hasattr(image, "convert"):
            return np.asarray(prepare(colours_of(image, spec.recipe)[0], spec.recipe))
        data = bytes(image) if isinstance(image, bytes | bytearray) else Path(expanded(image)).read_bytes()
        return decode(data, spec.recipe)[0]
    except OSError as error:
        raise AttlasError(f"{image!s}: cannot be read ({error.strerror})") from None
    except DecodeError as error:
        bare = "a picture of bytes" if isinstance(image, bytes | bytearray) else "a picture"
        name = image if isinstance(image, str | os.PathLike) else bare
        raise AttlasError(f"{name!s}: cannot be decoded ({error})") from None


def _is_array(value: Any) -> bool:
    """Whether it is an array of any library: numpy, torch, jax, cupy, a column of a table."""
    return not isinstance(value, type) and (hasattr(value, "__array__") or hasattr(value, "__dlpack__"))


def _array(value: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(value) if hasattr(value, "__array__") else np.from_dlpack(value)
    except (TypeError, RuntimeError, ValueError, BufferError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UsageError(f"{type(value).__name__}: cannot be read as an array of this machine's ({reason})") from None


def _cropped(pixels: npt.NDArray[Any], spec: GraphSpec) -> npt.NDArray[np.uint8]:
    """Check an array that is already cropped, and put its channels last."""
    size = spec.image_size
    found = f"an array of shape {pixels.shape}, {pixels.dtype}"
    if pixels.dtype != np.uint8 and pixels.shape in ((*size, 3), (3, *size)):
        raise UsageError(
            f"{found}: this graph takes uint8 pixels from 0 to 255 and normalises them itself; undo what a transform "
            "did (x * std + mean, then times 255) and pass .round().astype('uint8'), or pass the file's path"
        )
    if pixels.shape == (3, *size) != (*size, 3):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.shape != (*size, 3):
        raise UsageError(
            f"{found}: this graph takes uint8 pixels of shape {(*size, 3)}; pass a path or a Pillow image "
            "(Image.fromarray makes one) to have it resized"
        )
    return pixels

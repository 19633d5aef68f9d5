"""Pictures as JPEG: the crop that the model saw, out of the store's sample, or made from the original file."""

from __future__ import annotations

import io
import os

import numpy as np
import numpy.typing as npt

from .. import originals
from .reading import AbsentError, Reader

__all__ = ["EDGE", "crop", "jpeg"]

EDGE = 144  # pixels of a thumbnail's longer edge


def crop(reader: Reader, image: int, folder: str | os.PathLike[str] | None) -> npt.NDArray[np.uint8]:
    """(row, column, channel) uint8.

    Raises:
        AbsentError: it is neither in the store's sample nor below `folder`, or does not read.
    """
    try:
        return originals.crop(reader.store, image, folder)
    except originals.NoPictureError as error:
        raise AbsentError(str(error)) from None


def jpeg(pixels: npt.NDArray[np.uint8], edge: int | None = None, quality: int = 90) -> bytes:
    """A JPEG file; scaled so that its longer edge has at most `edge` pixels."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if edge is not None:
        picture.thumbnail((edge, edge), Image.Resampling.BILINEAR, reducing_gap=None)
    target = io.BytesIO()
    picture.save(target, "JPEG", quality=quality)
    return target.getvalue()

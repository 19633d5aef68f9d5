"""Pictures as JPEG: the crop that the model saw, out of the store's sample, or made from the original file."""

from __future__ import annotations

import functools
import io
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...engine.sources.files import leads_out
from .reading import AbsentError, Reader

__all__ = ["EDGE", "crop", "jpeg"]

EDGE = 144  # pixels of a thumbnail's longer edge


def crop(reader: Reader, image: int, folder: str | os.PathLike[str] | None) -> npt.NDArray[np.uint8]:
    """(row, column, channel) uint8.

    Raises:
        AbsentError: it is neither in the store's sample nor below `folder`, or does not read.
    """
    store = reader.store
    if image in _sample(store.plan.sample):
        place = _sample(store.plan.sample)[image]
        return np.asarray(store.read("pixels", slice(place, place + 1))[0], np.uint8)
    if folder is None:
        raise AbsentError(
            f"the store keeps {len(store.plan.sample)} pictures, and not this one: --images DIR gives the others"
        )
    from ...engine.runtime.decode import DecodeError, decode  # Pillow is only needed here

    path = str(store.read("path", image))
    if leads_out(path):
        raise AbsentError("the store's path of this picture leads out of the folder of --images")
    try:
        return decode((Path(folder) / path).read_bytes(), store.spec.recipe)[0]
    except (OSError, DecodeError, ValueError):
        raise AbsentError("this picture is not in the folder of --images, or does not read there") from None


@functools.lru_cache(maxsize=16)
def _sample(sample: tuple[int, ...]) -> dict[int, int]:
    return {image: place for place, image in enumerate(sample)}


def jpeg(pixels: npt.NDArray[np.uint8], edge: int | None = None, quality: int = 90) -> bytes:
    """A JPEG file; scaled so that its longer edge has at most `edge` pixels."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if edge is not None:
        picture.thumbnail((edge, edge), Image.Resampling.BILINEAR, reducing_gap=None)
    target = io.BytesIO()
    picture.save(target, "JPEG", quality=quality)
    return target.getvalue()

"""The pictures of a store: those that it keeps, and the originals in the folder of its run."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .. import arguments
from ..engine.store.store import Store
from ..errors import AttlasError, UsageError
from ..words import counted

__all__ = ["NoPictureError", "crop", "folder_of"]


class NoPictureError(AttlasError):
    """A picture is not at hand; the message says why, in one line."""


def folder_of(images: str | os.PathLike[str] | None) -> Path | None:
    """The folder that `--images` names.

    Raises:
        UsageError: there is no such folder.
    """
    if images is None:
        return None
    folder = Path(arguments.path(images, "images", "the path of a folder"))
    if not folder.is_dir():
        raise UsageError(f"--images {images}: there is no such folder; it is the one that `attlas run` was given")
    return folder


def crop(store: Store, image: int, folder: str | os.PathLike[str] | None) -> npt.NDArray[np.uint8]:
    """What the model saw of an image: (row, column, channel) uint8.

    Raises:
        NoPictureError: it is neither in the store's sample nor below `folder`, or does not read.
    """
    if image in store.plan.sample:
        return np.asarray(store.read("pixels", store.plan.sample.index(image)), np.uint8)
    if folder is None:
        raise NoPictureError(
            f"the store keeps {counted(len(store.plan.sample), 'picture')}, and not this one: --images DIR gives the "
            "others"
        )
    from ..engine.runtime.decode import DecodeError, decode  # Pillow is only needed here
    from ..engine.sources.files import leads_out

    path = str(store.read("path", image))
    if leads_out(path):
        raise NoPictureError("the store's path of this picture leads out of the folder of --images")
    try:
        return decode((Path(folder) / path).read_bytes(), store.spec.recipe)[0]
    except (OSError, DecodeError, ValueError):
        raise NoPictureError("this picture is not in the folder of --images, or does not read there") from None

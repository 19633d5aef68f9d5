"""The faster ways to decode that this machine has: used only if they give Pillow's pixels here."""

from __future__ import annotations

import functools
import io
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .decode import PILLOW, DecodeJpeg, Fast, Pixels, rgbx

if TYPE_CHECKING:
    from .resample import Order

__all__ = ["load", "loading", "order", "ways"]

# For the trial: (height, width) before and after, on both sides of where Pillow's versions change the order of passes.
RESIZES = (
    ((83, 61), (37, 31)),
    ((40, 61), (90, 137)),
    ((90, 50), (89, 70)),
    ((50, 50), (39, 45)),
    ((50, 50), (40, 45)),
    ((202, 2), (50, 9)),
    ((200, 2), (50, 9)),
    ((202, 2), (210, 9)),
    ((61, 83), (20, 25)),
    ((20, 500), (16, 400)),
)
SAMPLINGS = ("444", "422", "420", "440", "411", "Gray")


@functools.cache
def loading() -> Future[Fast]:
    """`load` in the background, started by the first call; until it is done, Pillow gives the same pixels.

    The first load after an installation compiles for a few seconds.
    """
    pool = ThreadPoolExecutor(1, "fast")
    try:
        return pool.submit(load)
    finally:
        pool.shutdown(wait=False)


@functools.cache
def load() -> Fast:
    """The faster ways that are installed and give Pillow's pixels in a trial; others are None.

    Pillow's versions resize differently, and it may be built with another JPEG library.
    """
    try:
        own = order()
    except Exception:  # of any kind that a package or a compiler has: nobody needs the faster ways
        return PILLOW
    if own is None:
        return PILLOW
    from . import resample

    fast = Fast(resample=functools.partial(resample.resample, order=own))
    try:
        return fast._replace(jpeg=_jpeg())
    except Exception:  # likewise
        return fast


def ways() -> dict[str, str]:
    """What decodes JPEGs, and what resizes, as text: the package in use, or Pillow and why."""
    fast = load()
    ways = {"JPEG": ("simplejpeg", fast.jpeg), "resize": ("numba", fast.resample)}
    return {
        what: name if way is not None else f"Pillow, which is slower ({_why(name)})"
        for what, (name, way) in ways.items()
    }


def _why(package: str) -> str:
    if find_spec(package) is None:
        return f"`pip install 'attlas[fast]'` brings {package}"
    return f"{package} fails here, or gives other pixels than this Pillow"


def order() -> Order | None:
    """The order of passes of the Pillow that is installed, as `resample` takes it; None if it is none that is known."""
    from . import resample as own

    def as_pillow(order: Order) -> bool:
        for before, after in RESIZES:
            picture = Image.fromarray(_noise(*before))
            for name in own.FILTERS:
                found = np.empty((*after, 3), np.uint8)
                own.resample(rgbx(picture), after, name, (0, 0), found, order)
                if not np.array_equal(found, np.asarray(picture.resize(after[::-1], Image.Resampling[name.upper()]))):
                    return False
        return True

    return next(filter(as_pillow, own.ORDERS), None)


def _jpeg() -> DecodeJpeg | None:
    """`decode_jpeg`; None if it does not give Pillow's pixels."""
    from . import jpeg

    for sampling in SAMPLINGS:
        data = jpeg.encode_jpeg(_noise(45, 67), sampling)
        found = jpeg.decode_jpeg(data, (45, 67))
        with Image.open(io.BytesIO(data)) as picture:
            if found is None or not np.array_equal(found[..., :3], np.asarray(picture.convert("RGB"))):
                return None
    return jpeg.decode_jpeg


def _noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)

"""Pictures decoded and resized on a CUDA card, into a batch that never visits the host."""

from __future__ import annotations

import contextlib
import io
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ...errors import AttlasError
from ...exporter.spec import Recipe
from .cuda import Copies, Cudart, Memory, OutOfMemoryError, out_of_memory
from .decode import Fast, Pixels, border_colour
from .decoders import HOST, Decoder, Filler, Found, HostFiller, filled
from .fast import load, order
from .markers import plain, whole
from .providers import preload

__all__ = ["CardFiller", "filler_of", "trial"]

LARGE = 2**24  # pixels of a picture; a larger one is left to the host, so that the card's memory is not
AT_ONCE = 2**28  # bytes of decoded pictures, unless a single one has more
ALIKE = 3.0  # a smooth picture's pixels differ from the host's by less, on average


class _Taken(NamedTuple):
    """A picture that is left to the card. It stands for its pixels in `decode_into`, which asks for no more of them."""

    data: bytes
    shape: tuple[int, int, int]


class _Waiting(NamedTuple):
    """A picture for the card, and what `resample` was to make of it."""

    place: int  # in the batch
    taken: _Taken
    size: tuple[int, int]
    interpolation: str
    offset: tuple[int, int]


class CardFiller:
    """Decodes JPEGs with nvImageCodec, and resizes them as the host does.

    What decoders could read differently goes the host's way, as do pictures that are no JPEG, large ones, and those
    that the card cannot decode: their pixels, remarks and errors are the host's.
    """

    def __init__(self, recipe: Recipe, copies: Copies) -> None:
        """Load what is needed, and try it.

        Raises:
            AttlasError: it is not installed, there is no card, or it decodes wrong.
        """
        from .nvimgcodec import Codec  # says itself what is missing

        self._codec = Codec()
        try:
            from .launching import available
            from .resize import Resizer
        except ImportError:
            raise AttlasError(
                "--decoder cuda: needs numba-cuda, which is not installed; `pip install 'attlas[gpu]'` brings it"
            ) from None
        if not available():
            raise AttlasError("--decoder cuda: numba-cuda runs nothing on this card; is the driver older than it?")
        own = order()
        if own is None:
            raise AttlasError("--decoder cuda: how this version of Pillow resizes is not known; install another")
        self._recipe, self._copies, self._host = recipe, copies, load()
        with _failures():
            self._resizer = Resizer(own)
        # A card decodes one batch at a time.
        self._lock = threading.Lock()
        self._try()

    def pixels(self, batch: int) -> Memory:
        """See `Filler`; memory of the card, with any values."""
        from .launching import allocate

        with _failures():
            return allocate(batch, *self._recipe.crop, 3)

    def fill(self, pixels: Memory, contents: Iterable[bytes | Exception]) -> list[Found]:
        """See `Filler`; all of the batch's pictures are read first.

        Raises:
            AttlasError: the card fails, or has too little memory.
        """
        given = list(contents)
        found: list[Found] = []
        waiting: list[_Waiting] = []
        for data in given:
            fast, before = self._taking(len(found), waiting), len(waiting)
            room = np.empty((*self._recipe.crop, 3), np.uint8)
            found.append(filled(room, data, self._recipe, fast))
            if len(waiting) == before:
                self._copies.upload(pixels[len(found) - 1], room)
        for group in _groups(waiting):
            for index in self._decode(pixels, group):
                room = np.empty((*self._recipe.crop, 3), np.uint8)
                found[index] = filled(room, given[index], self._recipe, self._host)
                self._copies.upload(pixels[index], room)
        black = np.zeros((*self._recipe.crop, 3), np.uint8)
        for index in range(len(given), len(pixels)):
            self._copies.upload(pixels[index], black)
        return found

    def crop(self, pixels: Memory, index: int) -> Pixels:
        """See `Filler`."""
        found = np.empty(pixels.shape[1:], np.uint8)
        self._copies.download(found, pixels[index])
        return found

    def _taking(self, place: int, waiting: list[_Waiting]) -> Fast:
        """The host's way to decode, that only notes in `waiting` what the card is to decode.

        So the checks and the errors before that are the host's.
        """
        host = self._host

        def jpeg(data: bytes, size: tuple[int, int] | None) -> Any:
            known = size if size is not None else plain(data)
            own = whole(data) if known is not None and math.prod(known) <= LARGE else None
            if known is not None and own is not None:
                return _Taken(own, (*known, 3))
            return host.jpeg(data, size) if host.jpeg is not None else None

        def resample(
            source: Any, size: tuple[int, int], interpolation: str, offset: tuple[int, int], out: Pixels
        ) -> None:
            if isinstance(source, _Taken):
                waiting.append(_Waiting(place, source, size, interpolation, offset))
            else:
                assert host.resample is not None
                host.resample(source, size, interpolation, offset, out)

        return Fast(resample, jpeg)

    def _decode(self, pixels: Memory, waiting: Sequence[_Waiting]) -> list[int]:
        """Decode and resize on the card; returns the indices of what it cannot."""
        from .resize import Job

        left, jobs = [], []
        with self._lock, _failures():
            sources = self._codec([one.taken.data for one in waiting], self._resizer.stream)
            for one, source in zip(waiting, sources, strict=True):
                if source is None or source.shape != one.taken.shape:
                    left.append(one.place)
                    continue
                how = (one.size, one.interpolation, one.offset)
                jobs.append(Job(source, *how, pixels[one.place], border_colour(self._recipe)))
            if jobs:
                self._resizer(jobs)
        return left

    def _try(self) -> None:
        """Compare a smooth picture with the host's.

        Raises:
            AttlasError: the card does not decode it, or to other pixels.
        """
        waves = np.sin(np.linspace(0, 6, 48)[:, None, None] + np.linspace(0, 4, 64)[:, None] + np.arange(3))
        data = io.BytesIO()
        Image.fromarray((127.5 + 100 * waves).astype(np.uint8)).save(data, "JPEG", quality=95)
        pixels, waiting = self.pixels(1), list[_Waiting]()
        host = np.empty((*self._recipe.crop, 3), np.uint8)
        filled(host, data.getvalue(), self._recipe, self._taking(0, waiting))
        if not waiting or self._decode(pixels, waiting):
            raise AttlasError(
                "--decoder cuda: nvImageCodec decodes no JPEG on this card; `pip install 'attlas[gpu]'` brings nvJPEG"
            )
        filled(host, data.getvalue(), self._recipe, self._host)
        off = float(np.abs(self.crop(pixels, 0).astype(float) - host).mean())
        if off > ALIKE:
            raise AttlasError(
                f"--decoder cuda: pixels decoded on this card differ from the host's by {off:.1f} of 255; leave it out"
            )


def filler_of(decoder: Decoder, recipe: Recipe, copies: Copies) -> Filler:
    """What fills batches by a recipe, on the host or on the card that `copies` go to.

    Raises:
        AttlasError: the card cannot.
    """
    if decoder == HOST:
        return HostFiller(recipe, copies)
    if not isinstance(copies, Cudart):
        raise AttlasError("--decoder cuda: no CUDA card works here; leave it out, or see `attlas doctor`")
    return CardFiller(recipe, copies)


def trial() -> None:
    """Decode on card 0, apart from any run.

    Raises:
        AttlasError: it does not work.
    """
    preload()
    copies = Cudart.load()
    if copies is None:
        raise AttlasError("no CUDA card works here")
    half = (0.5, 0.5, 0.5)
    CardFiller(Recipe((40, 40), (32, 32), "center", "bicubic", half, half), copies)


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Convert numba's exceptions to ours."""
    try:
        yield
    except AttlasError:
        raise
    except Exception as error:  # a card that vanishes, or is full: they have no common base except this
        kind = OutOfMemoryError if out_of_memory(error) else AttlasError
        raise kind(f"--decoder cuda: the card fails ({' '.join(str(error).split())[:200]})") from None


def _groups(waiting: Sequence[_Waiting]) -> Iterator[Sequence[_Waiting]]:
    """As many pictures as the card decodes at once."""
    start = size = 0
    for end, one in enumerate(waiting):
        needed = math.prod(one.taken.shape)
        if end > start and size + needed > AT_ONCE:
            yield waiting[start:end]
            start, size = end, 0
        size += needed
    if waiting:
        yield waiting[start:]

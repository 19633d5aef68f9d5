"""Pictures decoded and resized on a CUDA card, into a batch that never visits the host."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from ...errors import AttlasError, one_line
from ...exporter.spec import Recipe
from .cuda import Copies, Cudart, Memory, OutOfMemoryError, out_of_memory
from .decode import DecodeError, Pixels, border_colour, placed, size_of
from .decoders import HOST, Decoder, Filler, Found, HostFiller, filled
from .fast import load, order
from .providers import preload

if TYPE_CHECKING:
    from .nvimgcodec import Codec
    from .resize import Resizer, Way

__all__ = ["CardFiller", "filler_of", "trial"]

LARGE = 2**24  # pixels of a picture; a larger one is left to the host, so that the card's memory is not
AT_ONCE = 2**28  # bytes of decoded pictures, unless a single one has more
SIDE_BY_SIDE = 2  # batches on the card: the one's pictures are decoded while the other's are resized
ALIKE = 3.0  # a smooth picture's pixels differ from the host's by less, on average


class _Taken(NamedTuple):
    """A picture that is left to the card."""

    place: int  # in the batch
    data: bytes
    size: tuple[int, int]
    way: Way


class CardFiller:
    """Decodes JPEGs with nvImageCodec, and resizes them as the host does.

    What decoders could read differently goes the host's way, as do pictures that are no JPEG, large ones, and those
    that the card cannot decode: their pixels, remarks and errors are the host's.
    """

    def __init__(self, recipe: Recipe, copies: Cudart) -> None:
        """Load what is needed, and try it.

        Raises:
            AttlasError: it is not installed, there is no card, or it decodes wrong.
        """
        from .nvimgcodec import Codec

        codecs = [Codec() for _ in range(SIDE_BY_SIDE)]  # says itself what is missing
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
        self._recipe, self._copies, self._host, self._order = recipe, copies, load(), own
        self._way = functools.lru_cache(maxsize=1024)(self._computed)  # pictures of a data set often have the same size
        self._source = codecs[0].source
        self._idle: SimpleQueue[tuple[Codec, Resizer]] = SimpleQueue()
        with _failures():
            for codec in codecs:
                self._idle.put((codec, Resizer(copies.urgent_stream())))
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
        taken = self._taken(given)
        found: dict[int, Found] = {one.place: (one.size, ()) for one in taken}
        left = [place for place in range(len(given)) if place not in found]
        for group in _groups(taken):
            left += self._decode(pixels, group)
        for place in left:
            room = np.empty((*self._recipe.crop, 3), np.uint8)
            found[place] = filled(room, given[place], self._recipe, self._host)
            self._copies.upload(pixels[place], room)
        black = np.zeros((*self._recipe.crop, 3), np.uint8)
        for place in range(len(given), len(pixels)):
            self._copies.upload(pixels[place], black)
        return [found[place] for place in range(len(given))]

    def crop(self, pixels: Memory, index: int) -> Pixels:
        """See `Filler`."""
        found = np.empty(pixels.shape[1:], np.uint8)
        self._copies.download(found, pixels[index])
        return found

    def _taken(self, given: Sequence[bytes | Exception]) -> list[_Taken]:
        """The pictures for the card: those that it decodes as the host does, and in which the host finds no fault."""
        from .markers import read

        files = [(place, data) for place, data in enumerate(given) if isinstance(data, bytes)]
        found = []
        for (place, data), known in zip(files, read([data for _, data in files]), strict=True):
            size = known.height, known.width
            if not known.end or math.prod(size) > LARGE or not (known.plain or _opened(data) == size):
                continue
            way = self._way(size)
            if way is not None:
                found.append(_Taken(place, data[: known.end], size, way))
        return found

    def _computed(self, size: tuple[int, int]) -> Way | None:
        """How pictures of a size become crops; None for a size that the host refuses."""
        from .resize import way

        try:
            after, offset = placed(*size, self._recipe)
        except DecodeError:
            return None
        border = border_colour(self._recipe)
        return way(size, after, self._recipe.interpolation, offset, self._recipe.crop, border, self._order)

    def _decode(self, pixels: Memory, taken: Sequence[_Taken]) -> list[int]:
        """Decode and resize on the card; returns the places of what it cannot.

        Few threads have the card, and others prepare what it needs, under the interpreter's lock, meanwhile.
        """
        from .resize import Batch

        step = pixels.nbytes // len(pixels)

        def batch(these: Sequence[_Taken]) -> Batch:
            places = np.array([one.place for one in these], np.int64)
            return Batch([one.way for one in these], pixels.pointer + step * places)

        sources = [self._source(one.data) for one in taken]
        prepared = batch(taken)
        with self._card() as (codec, resizer), _failures():
            images = codec(sources, resizer.stream)
            there = {
                k: image.pointer
                for k, image in enumerate(images)
                if image is not None and image.shape[:2] == taken[k].size
            }
            if there:
                those = prepared if len(there) == len(taken) else batch([taken[k] for k in there])
                resizer(those, np.array(list(there.values()), np.int64))
        return [one.place for k, one in enumerate(taken) if k not in there]

    @contextlib.contextmanager
    def _card(self) -> Iterator[tuple[Codec, Resizer]]:
        """What one batch is decoded with; waits while others have all of it."""
        idle = self._idle.get()
        try:
            yield idle
        finally:
            self._idle.put(idle)

    def _try(self) -> None:
        """Compare a smooth picture with the host's.

        Raises:
            AttlasError: the card does not decode it, or to other pixels.
        """
        waves = np.sin(np.linspace(0, 6, 48)[:, None, None] + np.linspace(0, 4, 64)[:, None] + np.arange(3))
        data = io.BytesIO()
        Image.fromarray((127.5 + 100 * waves).astype(np.uint8)).save(data, "JPEG", quality=95)
        pixels, taken = self.pixels(1), self._taken([data.getvalue()])
        if not taken or self._decode(pixels, taken):
            raise AttlasError(
                "--decoder cuda: nvImageCodec decodes no JPEG on this card; `pip install 'attlas[gpu]'` brings nvJPEG"
            )
        host = np.empty((*self._recipe.crop, 3), np.uint8)
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
        raise kind(f"--decoder cuda: the card fails ({one_line(error, 200)})") from None


def _opened(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG that Pillow opens, else None: the host will say why."""
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return size_of(data)
    return None


def _groups(taken: Sequence[_Taken]) -> Iterator[Sequence[_Taken]]:
    """As many pictures as the card decodes at once."""
    start = total = 0
    for end, one in enumerate(taken):
        needed = 3 * math.prod(one.size)
        if end > start and total + needed > AT_ONCE:
            yield taken[start:end]
            start, total = end, 0
        total += needed
    if taken:
        yield taken[start:]

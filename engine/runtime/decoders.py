"""Fill a batch with pictures: one after another on the host, or at once on a card."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, Protocol, get_args

from ...errors import UsageError
from ...exporter.spec import Recipe
from .cuda import Copies
from .decode import PILLOW, DecodeError, Fast, Pixels, decode_into
from .fast import loading
from .providers import on_cards

__all__ = ["HOST", "Decoder", "Filler", "Found", "HostFiller", "check_decoder", "filled"]

type Decoder = Literal["host", "cuda"]
HOST: Decoder = "host"

# (height, width) of the original and remarks (`decode.Picture`), or why there is no picture: its pixels are black.
type Found = tuple[tuple[int, int], tuple[str, ...]] | Exception


class Filler(Protocol):
    """Fills batches by one recipe; each thread has its own pixels."""

    def pixels(self, batch: int) -> Any:
        """Room for a batch: (image, row, column, channel) uint8."""

    def fill(self, pixels: Any, contents: Iterable[bytes | Exception]) -> Iterable[Found]:
        """Decode pictures into the front of a batch, and make the rest of it black.

        Args:
            pixels: of `pixels`.
            contents: the bytes of each picture, or why there are none.

        Returns:
            What was found, for each in order; with the last the batch is complete.
        """

    def crop(self, pixels: Any, index: int) -> Pixels:
        """One crop of a filled batch: (row, column, channel) uint8 on the host."""


class HostFiller:
    """Decodes with Pillow and the faster ways that give its pixels."""

    def __init__(self, recipe: Recipe, copies: Copies) -> None:
        self._recipe, self._copies = recipe, copies

    def pixels(self, batch: int) -> Pixels:
        """See `Filler`; black, and pinned for a card."""
        loading()  # begins, so that it is done when there is something to decode
        black: Pixels = self._copies.host((batch, *self._recipe.crop, 3), "uint8")
        return black

    def fill(self, pixels: Pixels, contents: Iterable[bytes | Exception]) -> Iterator[Found]:
        """See `Filler`; one picture at a time is in memory."""
        loaded, fast, count = loading(), PILLOW, 0
        for count, data in enumerate(contents, 1):
            # Asked for each picture: a card's batches are long, and all threads begin their first at the same moment.
            if fast is PILLOW and loaded.done():
                fast = loaded.result()
            yield filled(pixels[count - 1], data, self._recipe, fast)
        pixels[count:] = 0

    def crop(self, pixels: Pixels, index: int) -> Pixels:
        """See `Filler`."""
        found: Pixels = pixels[index]
        return found


def filled(out: Pixels, data: bytes | Exception, recipe: Recipe, fast: Fast) -> Found:
    """`decode_into`, or black pixels and the reason."""
    reason = data
    if isinstance(data, bytes):
        try:
            return decode_into(out, data, recipe, fast)
        except DecodeError as error:
            reason = error
    out[...] = 0
    assert isinstance(reason, Exception)
    return reason


def check_decoder(decoder: str, provider: str) -> None:
    """Refuse a decoder that does not exist, or that needs another provider.

    Raises:
        UsageError: it is so.
    """
    known = get_args(Decoder.__value__)
    if decoder not in known:
        raise UsageError(f"--decoder {decoder}: choose from {', '.join(known)}")
    if decoder == "cuda" and not on_cards(provider):
        raise UsageError(
            f"--decoder cuda: --provider {provider} infers on no CUDA card here, so that none can decode; leave it out"
        )

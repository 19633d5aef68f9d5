"""Decode JPEGs on a CUDA card: the only module that uses nvImageCodec, NVIDIA's library around nvJPEG.

It decodes what a card's JPEG engine or its kernels decode, and nothing on the processor. Its pixels differ from
Pillow's by a little, since it transforms and converts with other roundings.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ...errors import AttlasError, one_line
from .cuda import Memory, OutOfMemoryError

__all__ = ["Codec", "version"]

# Each JPEG has one place that decodes it, whatever else is in its batch, so that two runs give the same bits: the
# engine takes all that it can. A kind that has no decoder for a card is refused alone (`GPU_ONLY` on an H200: code 7,
# architecture), and left out beside others.
KINDS = ("HW_GPU_ONLY", "GPU_ONLY", "HYBRID_CPU_GPU")
OPTIONS = ":fancy_upsampling=1"  # chroma is interpolated, as libjpeg does it


class Codec:
    """A decoder on card 0; one thread at a time."""

    def __init__(self) -> None:
        """Load the library.

        Raises:
            AttlasError: it is not installed, or finds no card.
        """
        self._library = _library()
        backends = [self._library.Backend(getattr(self._library.BackendKind, kind)) for kind in KINDS]
        with _failures(), _quiet():
            self._decoder = self._library.Decoder(device_id=0, backends=backends, options=OPTIONS)
        # A run does not turn pictures, so that boxes and masks of a data set fit.
        self._how = self._library.DecodeParams(apply_exif_orientation=False, color_spec=self._library.ColorSpec.SRGB)
        self._rooms: list[Any] = []  # images, whose memory is used again

    def source(self, data: bytes) -> Any:
        """A JPEG as `__call__` takes it; None if its header is not understood, which the host may. Any thread may."""
        try:
            return self._library.CodeStream(data)
        except Exception:  # of the library's own kinds
            return None

    def __call__(self, sources: Sequence[Any], stream: int) -> list[Memory | None]:
        """Decode a batch: (row, column, channel) uint8 RGB in the card's memory, None for what it cannot decode.

        The pixels stay until the next call.

        Args:
            sources: of `source`.
            stream: the CUDA stream after which the pixels are there.

        Raises:
            OutOfMemoryError: the card has too little memory for the pictures.
            AttlasError: the library fails.
        """
        known = [source for source in sources if source is not None]
        again: dict[str, Any] = {"images": self._rooms[: len(known)]} if len(known) <= len(self._rooms) else {}
        with _failures():
            decoded = self._decoder.decode(known, params=self._how, cuda_stream=stream, **again) if known else []
        if not again:
            self._rooms += [image for image in decoded if image is not None]
        images = iter(decoded)
        found = [None if source is None else next(images) for source in sources]
        return [None if image is None else _memory(image) for image in found]


def version() -> str:
    """Of the library, whatever installed it.

    Raises:
        AttlasError: it is not installed.
    """
    return str(_library().__version__)


def _memory(image: Any) -> Memory | None:
    """Where an image's pixels are. None if they have another form than was asked for."""
    face = image.__cuda_array_interface__
    shape = tuple(face["shape"])
    packed = face.get("strides") in (None, (3 * shape[1], 3, 1))
    if len(shape) != 3 or shape[2] != 3 or face["typestr"] != "|u1" or not packed:
        return None
    return Memory(int(face["data"][0]), shape, "uint8", image)


def _library() -> Any:
    # It writes what it misses for other formats to the terminal while it is loaded, and what it cannot decode later.
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
    try:
        with _quiet():
            return importlib.import_module("nvidia.nvimgcodec")
    except ImportError:
        raise AttlasError(
            "--decoder cuda: needs nvImageCodec, which is not installed; `pip install 'attlas[gpu]'` brings it"
        ) from None


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the library raises what pybind11 makes of its own
        reason = one_line(error, 200)
        if "failure: '#2'" in reason or "out of memory" in reason.lower():
            raise OutOfMemoryError("--decoder cuda: the card has too little memory for the pictures") from None
        raise AttlasError(f"--decoder cuda: nvImageCodec fails ({reason}); `attlas doctor` tries the card") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop what a library's C code writes to stderr."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)

"""The decoder on a card, without one: its memory is the host's, numba plays the kernel, and Pillow nvImageCodec.

python support_decoder.py GRAPH FOLDER   # in numba's simulator, see `support_card.simulated`

It makes `crops.npz`, every case of `CASES` as CASE/ORDER; `card.zarr` from `images`; and `told.json`.
"""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image
from support_devices import FakeCuda

FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
# (height, width) before and after the resize, and of the crop: smaller, larger, the same; longer on either side; a
# border around it, on one side or both; both orders of passes.
SIZES = (
    ((13, 9), (7, 8), (6, 5)), ((20, 7), (6, 9), (5, 6)), ((5, 6), (9, 12), (12, 10)), ((30, 3), (8, 3), (8, 8)),
    ((9, 9), (9, 9), (4, 4)), ((4, 25), (4, 8), (3, 8)), ((1, 1), (5, 5), (5, 5)), ((6, 31), (3, 4), (6, 4)),
)  # fmt: skip
BORDER = (9, 200, 31)
CASES = {f"{name} {k}": (name, *sizes) for name in FILTERS for k, sizes in enumerate(SIZES)}


def noise(case: str) -> np.ndarray:
    """The picture of a case: (row, column, channel) uint8."""
    return np.random.default_rng(len(case)).integers(0, 256, (*CASES[case][1], 3), np.uint8)


def offset_of(after: tuple[int, int], crop: tuple[int, int]) -> tuple[int, int]:
    """(row, column) of a crop in the middle."""
    return tuple(-((c - e) // 2) if e < c else (e - c) // 2 for e, c in zip(after, crop, strict=True))  # type: ignore[return-value]


# -- nvImageCodec, played by Pillow ------------------------------------------------------------------------------------


class Played:
    """An image in the card's memory."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = np.ascontiguousarray(pixels)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        data = (self.pixels.ctypes.data, False)
        return {"shape": self.pixels.shape, "strides": None, "typestr": "|u1", "data": data, "version": 3, "stream": 1}


class PlayedDecoder:
    """Takes what the library does, and decodes as Pillow; `refuses` are what it cannot."""

    asked: list[int] = []  # noqa: RUF012 - pictures of each call
    refuses: set[bytes] = set()  # noqa: RUF012
    negative = False  # decodes wrong

    def __init__(self, *, device_id: int, backends: list[Any], options: str) -> None:
        assert device_id == 0
        assert [backend.kind for backend in backends] == ["HW_GPU_ONLY", "GPU_ONLY", "HYBRID_CPU_GPU"]
        assert options == ":fancy_upsampling=1"

    def decode(
        self, sources: list[Any], *, params: Any, cuda_stream: int, images: list[Played] | None = None
    ) -> list[Played | None]:
        assert params.apply_exif_orientation is False
        assert images is None or len(images) == len(sources)
        self.asked.append(len(sources))
        found = [None if source.data in self.refuses else pillow(source.data) for source in sources]
        found = [None if one is None else 255 - one if self.negative else one for one in found]
        if images is None:
            return [None if one is None else Played(one) for one in found]
        for image, one in zip(images, found, strict=True):
            image.pixels = np.ascontiguousarray(one) if one is not None else image.pixels
        return [None if one is None else image for image, one in zip(images, found, strict=True)]


def pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


def played_library() -> ModuleType:
    """The part of nvImageCodec's module that is used."""
    library: Any = ModuleType("nvidia.nvimgcodec")
    library.__version__ = "0.9"
    library.BackendKind = SimpleNamespace(
        HW_GPU_ONLY="HW_GPU_ONLY", GPU_ONLY="GPU_ONLY", HYBRID_CPU_GPU="HYBRID_CPU_GPU"
    )
    library.Backend = lambda kind: SimpleNamespace(kind=kind)
    library.ColorSpec = SimpleNamespace(SRGB="SRGB")
    library.DecodeParams = lambda **how: SimpleNamespace(**how)
    library.CodeStream = lambda data: SimpleNamespace(data=data)
    library.Decoder = PlayedDecoder
    return library  # type: ignore[no-any-return]


def play() -> None:
    """Let the processor take the way of a card that decodes."""
    from attlas.engine.runtime import providers
    from attlas.engine.runtime import session as session_module
    from attlas.engine.runtime.cuda import Cudart
    from attlas.engine.runtime.providers import CPU, Provider

    sys.modules["nvidia.nvimgcodec"] = played_library()
    session_module.OrtCopies = lambda: Cudart(FakeCuda())  # type: ignore[misc, assignment]
    providers.PROVIDERS = (Provider(CPU, device="cpu", cards=True),)


# -- in the simulator --------------------------------------------------------------------------------------------------


def resized() -> Iterator[tuple[str, np.ndarray]]:
    """The crops of all cases, by both orders of passes, all of an order in one call."""
    from attlas.engine.runtime.resample import ORDERS
    from attlas.engine.runtime.resize import Batch, Resizer, way

    for k, order in enumerate(ORDERS[:2]):
        crops, ways, sources = {}, [], []
        for case, (name, before, after, crop) in CASES.items():
            if k and name != "bicubic":
                continue
            crops[case] = np.full((*crop, 3), 7, np.uint8)
            sources.append(noise(case))
            ways.append(way(before, after, name, offset_of(after, crop), crop, BORDER, order))
        addresses = (np.array([one.ctypes.data for one in ones], np.int64) for ones in (crops.values(), sources))
        Resizer(1)(Batch(ways, next(addresses)), next(addresses))
        yield from ((f"{case}/{k}", crop) for case, crop in crops.items())


def side_by_side(filler: Any, picture: bytes) -> bool:
    """Whether two threads have the decoder at the same time; nothing is resized, which numba plays for one alone."""
    both = threading.Barrier(2)

    def decode(_self: PlayedDecoder, sources: list[Any], **_: Any) -> list[None]:
        both.wait(30)
        return [None for _ in sources]

    usual, PlayedDecoder.decode = PlayedDecoder.decode, decode  # type: ignore[method-assign, assignment]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda room: filler.fill(room, [picture]), [filler.pixels(1) for _ in range(2)]))
    PlayedDecoder.decode = usual  # type: ignore[method-assign]
    return not both.broken and len(found) == 2


def main() -> None:
    """See above."""
    import attlas
    from attlas.errors import AttlasError

    graph, folder = sys.argv[1], Path(sys.argv[2])
    np.savez(folder / "crops.npz", **dict(resized()))  # type: ignore[arg-type]
    play()
    PlayedDecoder.refuses.add((folder / "images" / "refused.jpg").read_bytes())
    choices: dict[str, Any] = {"batch_size": 4, "threads": 1, "statistics": "host"}
    attlas.run(graph, folder / "images", folder / "card.zarr", decoder="cuda", **choices)
    told: dict[str, Any] = {"asked": list(PlayedDecoder.asked)}
    session = attlas.Session(graph, decoder="cuda", batch=2)
    session.pixels(2)
    told["recorded"] = session._ring is not None
    told["side_by_side"] = side_by_side(session.filler, (folder / "images" / "refused.jpg").read_bytes())
    PlayedDecoder.negative = True
    try:
        attlas.Session(graph, decoder="cuda")
    except AttlasError as error:
        told["wrong"] = str(error)
    (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()

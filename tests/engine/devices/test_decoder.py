"""Pictures decoded on a card are those that the host decodes, where decoders agree."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import pytest
from attlas.engine import Store
from attlas.engine.inspect import inspect
from attlas.engine.runtime import resample
from attlas.engine.runtime.markers import whole
from attlas.errors import AttlasError
from PIL import Image
from support import make_picture
from support_card import simulated
from support_decoder import BORDER, CASES, noise, offset_of
from support_devices import assert_same_store

pytest.importorskip("numba_cuda")


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    path = tmp_path_factory.mktemp("decoder") / "crops.npz"
    simulated("support_decoder.py", "resize", str(path))
    return dict(np.load(path))


@pytest.mark.parametrize("order", [0, 1])
def test_the_cards_resize_is_the_hosts_to_the_bit(order: int, crops: dict[str, np.ndarray]) -> None:
    """By every filter, crops with and without a border, in both orders of passes."""
    for case, (name, before, after, crop) in CASES.items():
        source = np.concatenate([noise(case), np.zeros((*before, 1), np.uint8)], -1)
        expected = np.empty((*crop, 3), np.uint8)
        expected[...] = BORDER
        resample.resample(source, after, name, offset_of(after, crop), expected, resample.ORDERS[order])
        np.testing.assert_array_equal(crops[f"{case}/{order}"], expected, err_msg=case)


# -- a run -------------------------------------------------------------------------------------------------------------


def encode(picture: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


SMALL = make_picture(1, 40, 32)
PLAIN = encode(SMALL)
RESTARTS = encode(SMALL, restart_marker_rows=1)
AT = RESTARTS.index(b"\xff\xd0")
CODES = PLAIN.index(b"\xff\xda") + 14
# Whether the card decodes it, and the data.
PICTURES: dict[str, tuple[bool, bytes]] = {
    "plain.jpg": (True, PLAIN),
    "grey.jpg": (True, encode(SMALL.convert("L"))),
    "coarse.jpg": (True, encode(SMALL, subsampling=0, quality=30)),
    "restarts.jpg": (True, RESTARTS),
    "turned.jpg": (True, encode(SMALL, exif=turned())),  # a run turns nothing
    "several.jpg": (True, encode(SMALL, "MPO", save_all=True, append_images=[make_picture(2, 8, 8)])),
    "more.jpg": (True, PLAIN + b"more"),
    "refused.jpg": (False, encode(make_picture(3, 24, 24))),  # by the card
    "png.png": (False, encode(SMALL, "PNG")),
    "cmyk.jpg": (False, encode(SMALL.convert("CMYK"))),
    "progressive.jpg": (False, encode(SMALL, progressive=True)),
    "rgb.jpg": (False, encode(SMALL, keep_rgb=True)),
    "cut.jpg": (False, PLAIN[: len(PLAIN) // 2]),
    "endless.jpg": (False, PLAIN[:-2]),
    "restart.jpg": (False, RESTARTS[:AT] + b"\xff\xd3" + RESTARTS[AT + 2 :]),
    "lacking.jpg": (False, RESTARTS[:AT] + RESTARTS[AT + 2 :]),
    "marker.jpg": (False, PLAIN[:CODES] + b"\xff\xff\x00" + PLAIN[CODES + 3 :]),
    "twelve.jpg": (False, PLAIN.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c")),
    "text.jpg": (False, b"no picture"),
    "empty.jpg": (False, b""),
}


def test_only_what_decoders_read_alike_is_left_to_the_card() -> None:
    """Judged by markers alone; what follows the end is not sent."""
    for name, (taken, data) in PICTURES.items():
        known = whole(data)
        assert (known is not None) == (taken or name == "refused.jpg"), name
        if known is not None:
            assert data.startswith(known)
            assert known.endswith(b"\xff\xd9")
    assert whole(PICTURES["more.jpg"][1]) == PLAIN
    for end in range(len(PLAIN)):
        assert whole(PLAIN[:end]) is None


@pytest.fixture(scope="module")
def stores(tiny_graph: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of the same pictures, decoded on a card and on the host."""
    folder = tmp_path_factory.mktemp("decoded")
    (folder / "images").mkdir()
    for name, (_, data) in PICTURES.items():
        (folder / "images" / name).write_bytes(data)
    simulated("support_decoder.py", str(tiny_graph), str(folder / "images"), str(folder / "card.zarr"))
    attlas.run(tiny_graph, folder / "images", folder / "host.zarr", batch_size=4, statistics="host")
    return folder / "card.zarr", folder / "host.zarr"


def test_a_run_decoded_on_a_card_stores_what_the_host_does(stores: tuple[Path, Path]) -> None:
    """Pixels, sizes and errors, where the card's decoder is Pillow; and it had what is its."""
    assert_same_store(*stores, tolerance=1e-6)
    card, host = (Store(path) for path in stores)
    for name in ("pixels", "height", "width", "error", "valid"):
        np.testing.assert_array_equal(card.read(name), host.read(name))
    assert 0 < (~host.read("valid")).sum() < 6
    decoded = json.loads((stores[0].parent / "asked.json").read_text())
    assert sum(decoded) == 1 + sum(name == "refused.jpg" or taken for name, (taken, _) in PICTURES.items())


def test_the_decoder_belongs_to_a_run(stores: tuple[Path, Path], tiny_graph: Path) -> None:
    """It is recorded, shown, and another one is refused on resuming; the default is as in earlier versions."""
    assert [inspect(path)["decoder"] for path in stores] == ["cuda", "host"]
    assert "decoder" not in Store(stores[1]).plan.identity
    assert Store(stores[0]).record["runs"][0]["decoder"] == "cuda"
    with pytest.raises(AttlasError, match=r"holds another run \(decoder cuda there, host now\)"):
        attlas.run(tiny_graph, stores[0].parent / "images", stores[0], statistics="host")

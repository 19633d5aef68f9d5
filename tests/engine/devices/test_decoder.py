"""Pictures decoded on a card are those that the host decodes, where decoders agree."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attlas
import numpy as np
import pytest
from attlas.engine import Store, doctor
from attlas.engine.inspect import inspect
from attlas.engine.runtime import nvimgcodec, on_card, providers, resample
from attlas.engine.runtime import session as session_module
from attlas.engine.runtime.cuda import Cudart, Memory, OutOfMemoryError
from attlas.engine.runtime.decode import decode
from attlas.engine.runtime.markers import read
from attlas.engine.versions import check_versions, versions
from attlas.errors import AttlasError, UsageError
from attlas.exporter.spec import Recipe
from PIL import Image
from support import make_picture
from support_card import simulated
from support_decoder import BORDER, CASES, PlayedDecoder, noise, offset_of, played_library
from support_devices import FakeCuda, assert_same_store

pytest.importorskip("numba_cuda")


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
RECIPE = Recipe((16, 16), (16, 16), "center", "bilinear", (0.5,) * 3, (0.5,) * 3)
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


@pytest.fixture(scope="module")
def played(tiny_graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process made where numba plays a card, see `support_decoder`; and `host.zarr` of the same pictures."""
    folder = tmp_path_factory.mktemp("decoded")
    (folder / "images").mkdir()
    for name, (_, data) in PICTURES.items():
        (folder / "images" / name).write_bytes(data)
    simulated("support_decoder.py", str(tiny_graph), str(folder))
    attlas.run(tiny_graph, folder / "images", folder / "host.zarr", batch_size=4, statistics="host")
    return folder


@pytest.mark.parametrize("order", [0, 1])
def test_the_cards_resize_is_the_hosts_to_the_bit(order: int, played: Path) -> None:
    """By every filter, crops with and without a border, in both orders of passes."""
    crops = dict(np.load(played / "crops.npz"))
    for case, (name, before, after, crop) in CASES.items():
        if order and name != "bicubic":
            continue
        source = np.concatenate([noise(case), np.zeros((*before, 1), np.uint8)], -1)
        expected = np.empty((*crop, 3), np.uint8)
        expected[...] = BORDER
        resample.resample(source, after, name, offset_of(after, crop), expected, resample.ORDERS[order])
        np.testing.assert_array_equal(crops[f"{case}/{order}"], expected, err_msg=case)


def test_only_what_decoders_read_alike_is_left_to_the_card() -> None:
    """Judged by markers alone; what follows the end is not sent."""
    for name, (taken, data) in PICTURES.items():
        known = data[: read([data])[0].end]
        assert bool(known) == (taken or name == "refused.jpg"), name
        assert not known or known.endswith(b"\xff\xd9")
    assert read([PICTURES["more.jpg"][1]])[0].end == len(PLAIN)
    assert not any(found.end for found in read([PLAIN[:end] for end in range(len(PLAIN))]))


def test_pictures_are_decoded_into_the_memory_of_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card frees memory only when all work on it has ended; what it refuses leaves the others in their places."""
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", played_library())
    monkeypatch.setattr(PlayedDecoder, "refuses", {PICTURES["refused.jpg"][1]})
    codec = nvimgcodec.Codec()

    def pixels(*names: str) -> tuple[list[Any], list[Any]]:
        found = codec([codec.source(PICTURES[name][1]) for name in names], 1)
        return [one and one.owner for one in found], [one and one.owner.pixels.copy() for one in found]

    first, _ = pixels("plain.jpg", "coarse.jpg")
    again, shown = pixels("grey.jpg", "refused.jpg")
    assert again == [first[0], None]
    with Image.open(io.BytesIO(PICTURES["grey.jpg"][1])) as grey:
        np.testing.assert_array_equal(shown[0], np.asarray(grey.convert("RGB")))
    more, _ = pixels("plain.jpg", "coarse.jpg", "grey.jpg")  # new memory
    assert not {*map(id, more)} & {*map(id, first)}
    last, _ = pixels("plain.jpg")
    assert last == first[:1]


def test_what_pillow_refuses_is_not_left_to_the_card() -> None:
    """Whatever is changed, lost or added: its error is the host's."""
    rng = np.random.default_rng(0)
    passed = 0
    for _ in range(400):
        data = bytearray(RESTARTS if rng.integers(2) else PLAIN)
        at = int(rng.integers(2, len(data)))
        match rng.integers(3):
            case 0:
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                del data[at : at + int(rng.integers(1, 9))]
            case _:
                data[at:at] = rng.bytes(int(rng.integers(1, 6)))
        if read([bytes(data)])[0].end:
            passed += 1
            decode(bytes(data), RECIPE)
    assert 50 < passed < 350


def test_a_run_decoded_on_a_card_stores_what_the_host_does(played: Path) -> None:
    """Pixels, sizes and errors, where the card's decoder is Pillow; and it had what is its."""
    assert_same_store(played / "card.zarr", played / "host.zarr", tolerance=1e-6)
    card, host = Store(played / "card.zarr"), Store(played / "host.zarr")
    for name in ("pixels", "height", "width", "error", "valid"):
        np.testing.assert_array_equal(card.read(name), host.read(name), err_msg=name)
    assert 0 < (~host.read("valid")).sum() < 6
    # With a trial before the plan, and one before the run.
    told = json.loads((played / "told.json").read_text())
    assert sum(told["asked"]) == 2 + sum(name == "refused.jpg" or taken for name, (taken, _) in PICTURES.items())
    assert "differ from the host's" in told["wrong"]  # a decoder that is wrong is not used
    assert told["recorded"]  # before anything is decoded
    assert told["side_by_side"]  # one batch is resized while another is decoded


def test_the_decoder_belongs_to_a_run(played: Path, tiny_graph: Path) -> None:
    """It is recorded, shown, and another one is refused on resuming; the default is as in earlier versions."""
    card, host = played / "card.zarr", played / "host.zarr"
    assert [inspect(path)["decoder"] for path in (card, host)] == ["cuda", "host"]
    assert "decoder" not in Store(host).plan.identity
    run = Store(card).record["runs"][0]
    assert (run["decoder"], run["versions"]["nvimgcodec"]) == ("cuda", "0.9")
    with pytest.raises(AttlasError, match=r"holds another run \(decoder cuda there, host now\)"):
        attlas.run(tiny_graph, played / "images", card, statistics="host")


def test_pictures_are_decoded_in_groups_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is larger alone, too."""
    monkeypatch.setattr(on_card, "AT_ONCE", 300)
    taken: Any = [on_card._Taken(i, b"", (10, width), None) for i, width in enumerate((4, 6, 1, 20, 9))]  # type: ignore[arg-type]
    assert [[one.place for one in group] for group in on_card._groups(taken)] == [[0, 1], [2], [3], [4]]


def test_pictures_of_one_size_share_their_coefficients() -> None:
    """Each has a place of its own between the passes, and its own crop."""
    from attlas.engine.runtime.resize import OUT, SOURCE, TABLE, Batch, way

    wide, high = (
        way(size, (8, 8), "bicubic", (0, 0), (8, 8), BORDER, resample.ORDERS[0]) for size in ((20, 30), (30, 20))
    )
    outs = np.array([1000, 2000, 3000], np.int64)
    batch = Batch([wide, high, wide], outs)
    np.testing.assert_array_equal(batch.table, np.concatenate([wide.table, high.table]))
    tables = wide.told[:, TABLE], high.told[:, TABLE] + wide.table.size, wide.told[:, TABLE]
    np.testing.assert_array_equal(batch.told[:, :, TABLE], np.transpose(tables))
    rooms = np.array([0, wide.between, wide.between + high.between])
    np.testing.assert_array_equal(batch.told[0, :, OUT], rooms)
    np.testing.assert_array_equal(batch.told[1, :, SOURCE], [one.told[1, SOURCE] for one in (wide, high, wide)] + rooms)
    np.testing.assert_array_equal(batch.told[1, :, OUT], outs)
    assert batch.between == rooms[-1] + wide.between


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_a_decoder_that_cannot_be_is_refused(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """In one line, before a store exists."""
    for choice, reason in (
        ({"decoder": "gpu"}, "--decoder gpu: choose from host, cuda"),
        ({"decoder": "cuda", "provider": "cpu"}, "--provider cpu infers on no CUDA card here"),
    ):
        with pytest.raises(UsageError, match=reason):
            attlas.run(tiny_graph, pictures, tmp_path / "s.zarr", **choice)  # type: ignore[arg-type]
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize(
    ("cuda", "missing", "reason"),
    [
        (False, "", "no CUDA card works here"),
        (True, "nvidia.nvimgcodec", r"needs nvImageCodec, which is not installed; `pip install 'attlas\[gpu\]'`"),
        (True, "numba.cuda", "needs numba-cuda, which is not installed"),
        (True, "", "numba-cuda runs nothing on this card"),
    ],
)
def test_what_is_missing_is_told(
    cuda: bool, missing: str, reason: str, tiny_graph: Path, pictures: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In one line, before a store exists, with and without a batch of one's own."""
    monkeypatch.setattr(providers, "PROVIDERS", (providers.Provider(providers.CPU, device="cpu", cards=True),))
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", played_library())
    if cuda:
        monkeypatch.setattr(session_module, "OrtCopies", lambda: Cudart(FakeCuda()))
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
        monkeypatch.delattr(missing, raising=False)
        for name in ("launching", "resize"):
            monkeypatch.delitem(sys.modules, f"attlas.engine.runtime.{name}", raising=False)
            monkeypatch.delattr(f"attlas.engine.runtime.{name}", raising=False)
    for batch in (None, 2):
        with pytest.raises(AttlasError, match=f"--decoder cuda: {reason}"):
            attlas.run(tiny_graph, pictures, tmp_path / "s.zarr", decoder="cuda", batch_size=batch, statistics="host")
    assert not (tmp_path / "s.zarr").exists()


def test_the_librarys_version_is_that_of_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain folder has no metadata; workers compare it."""
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", played_library())
    assert versions(decoder="cuda")["nvimgcodec"] == "0.9"
    assert "nvimgcodec" not in versions()
    with pytest.raises(AttlasError, match=r"nvimgcodec 0\.9 there, 0\.8 here"):
        check_versions({"nvimgcodec": "0.8"})
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    with pytest.raises(AttlasError, match="nvimgcodec missing there"):
        check_versions({"nvimgcodec": "0.8"})


def test_failures_of_the_library_are_one_line_or_the_hosts_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that it does not know and pixels in another form are left to the host."""
    library = played_library()
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", library)

    def source(data: bytes) -> Any:
        if not data:
            raise RuntimeError("no header")
        return SimpleNamespace(data=data)

    monkeypatch.setattr(library, "CodeStream", source)
    codec = nvimgcodec.Codec()
    first, second = codec([codec.source(data) for data in (b"", PLAIN)], 0)
    assert first is None
    assert second is not None
    assert second.shape == (32, 40, 3)
    assert codec([None], 0) == [None]
    padded = {"shape": (2, 2, 3), "strides": (8, 3, 1), "typestr": "|u1", "data": (1, False)}
    assert nvimgcodec._memory(SimpleNamespace(__cuda_array_interface__=padded)) is None
    for text, kind in (("CUDA Runtime failure: '#2' at x.h:3", OutOfMemoryError), ("odd\nthing", AttlasError)):

        def fail(*_: Any, text: str = text, **__: Any) -> Any:
            raise RuntimeError(text)

        monkeypatch.setattr(PlayedDecoder, "decode", fail)
        with pytest.raises(
            kind, match=r"--decoder cuda: (the card has too little memory|nvImageCodec fails \(odd thing)"
        ):
            codec([codec.source(PLAIN)], 0)


def test_a_batch_on_the_card_is_copied_there() -> None:
    """From memory of the card to memory of the card, whole or one picture."""
    library = FakeCuda()
    pixels, value = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3), np.zeros((2, 2, 2, 3), np.uint8)
    source, target = (Memory(array.ctypes.data, array.shape, "uint8", array) for array in (pixels, value))
    Cudart(library).upload(target[1], source[0])
    assert library.copies == [(12, Cudart.ON_DEVICE)]
    np.testing.assert_array_equal(value[1], pixels[0])
    assert not value[0].any()
    with pytest.raises(IndexError):
        source[2]


def test_doctor_says_what_decodes_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """By trying it, or why nothing does."""
    decodes = doctor._DECODES
    for library, said in (
        ("None", "needs nvImageCodec, which is not installed; `pip install 'attlas[gpu]'` brings it"),
        ("types.SimpleNamespace(__version__='0.9')", "no CUDA card works here"),  # of which no metadata tells
    ):
        known = f"import sys, types\nsys.modules['nvidia.nvimgcodec'] = {library}\n"
        monkeypatch.setattr(doctor, "_DECODES", known + decodes)
        assert doctor._on_card() == f"nothing ({said})"
    monkeypatch.setattr(doctor, "_DECODES", "print('nvImageCodec 0.9')")
    assert doctor._on_card() == "nvImageCodec 0.9"

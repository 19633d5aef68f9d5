"""What a Session takes for a picture, and what it says to everything else."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import numpy.typing as npt
import pytest
from attlas.engine.runtime.session import Session
from PIL import Image

SIZE = (16, 24)
PIXELS = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)


class Foreign:
    """An array of some other library's."""

    def __init__(self, values: npt.NDArray[Any]) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> npt.NDArray[Any]:
        return self.values


class OnCard(Foreign):
    """One that lies on a card."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> npt.NDArray[Any]:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.\nmore")


class DLPack:
    """An array that numpy knows by the exchange protocol alone."""

    def __init__(self, values: npt.NDArray[Any]) -> None:
        self.values = values

    def __dlpack__(self, **options: Any) -> Any:
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.values.__dlpack_device__()


@pytest.fixture(scope="module")
def session(tiny_graph: Path) -> Session:
    return Session(tiny_graph, provider="cpu")


@pytest.fixture
def png(tmp_path: Path) -> Path:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    return tmp_path / "a.png"


FIRST = np.ascontiguousarray(PIXELS.transpose(2, 0, 1))
FORMS: dict[str, tuple[Callable[[Path], Any], int]] = {
    "array": (lambda _path: PIXELS, 1),
    "array, channels first": (lambda _path: FIRST, 1),
    "arrays as one": (lambda _path: np.stack([PIXELS] * 2), 2),
    "arrays as one, channels first": (lambda _path: np.stack([FIRST] * 2), 2),
    "another library's": (lambda _path: Foreign(PIXELS), 1),
    "another library's batch": (lambda _path: Foreign(np.stack([FIRST] * 2)), 2),
    "exchange protocol": (lambda _path: DLPack(PIXELS), 1),
    "Pillow": (lambda _path: Image.fromarray(PIXELS), 1),
    "path": (lambda path: path, 1),
    "text": (str, 1),
    "bytes": (lambda path: path.read_bytes(), 1),
    "bytearray": (lambda path: bytearray(path.read_bytes()), 1),
    "array of paths": (lambda path: np.array([str(path)] * 3), 3),
    "iterator": (lambda path: iter([path, PIXELS]), 2),
    "mixed": (lambda path: [path, str(path), PIXELS, Foreign(FIRST), Image.fromarray(PIXELS), path.read_bytes()], 6),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_gives_the_same_whatever_it_comes_as(session: Session, png: Path, form: str) -> None:
    """Paths, Pillow images, and uint8 arrays of any library in either order of the channels."""
    make, count = FORMS[form]
    expected = session([PIXELS])["logits"][0]
    found = session(make(png))["logits"]
    assert found.shape == (count, len(expected))
    np.testing.assert_array_equal(found, np.stack([expected] * count))


def test_a_tensor_is_a_picture(session: Session) -> None:
    """As torchvision reads it, and with nothing of torch in the engine."""
    torch = pytest.importorskip("torch")
    expected = session(PIXELS)["logits"]
    np.testing.assert_array_equal(session(torch.from_numpy(FIRST.copy()))["logits"], expected)
    with pytest.raises(attlas.AttlasError, match="detach"):
        session(torch.rand(3, *SIZE, requires_grad=True))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (PIXELS / 255, "normalises them itself"),
        (FIRST.astype(np.float32)[None], "normalises them itself"),
        (PIXELS[..., 0], r"of shape \(16, 24\), uint8: this graph takes uint8 pixels of shape \(16, 24, 3\)"),
        (np.zeros((*SIZE, 4), np.uint8), r"of shape \(16, 24, 4\)"),
        (np.zeros((30, 30, 3), np.uint8), r"pass a path or a Pillow image \(Image.fromarray makes one\)"),
        (np.float32(3), "of shape"),
        ([Foreign(PIXELS / 255), PIXELS], "normalises them itself"),
        (OnCard(PIXELS), r"OnCard: cannot be read as an array of this machine's \(can't convert.*cpu\(\) first\.\)$"),
        (None, "NoneType: pass a path"),
        (5, "int: pass a path"),
        ({"image": PIXELS}, "dict: pass a path"),
        ([5], "int: is no picture; pass a path"),
        (PIXELS.tolist(), "list: is no picture"),
        ("absent.png", "absent.png: cannot be read"),
        (b"text", "a picture of bytes: cannot be decoded"),
    ],
)
def test_what_is_no_picture_is_told_what_to_be(session: Session, given: Any, said: str) -> None:
    """One line: what was found, and what to pass."""
    with pytest.raises(attlas.AttlasError, match=said) as caught:
        session(given)
    assert "\n" not in str(caught.value)


def test_no_picture_is_no_error(session: Session) -> None:
    """Arrays without rows."""
    assert session([])["attention"].shape == (0, 2, 2, 7, 7)


@pytest.mark.parametrize("graph", [PIXELS, None, 5, io.BytesIO()])
def test_a_graph_is_a_path(graph: Any) -> None:
    """Whatever else is given says so."""
    with pytest.raises(attlas.AttlasError, match="graph: pass the path of an ONNX file, not "):
        Session(graph)

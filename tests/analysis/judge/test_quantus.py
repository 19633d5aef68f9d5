"""The same images and maps through Quantus (Hedström et al. 2023), which others use: equal to 1e-4.

`pip install quantus` brings it, and much with it; where it is missing this skips.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import onnxruntime
import pytest
from attlas.engine.runtime.pictures import crop_of
from attlas.engine.store.store import Store

torch = pytest.importorskip("torch")
quantus = pytest.importorskip("quantus", reason="Quantus is not installed: `pip install quantus`")
boxes = pytest.importorskip("attlas.analysis.formulas.boxes")

GREY = 128  # the mean colour of the test graph's recipe


class Model(torch.nn.Module):
    """The graph, as Quantus calls a model: (image, channel, row, column) of values from 0 to 255, to logits."""

    def __init__(self, graph: Path) -> None:
        super().__init__()
        self._session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])

    def forward(self, x: Any) -> Any:
        pixels = np.moveaxis(x.numpy(), 1, -1).round().astype(np.uint8)
        return torch.from_numpy(self._session.run(["logits"], {"image": np.ascontiguousarray(pixels)})[0])


@pytest.fixture(scope="module")
def given(made: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A store that was judged patch by patch, and what Quantus takes."""
    path = Path(shutil.copytree(made.store, tmp_path_factory.mktemp("quantus") / "s.zarr"))
    attlas.judge(path, made.graph, made.images, maps=["rollout"], steps=6)
    store = Store(path)
    at = np.flatnonzero(store.read("valid"))
    pixels = np.stack([crop_of(made.images / str(store.read("path", int(i))), store.spec) for i in at])
    maps = store.read("rollout")[at].astype(np.float64)
    large = maps.repeat(8, axis=1).repeat(8, axis=2)[:, None]
    return {
        "curves": [store.read(f"{curve}.mean-6.rollout")[at] for curve in ("deletion", "insertion")],
        "maps": maps,
        "call": {
            "model": Model(made.graph).eval(),
            "x_batch": np.moveaxis(pixels, -1, 1).astype(np.float32),
            "y_batch": store.read("logits")[at].argmax(-1),
            "a_batch": large,
            "channel_first": True,
            "device": "cpu",
        },
    }


OPTIONS = {"normalise": False, "abs": False, "disable_warnings": True, "perturb_baseline": float(GREY)}


@pytest.mark.parametrize(("score", "softmax"), [(0, False), (1, True)])
def test_deletion_is_pixel_flipping(given: dict[str, Any], score: int, softmax: bool) -> None:
    found = quantus.PixelFlipping(features_in_step=3 * 64, **OPTIONS)(**given["call"], softmax=softmax)
    np.testing.assert_allclose(given["curves"][0][:, score, 1:], np.array(found), atol=1e-4)


def test_most_and_least_relevant_first_are_region_perturbation(given: dict[str, Any]) -> None:
    deletion, insertion = (curve[:, 1] for curve in given["curves"])
    for order, curve in (("morf", deletion), ("lerf", insertion[:, ::-1])):
        metric = quantus.RegionPerturbation(patch_size=8, regions_evaluation=6, order=order, **OPTIONS)
        found = np.array(metric(**given["call"], softmax=True))
        np.testing.assert_allclose(curve[:, :1] - curve[:, 1:], found, atol=1e-4)


def test_the_pointing_game_is_quantus_s(given: dict[str, Any]) -> None:
    inside = np.random.default_rng(2).random((len(given["maps"]), 2, 3)) < 0.5
    inside[~inside.any(axis=(1, 2)), 0, 0] = True
    masks = inside.repeat(8, axis=1).repeat(8, axis=2)[:, None]
    options = {name: OPTIONS[name] for name in ("normalise", "abs", "disable_warnings")}
    found = quantus.PointingGame(**options)(**given["call"], s_batch=masks)
    ours = [
        bool(boxes.pointing_hit(one, cover.astype(float).tolist()))
        for one, cover in zip(given["maps"], inside, strict=True)
    ]
    assert ours == [bool(hit) for hit in found]
    assert 0 < sum(ours) < len(ours)

"""What the tests of gradients share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

pytest.importorskip("timm")


from attlas.exporter.libraries.build import build
from attlas.exporter.libraries.protocol import Model
from attlas.exporter.taps.attention import Taps
from attlas.exporter.taps.facts import describe
from attlas.exporter.taps.gradients import Gradients
from attlas.exporter.taps.tapped import Tapped

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 64}

DEIT = "deit_tiny_patch16_224"


def make(name: str = DEIT, **kwargs: Any) -> Model:
    """A small model with random weights, its queries scaled so that attention is far from uniform."""
    built = build(name, random_init=True, seed=3, model_args={**SMALL, **kwargs})
    for owners in Taps(built, name).owners.values():
        for owner in owners:
            owner.scale = owner.scale * 30
    return built


def derive(built: Model, layers: tuple[int, ...] | None = None) -> Gradients:
    taps = Taps(built)
    chosen = tuple(range(taps.depth)) if layers is None else layers
    return Gradients(Tapped(built, taps, describe(built, taps), chosen), built.name)


def run(path: Path, images: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    values = session.run(None, {"image": images, "target": target})
    return dict(zip([o.name for o in session.get_outputs()], values, strict=True))

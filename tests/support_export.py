"""What the tests of export share."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch")

pytest.importorskip("timm")


from attlas.exporter.libraries.build import build  # noqa: E402
from attlas.exporter.libraries.protocol import Model  # noqa: E402
from attlas.exporter.taps.attention import Taps  # noqa: E402
from attlas.exporter.taps.facts import describe  # noqa: E402
from attlas.exporter.taps.pictures import pictures  # noqa: E402
from attlas.exporter.taps.tapped import Tapped  # noqa: E402

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 64}

DEIT = "deit_tiny_patch16_224"

# One name of each kind, with what must be read from the model: prefix, pooling, position, first output.
FAMILIES: dict[str, tuple[dict[str, Any], tuple[str, ...], str, str, str]] = {
    DEIT: ({}, ("class",), "class", "absolute", "logits"),
    "deit_tiny_distilled_patch16_224": ({}, ("class", "distillation"), "distilled", "absolute", "logits"),
    "vit_base_patch16_224.dino": ({}, ("class",), "class", "absolute", "features"),
    "vit_base_patch16_clip_224.openai": ({}, ("class",), "class", "absolute", "features"),
    "vit_small_patch14_reg4_dinov2": (
        {"img_size": 56}, ("class", *["register"] * 4), "class", "absolute", "features",
    ),
    "vit_medium_patch16_reg4_gap_256": ({}, ("register",) * 4, "mean", "absolute", "logits"),
    "vit_base_patch16_siglip_224": ({}, (), "pool", "absolute", "features"),
    "eva02_tiny_patch14_224": ({"img_size": 56}, ("class",), "mean", "rotary", "features"),
    "vit_small_patch16_dinov3": ({}, ("class", *["register"] * 4), "mean", "rotary", "features"),
    "vit_relpos_small_patch16_224": ({}, (), "mean", "relative", "logits"),
    "beit_base_patch16_224": ({}, ("class",), "mean", "relative", "logits"),
    "vit_small_patch16_18x2_224": ({}, ("class",), "class", "absolute", "logits"),
    "vit_dpwee_patch16_reg1_gap_256": ({}, ("register",), "mean", "absolute", "logits"),
    "qwen3_vit_88m": ({}, (), "mean", "rotary", "features"),
    "naflexvit_base_patch16_map": ({}, ("register",), "pool", "absolute", "logits"),
    "cait_xxs24_224": ({"num_heads": 4}, (), "class", "absolute", "logits"),
}  # fmt: skip

_SHARED = os.environ.get("ATTLAS_SHARED")

needs_shared = pytest.mark.skipif(
    not _SHARED, reason="ATTLAS_SHARED is not set: the folder with models/ and images/ of the real-weight tests"
)


def make(name: str, **kwargs: Any) -> Model:
    """A small model with random weights and attention that is neither uniform nor one-hot."""
    built = build(name, random_init=True, seed=3, model_args={**SMALL, **FAMILIES.get(name, ({},))[0], **kwargs})
    sharpen(built)
    return built


def sharpen(built: Model, rounds: int = 8) -> None:
    """Scale the queries of each layer until its mean entropy is about half of ln N: uniform maps prove nothing."""
    taps = Taps(built)
    image = torch.from_numpy(pictures(1, built.image_size)).permute(0, 3, 1, 2) / 127.5 - 1
    step = 2.0**rounds
    for _ in range(rounds + 2):
        with torch.no_grad(), taps.recording() as seen:
            built.module(image)
        for layer, owners in taps.owners.items():
            a = seen.maps[layer][0].abs().clamp_min(1e-30)
            uniform = float(-(a * a.log()).sum(-1).mean()) > 0.5 * math.log(a.shape[-1])
            for owner in owners:
                owner.scale = owner.scale * (step if uniform else 1 / step)
        step = math.sqrt(step)


def run(path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"image": images}), strict=True))


def reference(built: Model) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    taps = Taps(built)
    return Tapped(built, taps, describe(built, taps), tuple(range(taps.depth))).run


def _plain_spec() -> dict[str, Any]:
    recipe = {
        "resize": [32, 32], "crop": [32, 32], "crop_mode": "center", "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
    }  # fmt: skip
    return {
        "attlas_format": 1, "model": "m", "tag": "", "weights": {"source": "random", "sha256": ""}, "dtype": "float32",
        "image_size": [32, 32], "recipe": recipe, "patch_size": [16, 16], "grid": [2, 2], "prefix": ["class"],
        "pooling": "class", "layers": [0], "depth": 1, "heads": 1, "attention_kind": "probability",
        "position": "none", "outputs": [],
    }  # fmt: skip

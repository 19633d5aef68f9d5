"""The formulas give what their authors' code gives."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attlas.analysis import formulas as f
from support_formulas import PIXELS

SHARED = os.environ.get("ATTLAS_SHARED", "")


# -- what the authors' code gives -------------------------------------------------------------------------------------


@cache
def golden() -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Golden arrays, and attention, gradient (image, layer, head, query, key) and logits of their images."""
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    from PIL import Image
    from safetensors.torch import load_file

    set_fused = timm.layers.use_fused_attn()
    timm.layers.set_fused_attn(False)
    try:
        model = timm.create_model("deit_tiny_patch16_224", pretrained=False)
    finally:
        timm.layers.set_fused_attn(bool(set_fused))
    model.load_state_dict(load_file(f"{SHARED}/models/deit_tiny_patch16_224.safetensors"))
    model.eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    with np.load(f"{SHARED}/golden/deit_tiny.npz") as file:
        data = dict(file)
    pictures = [Image.open(f"{SHARED}/images/{name}").convert("RGB") for name in data["files"]]
    maps: list[Any] = []
    for block in model.blocks:
        block.attn.attn_drop.register_forward_hook(lambda module, given, out: maps.append(out))
    logits = model(torch.stack([transform(p) for p in pictures]))
    gradients = torch.autograd.grad(logits[torch.arange(len(logits)), logits.argmax(-1)].sum(), maps)
    a, g = (torch.stack(list(x), 1).detach().numpy() for x in (maps, gradients))
    return data, a, g, logits.detach().numpy()


GOLDEN = {
    "entropy": lambda a, g: f.entropy(a),
    "distance_raghu_px": lambda a, g: f.distance(a, (14, 14), PIXELS),
    "distance_renormalized_px": lambda a, g: f.distance_renormalized(a, (14, 14), PIXELS),
    "distance_unit_square": lambda a, g: f.distance_unit_square(a, (14, 14)),
    "abnar_start0": lambda a, g: f.rollout(list(np.moveaxis(a, 1, 0)), (14, 14)),
    "abnar_start1": lambda a, g: f.rollout(list(np.moveaxis(a, 1, 0)), (14, 14), start_layer=1),
    "chefer": lambda a, g: f.chefer(list(np.moveaxis(f.gradient_positive(a, g), 1, 0)), (14, 14)),
    "head_importance": lambda a, g: f.head_importance(a, g),
    "dino_heads": lambda a, g: f.readout_map(a[:, -1], (14, 14)),
} | {
    f"vit_explain_{fusion}_{discard}": lambda a, g, fusion=fusion, discard=discard: f.rollout_vit_explain(
        list(np.moveaxis(a, 1, 0)), (14, 14), fusion=fusion, discard=discard
    )
    for fusion, discard in [("mean", 0.0), ("mean", 0.9), ("max", 0.9), ("min", 0.9)]
}


@pytest.mark.skipif(
    not Path(SHARED, "golden", "deit_tiny.npz").is_file() or not SHARED,
    reason="ATTLAS_SHARED names no folder with golden/deit_tiny.npz",
)
@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_equals_what_the_authors_code_gives(name: str) -> None:
    data, a, g, logits = golden()
    np.testing.assert_array_equal(logits.argmax(-1), data["target"])
    got, expected = GOLDEN[name](a, g), data[name]
    assert got.shape == expected.shape
    # The formulas agree far better (above). Both sides rest on a float32 network, whose rounding differs between
    # processors by 7e-6 of these maxima.
    worst = np.sort([np.abs(one - its).max() / np.abs(expected).max() for one, its in zip(got, expected, strict=True)])
    if name.endswith("_0.9"):
        # Such a difference may carry an entry of the attention over the edge of what is discarded, which moves the map
        # of its image by up to 1.3e-3: in some of the images.
        assert worst[2] <= 2e-5
        assert worst[-1] <= 5e-3
    else:
        assert worst[-1] <= 2e-5

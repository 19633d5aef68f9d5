"""The plain PyTorch that `gpu.py` is measured against: timm's model with hooks on its attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from attlas.analysis import formulas
from attlas.exporter.spec import GraphSpec

__all__ = ["build", "peer"]

WRITERS = 8


def build(name: str, checkpoints: Path | None, folder: Path) -> tuple[Any, Path]:
    """Timm's model, and the file of its weights: given ones, or random ones with sharp attention."""
    import timm
    import torch
    from safetensors.torch import load_file, save_file

    timm.layers.set_fused_attn(False)
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    path = folder / f"{name}.safetensors"
    given = checkpoints / path.name if checkpoints else path
    if given.is_file():
        model.load_state_dict(load_file(given))
        return model, given
    sharpen(model)
    save_file(model.state_dict(), path)
    return model, path


def sharpen(model: Any) -> None:
    """Scale queries and keys until the mean entropy is below 0.6 of uniform attention's: uniform maps prove nothing."""
    import torch

    maps = tap(model)
    noise = torch.randn(2, 3, *model.patch_embed.img_size)
    for _ in range(12):
        maps.clear()
        with torch.inference_mode():
            model(noise)
        entropy = np.mean([float(-(a * a.clamp_min(1e-30).log()).sum(-1).mean()) for a in maps])
        if entropy < 0.6 * np.log(maps[0].shape[-1]):
            break
        with torch.no_grad():
            for block in model.blocks:
                width = block.attn.qkv.weight.shape[0] // 3
                block.attn.qkv.weight[: 2 * width] *= 1.5
    untap(model)


def tap(model: Any) -> list[Any]:
    """A list that every forward pass fills with the attention of its layers."""
    maps: list[Any] = []
    for block in model.blocks:
        block.attn.attn_drop.register_forward_hook(lambda _m, _i, out: maps.append(out))
    return maps


def untap(model: Any) -> None:
    for block in model.blocks:
        block.attn.attn_drop._forward_hooks.clear()


def peer(
    name: str, checkpoints: Path | None, folder: Path, device: str, batch: int, spec: GraphSpec
) -> Iterator[tuple[str, Callable[[], int]]]:
    """Steps of one batch each: hooks alone, with statistics on the device, and with maps written to the same disk."""
    import torch

    model, _ = build(name, checkpoints, folder)
    dtype = torch.float32 if device == "cpu" else torch.float16
    model = model.to(device, dtype)
    maps = tap(model)
    pixels = torch.zeros(batch, 3, *model.patch_embed.img_size, device=device, dtype=dtype)
    rows = formulas.readout_rows(spec.prefix, spec.grid, spec.readout)

    def infer(forward: Any = model) -> int:
        maps.clear()
        with torch.inference_mode():
            forward(pixels)
        if device != "cpu":
            torch.cuda.synchronize()
        return batch

    def statistics() -> int:
        infer()
        with torch.inference_mode():
            layers = [a.float() for a in maps]
            for a in layers:
                formulas.distance(a, spec.grid, spec.patch_size).cpu()
                formulas.distance_renormalized(a, spec.grid, spec.patch_size).cpu()
                formulas.entropy(a).cpu()
                formulas.entropy_patch(a, len(spec.prefix)).cpu()
                formulas.prefix_mass(a, len(spec.prefix)).cpu()
            formulas.rollout(layers, spec.grid, rows).cpu()
        return batch

    def save(k: int, a: Any) -> None:
        np.save(folder / f"map{k}.npy", a)

    pool = ThreadPoolExecutor(WRITERS)

    def written() -> int:
        infer()
        list(pool.map(save, range(len(maps)), [a.half().cpu().numpy() for a in maps]))
        return batch

    yield "hooks", infer
    yield "hooks, the default statistics", statistics
    yield "hooks, maps by numpy.save", written
    if device != "cpu":
        yield "hooks, compiled", partial(infer, torch.compile(model))

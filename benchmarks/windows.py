"""A prototype of windowed attention: a Swin's maps kept by window, and whether what docs/design/windows.md says holds.

    python benchmarks/windows.py [--model swin_tiny_patch4_window7_224] [--img-size 224] [--checkpoint FILE]

Not a part of attlas, which refuses such models. Without a checkpoint the weights are random with queries scaled by 12,
so that attention is not uniform. It prints for every block how far the kept maps times the values are from the block's
own output, what the statistics of the design are, and how many bytes an image takes. The latest run is in the design.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load_file
from torch import nn

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Windows:
    """Which tokens a window holds: all that a reader needs beside the maps.

    `token` (window, slot): the row-major index in the block's grid, -1 for padding; `region` (window, slot): slots of
    a window attend to each other only within one region, since a shifted window joins edges of the picture.
    """

    grid: tuple[int, int]
    token: Array
    region: Array

    @classmethod
    def of(cls, grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]) -> Windows:
        """From the block's grid, its window and its shift, as Swin rolls, pads and cuts them."""
        ids = np.roll(np.arange(grid[0] * grid[1]).reshape(grid), (-shift[0], -shift[1]), (0, 1))
        pad = [(0, -edge % w) for edge, w in zip(grid, window, strict=True)]
        ids = np.pad(ids, pad, constant_values=-1)
        bands = []
        for edge, w, s in zip(ids.shape, window, shift, strict=True):
            band = np.zeros(edge, int)
            if any(shift):
                band[edge - w :] = 1
                band[edge - s :] = 2
            bands.append(band)
        regions = 3 * bands[0][:, None] + bands[1]
        return cls(grid, _cut(ids, window), _cut(regions, window))

    @property
    def allowed(self) -> Array:
        """(window, query, key): pairs of real tokens that may attend."""
        real = self.token >= 0
        return (self.region[:, :, None] == self.region[:, None]) & real[:, :, None] & real[:, None]

    def dense(self, maps: Array) -> Array:
        """(head, window, query, key) to (head, token, token), zero where no window joins them."""
        tokens = self.grid[0] * self.grid[1]
        found = np.zeros((len(maps), tokens, tokens), maps.dtype)
        for w, slots in enumerate(self.token):
            real = np.flatnonzero(slots >= 0)
            found[:, slots[real, None], slots[real]] = maps[:, w][:, real[:, None], real]
        return found

    def rows(self, values: Array) -> Array:
        """(..., window, query) to (..., token)."""
        found = np.zeros((*values.shape[:-2], self.grid[0] * self.grid[1]), values.dtype)
        real = self.token >= 0
        found[..., self.token[real]] = values[..., real]
        return found

    def distance(self, maps: Array, patch: float) -> Array:
        """(head, token) mean distance in pixels between a query and its keys, over its mass on real tokens."""
        y, x = np.divmod(np.maximum(self.token, 0), self.grid[1])
        apart = patch * np.hypot(y[:, :, None] - y[:, None], x[:, :, None] - x[:, None])
        inside = maps * self.allowed
        return self.rows((inside * apart).sum(-1) / inside.sum(-1).clip(1e-30))

    def entropy(self, maps: Array) -> Array:
        """(head, token) entropy of each row in nats; of how many keys a row has, see `keys`."""
        return self.rows(-(maps * np.log(maps.clip(1e-30))).sum(-1))

    def keys(self) -> Array:
        """(token): how many keys each row may attend to; a uniform row has the entropy ln of it."""
        return self.rows(self.allowed.sum(-1))


def _cut(plane: Array, window: tuple[int, int]) -> Array:
    """(row, column) to (window, slot)."""
    rows, columns = plane.shape
    cut = plane.reshape(rows // window[0], window[0], columns // window[1], window[1]).swapaxes(1, 2)
    return cut.reshape(-1, window[0] * window[1])


@dataclass(frozen=True)
class Block:
    """What one block gave for one picture: maps (head, window, query, key), and the error of maps times values."""

    name: str
    windows: Windows
    maps: Array
    patch: float
    error: float


def blocks(model: nn.Module, picture: torch.Tensor) -> Iterator[Block]:
    """One forward pass; each block's maps, checked against what the block makes of its values."""
    found: list[tuple[str, Any, dict[str, torch.Tensor]]] = []
    hooks = []
    for name, module in model.named_modules():
        if hasattr(module, "attn_drop") and hasattr(module, "window_size"):
            block, seen = model.get_submodule(name.rpartition(".")[0]), dict[str, torch.Tensor]()
            found.append((name.rpartition(".")[0], block, seen))
            hooks += [
                module.attn_drop.register_forward_hook(lambda _m, _i, out, seen=seen: seen.update(maps=out)),
                module.qkv.register_forward_hook(lambda _m, _i, out, seen=seen: seen.update(qkv=out)),
                module.proj.register_forward_pre_hook(lambda _m, given, seen=seen: seen.update(out=given[0])),
            ]
    with torch.no_grad():
        model(picture)
    for hook in hooks:
        hook.remove()
    for name, block, seen in found:
        grid = tuple(block.input_resolution)
        windows = Windows.of(grid, block.window_size, block.shift_size)
        maps = seen["maps"].numpy().swapaxes(0, 1)  # (window, head, query, key) of one picture
        values = (
            seen["qkv"].numpy().reshape(*maps.shape[1:3], 3, len(maps), -1)[:, :, 2]
        )  # (window, slot, head, channel)
        out = seen["out"].numpy().reshape(values.shape)
        # The whole claim: one matrix over all tokens, made of the windows, times the values of all tokens.
        whole = np.stack([windows.rows(values[..., h, c]) for h in range(len(maps)) for c in range(2)])
        whole = whole.reshape(len(maps), 2, -1)
        made = np.einsum("hqk,hck->hcq", windows.dense(maps), whole)
        true = np.stack([windows.rows(out[..., h, c]) for h in range(len(maps)) for c in range(2)]).reshape(made.shape)
        yield Block(
            name, windows, maps, picture.shape[-1] / grid[1], float(np.abs(made - true).max() / np.abs(true).max())
        )


def rollout(found: list[Block]) -> Array:
    """(y, x) on the first block's grid: half attention, half identity, block by block; a merge is a mean of its four.

    Only rows of one window meet in a product, so that no N x N product is ever made.
    """
    first = found[0].windows.grid
    rolled = np.eye(first[0] * first[1], dtype=np.float32)
    before = first
    for block in found:
        grid = block.windows.grid
        if grid != before:
            whole = rolled.reshape(before[0], before[1], -1)
            whole = np.pad(whole, ((0, before[0] % 2), (0, before[1] % 2), (0, 0)))
            rolled = whole.reshape(grid[0], 2, grid[1], 2, -1).mean((1, 3)).reshape(grid[0] * grid[1], -1)
            rolled /= rolled.sum(-1, keepdims=True)
            before = grid
        mean = block.maps.mean(0)  # over heads
        after = np.empty_like(rolled)
        for w, slots in enumerate(block.windows.token):
            real = np.flatnonzero(slots >= 0)
            a = mean[w][real[:, None], real]
            a = a / a.sum(-1, keepdims=True)
            after[slots[real]] = 0.5 * (a @ rolled[slots[real]] + rolled[slots[real]])
        rolled = after
    return rolled.mean(0).reshape(first)


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="swin_tiny_patch4_window7_224")
    options.add_argument("--img-size", type=int, default=224)
    options.add_argument("--checkpoint", type=Path)
    asked = options.parse_args()
    timm.layers.set_fused_attn(False)
    torch.manual_seed(0)
    model = timm.create_model(asked.model, img_size=asked.img_size).eval()
    if asked.checkpoint is not None:
        model.load_state_dict(load_file(asked.checkpoint))
    else:
        with torch.no_grad():
            for module in model.modules():
                if hasattr(module, "attn_drop"):
                    module.scale *= 12
    y, x = np.mgrid[: asked.img_size, : asked.img_size] / asked.img_size
    picture = torch.tensor(np.stack([np.sin(9 * y + 5 * x), np.cos(20 * x * y), np.sign(y - x)]), dtype=torch.float32)
    found = list(blocks(model, picture[None]))
    print("| block | grid | windows | on padding | error | rows | distance | uniform | entropy | ln keys | kB, dense |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for one in found:
        windows, maps = one.windows, one.maps
        uniform = windows.allowed / windows.allowed.sum(-1, keepdims=True).clip(1)
        distances = [windows.distance(m, one.patch).mean() for m in (maps, uniform[None])]
        real = (maps * windows.allowed).sum(-1)[:, windows.token >= 0]
        dense = len(maps) * np.prod(windows.grid, dtype=float) ** 2 * 2 / 1e3
        print(
            f"| {one.name} | {windows.grid[0]} x {windows.grid[1]} | {len(windows.token)} x {windows.token.shape[1]} | "
            f"{1 - real.mean():.3f} | {one.error:.1e} | {np.abs(maps.sum(-1) - 1).max():.0e} | "
            f"{distances[0]:.1f} | {distances[1]:.1f} | "
            f"{windows.entropy(maps).mean():.2f} | {np.log(windows.keys()).mean():.2f} | {maps.size * 2 / 1e3:,.0f}, "
            f"{dense:,.0f} |"
        )
    began = time.perf_counter()
    rolled = rollout(found)
    took = time.perf_counter() - began
    print(f"\nrollout over {rolled.shape[0]} x {rolled.shape[1]}: sums to {rolled.sum():.6f}, {took:.2f} s")
    print(f"float16 maps of one picture: {sum(one.maps.size for one in found) * 2 / 1e6:.1f} MB by window")


if __name__ == "__main__":
    main()

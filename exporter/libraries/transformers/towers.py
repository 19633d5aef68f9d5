"""From transformers' models to modules of one input and one output, with attention that shows its maps."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.utils import logging as library_logging

from ..quiet import unheard

__all__ = ["ATTENTION", "Tower", "attentions", "quiet", "tower"]

ATTENTION = "attlas"  # the name under which transformers knows `_attend`


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **unused: Any,
) -> tuple[Tensor, Tensor]:
    """Transformers' eager attention, whose probabilities pass the module's `attn_drop`.

    Queries are scaled before the product, as in timm's models.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * scale, key.transpose(2, 3))
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = module.get_submodule("attn_drop")(scores.softmax(dim=-1))
    return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), probabilities


def _no_mask(*unused: Any, **options: Any) -> None:
    """Every token sees every other: there is no padding."""


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, _no_mask)


class Tower(nn.Module):
    """A model from pixels (image, channel, y, x) to one of its outputs."""

    def __init__(self, model: PreTrainedModel, read: str, **options: Any) -> None:
        super().__init__()
        self.model = model
        self.read = read
        self.options = options

    def forward(self, pixels: Tensor) -> Tensor:
        """The output `read` for these pixels."""
        out: Tensor = self.model(**self.inputs(pixels), **self.options)[self.read]
        return out

    def inputs(self, pixels: Tensor) -> dict[str, Tensor | None]:
        """What the model is called with."""
        return {"pixel_values": pixels}


class _Patches(Tower):
    """SigLIP2 takes patches, and the grid that they come from."""

    def inputs(self, pixels: Tensor) -> dict[str, Tensor | None]:
        config = getattr(self.model.config, "vision_config", self.model.config)
        edge = int(config.patch_size)
        rows, columns = pixels.shape[2] // edge, pixels.shape[3] // edge
        patches = pixels[:, :, : rows * edge, : columns * edge]
        patches = patches.reshape(-1, 3, rows, edge, columns, edge).permute(0, 2, 4, 3, 5, 1)
        grid = torch.tensor([[rows, columns]], device="cpu")  # has data even where the rest has none
        return {"pixel_values": patches.flatten(3).flatten(1, 2), "pixel_attention_mask": None, "spatial_shapes": grid}


class _Unmasked(Tower):
    """A masked autoencoder's encoder that sees every patch, in order: noise that rises shuffles nothing."""

    def inputs(self, pixels: Tensor) -> dict[str, Tensor | None]:
        edge = int(self.model.config.patch_size)
        patches = (pixels.shape[2] // edge) * (pixels.shape[3] // edge)
        noise = torch.arange(patches, dtype=torch.float32, device=pixels.device)
        return {"pixel_values": pixels, "noise": noise.expand(pixels.shape[0], -1)}


class _Backbone(Tower):
    """A backbone's tokens after its norm, which the decoder takes from chosen layers."""

    def forward(self, pixels: Tensor) -> Tensor:
        model: Any = self.model
        tokens = model.encoder(model.embeddings(pixels)).last_hidden_state
        out: Tensor = model.layernorm(tokens)
        return out


def tower(model: PreTrainedModel, read: str, grid: tuple[int, int], resample: bool) -> Tower:
    """The module for a model on a grid of patches; `resample` tells its class to resample position embeddings."""
    for _, part in attentions(model):
        part.attn_drop = nn.Identity()
    for part in model.modules():
        # BEiT keeps the index of a grid for the whole process: made first for a summary, it would have no data.
        if (index := getattr(part, "generate_relative_position_index", None)) is not None:
            with torch.device("cpu"):
                index(grid)
    options = {"interpolate_pos_encoding": True} if resample else {}
    name = type(model).__name__
    if name.startswith("Siglip2"):
        _fix_positions(model, grid)
        return _Patches(model, read)
    if name.startswith("ViTMAE"):
        model.config.mask_ratio = 0.0
        return _Unmasked(model, read, **options)
    if name.endswith("Backbone"):
        return _Backbone(model, read)
    return Tower(model, read, **options)


def _fix_positions(model: nn.Module, grid: tuple[int, int]) -> None:
    """Resample SigLIP2's position embeddings once: its code does it for every image, in operators that ONNX lacks."""
    embeddings: Any = next(p for p in model.modules() if hasattr(p, "resize_positional_embeddings"))
    edge = int(embeddings.position_embedding_size)
    table = embeddings.position_embedding.weight.detach().view(edge, edge, -1)
    shape = torch.tensor([grid], device="cpu")
    fixed = embeddings.resize_positional_embeddings(table, shape, max_length=math.prod(grid))
    embeddings.resize_positional_embeddings = lambda *given, **options: fixed


def attentions(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that call the attention function, by path: only those say whether they are causal."""
    return [(path, part) for path, part in model.named_modules() if hasattr(part, "is_causal")]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress progress bars, log lines and warnings of the library: errors are raised anyway."""
    level = library_logging.get_verbosity()
    library_logging.set_verbosity(logging.CRITICAL)
    try:
        with unheard():
            yield
    finally:
        library_logging.set_verbosity(level)

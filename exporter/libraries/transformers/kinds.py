"""The model types of transformers that are exported: their classes, and what their heads read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...spec import Pooling

__all__ = ["BACKBONES", "KINDS", "Kind"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One model type.

    Attributes:
        tower: the class without a head, for files whose own head is none of the other classes.
        heads: classes whose output is read besides the tower's, with what their head reads.
        pooling: what the tower's own features are read from.
        read: the tower's output that is read: `pooler_output`, or the tokens.
        arguments: arguments of the tower's class.
        resampled: whether the class resamples its position embeddings only when it is told to.
    """

    tower: str
    heads: Mapping[str, Pooling] = field(default_factory=dict)
    pooling: Pooling = "class"
    read: str = "last_hidden_state"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    resampled: bool = True


# A pooling layer that no published head reads would be random where a file lacks it.
_PLAIN = {"add_pooling_layer": False}
_CLIP = Kind(
    "CLIPVisionModel",
    {
        "CLIPForImageClassification": "mean",
        "CLIPVisionModelWithProjection": "class",
        "CLIPModel": "class",  # read as CLIPVisionModelWithProjection
    },
    read="pooler_output",
)
_SIGLIP = Kind("SiglipVisionModel", {"SiglipForImageClassification": "mean"}, "pool", "pooler_output")
_SIGLIP2 = Kind(
    "Siglip2VisionModel", {"Siglip2ForImageClassification": "mean"}, "pool", "pooler_output", resampled=False
)

KINDS: dict[str, Kind] = {
    "vit": Kind("ViTModel", {"ViTForImageClassification": "class"}, arguments=_PLAIN),
    "deit": Kind(
        "DeiTModel",
        {"DeiTForImageClassification": "class", "DeiTForImageClassificationWithTeacher": "distilled"},
        arguments=_PLAIN,
    ),
    "beit": Kind("BeitModel", {"BeitForImageClassification": "mean"}, "mean", "pooler_output", resampled=False),
    "dinov2": Kind("Dinov2Model", {"Dinov2ForImageClassification": "class_mean"}, resampled=False),
    "dinov2_with_registers": Kind(
        "Dinov2WithRegistersModel", {"Dinov2WithRegistersForImageClassification": "class_mean"}, resampled=False
    ),
    "dinov3_vit": Kind("DINOv3ViTModel", resampled=False),
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "siglip2": _SIGLIP2,
    "siglip2_vision_model": _SIGLIP2,
    "vit_mae": Kind("ViTMAEModel", pooling="none"),
    "dpt": Kind("DPTModel", pooling="none", arguments=_PLAIN, resampled=False),
    "depth_anything": Kind("DepthAnythingForDepthEstimation", pooling="none", resampled=False),
    "ijepa": Kind("IJepaModel", {"IJepaForImageClassification": "mean"}, "none"),
}

# Backbones inside other models whose blocks are those of one of the kinds.
BACKBONES = frozenset({"Dinov2Backbone", "Dinov2WithRegistersBackbone"})

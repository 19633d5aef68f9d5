"""Small models of transformers with random weights, sharpened, in folders as save_pretrained writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
T = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8,
}  # fmt: skip
MLP = {"intermediate_size": 96}
FOUR = {"num_hidden_layers": 4}  # a decoder takes four layers
DECODER = {"neck_hidden_sizes": [16] * 4, "fusion_hidden_size": 16}
TEXT = {
    "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 96, "vocab_size": 100,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
PATCHES = {k: v for k, v in SMALL.items() if k != "image_size"} | MLP | {"num_patches": 16}

# By name: the model, then what must be read from it: prefix, pooling, position, first output.
MODELS: dict[str, tuple[Callable[[], Any], tuple[str, ...], str, str, str]] = {
    "vit": (lambda: T.ViTForImageClassification(T.ViTConfig(**SMALL, **MLP, num_labels=5)),
            ("class",), "class", "absolute", "logits"),
    "deit": (lambda: T.DeiTForImageClassificationWithTeacher(T.DeiTConfig(**SMALL, **MLP, num_labels=5)),
             ("class", "distillation"), "distilled", "absolute", "logits"),
    "beit": (lambda: T.BeitForImageClassification(
                 T.BeitConfig(**SMALL, **MLP, num_labels=5, use_relative_position_bias=True)),
             ("class",), "mean", "relative", "logits"),
    "dinov2": (lambda: T.Dinov2ForImageClassification(T.Dinov2Config(**SMALL, num_labels=5)),
               ("class",), "class_mean", "absolute", "logits"),
    "registers": (lambda: T.Dinov2WithRegistersModel(T.Dinov2WithRegistersConfig(**SMALL, num_register_tokens=2)),
                  ("class", "register", "register"), "class", "absolute", "features"),
    "registered": (lambda: T.Dinov2WithRegistersForImageClassification(
                       T.Dinov2WithRegistersConfig(**SMALL, num_register_tokens=2, num_labels=5)),
                   ("class", "register", "register"), "class_mean", "absolute", "logits"),
    "dinov3": (lambda: T.DINOv3ViTModel(T.DINOv3ViTConfig(**SMALL, **MLP, num_register_tokens=2)),
               ("class", "register", "register"), "class", "rotary", "features"),
    "clip": (lambda: T.CLIPModel(T.CLIPConfig(vision_config=SMALL | MLP | {"projection_dim": 16},
                                              text_config=TEXT | {"projection_dim": 16}, projection_dim=16)),
             ("class",), "class", "absolute", "features"),
    "clip_classes": (lambda: T.CLIPForImageClassification(
                         T.CLIPConfig(vision_config=SMALL | MLP | {"projection_dim": 16}, num_labels=5,
                                      text_config=TEXT | {"projection_dim": 16}, projection_dim=16)),
                     ("class",), "mean", "absolute", "logits"),
    "siglip": (lambda: T.SiglipModel(T.SiglipConfig(vision_config=SMALL | MLP, text_config=TEXT)),
               (), "pool", "absolute", "features"),
    "siglip2": (lambda: T.Siglip2Model(T.Siglip2Config(vision_config=PATCHES, text_config=TEXT)),
                (), "pool", "absolute", "features"),
    "mae": (lambda: T.ViTMAEForPreTraining(T.ViTMAEConfig(
                **SMALL, **MLP, decoder_hidden_size=48, decoder_num_hidden_layers=1, decoder_num_attention_heads=3,
                decoder_intermediate_size=96)),
            ("class",), "none", "absolute", "features"),
    "dpt": (lambda: T.DPTForDepthEstimation(T.DPTConfig(
                **SMALL | FOUR, **MLP, **DECODER, backbone_out_indices=[0, 1, 2, 3], is_hybrid=False)),
            ("class",), "none", "absolute", "features"),
    "depth": (lambda: T.DepthAnythingForDepthEstimation(T.DepthAnythingConfig(
                  backbone_config=T.Dinov2Config(**SMALL | FOUR, out_indices=[1, 2, 3, 4], reshape_hidden_states=False),
                  reassemble_hidden_size=48, patch_size=8, **DECODER)),
              ("class",), "none", "absolute", "features"),
    "dpt_dinov2": (lambda: T.DPTForDepthEstimation(T.DPTConfig(
                       backbone_config=T.Dinov2Config(
                           **SMALL | FOUR, out_indices=[1, 2, 3, 4], reshape_hidden_states=False), **DECODER)),
                   ("class",), "none", "absolute", "features"),
    "ijepa": (lambda: T.IJepaForImageClassification(T.IJepaConfig(**SMALL, **MLP, num_labels=5)),
              (), "mean", "absolute", "logits"),
}  # fmt: skip


def make_folder(name: str, folder: Path, **processor: Any) -> Path:
    """A folder with the model of that name and an image processor; attention is sharp, and so nothing is uniform."""
    torch.manual_seed(3)
    model = MODELS[name][0]().eval()
    for key, weight in model.named_parameters():
        if any(part in key for part in ("q_proj", "k_proj", "query", "key", "in_proj")) and key.endswith("weight"):
            weight.data *= 8 if weight.std() < 0.1 else 2
        if "token" in key:  # untrained, some are zeros
            weight.data += 0.02 * torch.randn(weight.shape)
    return save(model, folder, **processor)


def save(model: Any, folder: Path, **processor: Any) -> Path:
    """The model and an image processor as save_pretrained writes them."""
    size = processor.pop("size", {"height": 32, "width": 32})
    model.save_pretrained(folder)
    T.ViTImageProcessorPil(size=size, **processor).save_pretrained(folder)
    return folder


def expected(name: str, folder: Path, pixels: Any) -> tuple[list[Any], Any]:
    """What the library itself gives with its eager attention: the maps of each block, and the first output."""
    model = type(MODELS[name][0]()).from_pretrained(folder, attn_implementation="eager").eval()
    given: dict[str, Any] = {"pixel_values": pixels}
    model = getattr(model, "vision_model", model) if name in ("siglip", "siglip2") else model
    if name == "siglip2":
        grid = pixels.unflatten(3, (4, 8)).unflatten(2, (4, 8)).permute(0, 2, 4, 3, 5, 1)
        given = {
            "pixel_values": grid.flatten(3).flatten(1, 2),
            "pixel_attention_mask": torch.ones(len(pixels), 16, dtype=torch.int64),
            "spatial_shapes": torch.tensor([[4, 4]] * len(pixels)),
        }
    if name == "clip":
        projection, model = model.visual_projection, model.vision_model
    if name == "mae":
        model.config.mask_ratio = 0.0
        model = model.vit
        given["noise"] = torch.arange(16.0).expand(len(pixels), -1)
    if name == "dpt":
        model = model.dpt
    if name in ("depth", "dpt_dinov2"):
        backbone = model.backbone
        tokens = backbone.encoder(backbone.embeddings(pixels), output_attentions=True)
        return list(tokens.attentions), backbone.layernorm(tokens.last_hidden_state)[:, 0]
    with torch.no_grad():
        out = model(**given, output_attentions=True)
    if name == "clip":
        return list(out.attentions), projection(out.pooler_output)
    if name in ("siglip", "siglip2"):
        return list(out.attentions), out.pooler_output
    return list(out.attentions), out.logits if "logits" in out else out.last_hidden_state[:, 0]

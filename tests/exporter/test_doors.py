"""The ways to name a model besides timm's names: folders and the hub's repositories of timm, modules, arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from attlas.engine.messages import arguments  # noqa: E402
from attlas.errors import AttlasError, UsageError  # noqa: E402
from attlas.exporter import GraphSpec, export  # noqa: E402
from attlas.exporter.libraries.build import build  # noqa: E402
from attlas.exporter.libraries.timm import build as timm_build  # noqa: E402
from attlas.exporter.taps.pictures import pictures  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from support_export import DEIT, SMALL, _plain_spec, make, run  # noqa: E402
from torch import Tensor, nn  # noqa: E402

RECIPE = "mean=0.5,std=0.5,resize=squash:32,crop=32,interpolation=bilinear"


class Attention(nn.Module):
    """Written by somebody who never saw timm, but for the dropout's name."""

    def __init__(self, width: int, heads: int, drop: str = "attn_drop") -> None:
        super().__init__()
        self.heads, self.drop = heads, drop
        self.to_qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        setattr(self, drop, nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.to_qkv(x).chunk(3, -1))
        a = getattr(self, self.drop)((q @ k.transpose(-2, -1) * 4).softmax(-1))
        return self.out((a @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, **options: Any) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, 2, **options)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(self.norm(x))


class Mine(nn.Module):
    """A ViT of one's own; `reads` says how its head pools."""

    def __init__(self, reads: str = "mean", **options: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.reads = reads
        self.stem = nn.Conv2d(3, 16, 8, 8)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 16))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, 16))
        self.layers = nn.ModuleList(Block(16, **options) for _ in range(2))
        self.last = nn.LayerNorm(16)
        self.head = nn.Linear(32 if reads == "class_mean" else 16, 4)

    def forward(self, pixels: Tensor) -> Any:
        x = self.stem(pixels).flatten(2).transpose(1, 2)
        count = len(x) if self.reads == "len" else x.shape[0]
        x = torch.cat([self.cls_token.expand(count, -1, -1), x], 1) + self.pos_embed
        for layer in self.layers:
            x = layer(x)
        x = self.last(x)
        pooled = {"class": x[:, 0], "mean": x[:, 1:].mean(1), "mean_all": x.mean(1),
                  "class_mean": torch.cat([x[:, 0], x[:, 1:].mean(1)], 1)}  # fmt: skip
        return self.head(pooled[self.reads]) if self.reads in pooled else {"out": x}


# Modules -------------------------------------------------------------------------------------------------------------


def test_own_module_is_exported_with_its_own_attention(tmp_path: Path) -> None:
    """With a recipe and its number of classes; the module itself stays as it was."""
    own = Mine().train()
    result = export(own, tmp_path / "own.onnx", preprocess=RECIPE, num_classes=4)
    spec = result.spec
    assert (spec.library, spec.model, spec.prefix, spec.grid, spec.patch_size, spec.pooling, spec.position) == (
        "module", "Mine", ("class",), (4, 4), (8, 8), "mean", "absolute",
    )  # fmt: skip
    assert spec.outputs[0].name == "logits"
    assert "timm" not in spec.versions
    assert own.training
    assert all(weight.requires_grad for weight in own.parameters())
    images = pictures(2, (32, 32))
    with torch.no_grad():
        pixels = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        expected = own.eval()(pixels).numpy()
    outputs = run(result.path, images)
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-5)
    assert np.abs(outputs["attention.1"].sum(-1) - 1).max() < 1e-5


@pytest.mark.parametrize("reads", ["class", "mean", "mean_all", "class_mean"])
def test_what_the_head_of_an_own_module_reads_is_measured(reads: str) -> None:
    """By the gradient of its output, where no attribute says it."""
    built = build(Mine(reads), preprocess=RECIPE)
    assert built.library.facts(built, built.library.parts(built)).pooling == reads


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (lambda: Mine(), {}, r"Mine: a module has no recipe of its own; pass preprocess="),
        (lambda: Mine(drop="dropout"), {"preprocess": RECIPE}, r"Mine: cannot be exported: .*child `attn_drop`"),
        (lambda: Mine("len"), {"preprocess": RECIPE}, r"Mine: fixes the number of images .*write x\.shape\[0\]"),
        (lambda: Mine("nothing"), {"preprocess": RECIPE}, r"Mine: returns dict, not one tensor"),
        (lambda: Mine(), {"preprocess": RECIPE.replace("32", "48")}, r"Mine: does not take pixels \(2, 3, 48, 48\)"),
        (lambda: Mine(), {"preprocess": RECIPE, "num_classes": 9}, "Mine returns 4 values"),
        (lambda: Mine(), {"preprocess": RECIPE, "checkpoint": "w.pth"}, "leave out checkpoint"),
        (lambda: nn.Linear(2, 2), {"preprocess": RECIPE}, "Linear: does not take pixels"),
    ],
)
def test_own_module_that_cannot_be_exported_says_why(
    module: Any, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """One line, and no file."""
    with pytest.raises(AttlasError, match=message) as caught:
        export(module(), tmp_path / "own.onnx", **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_timms_module_brings_its_recipe_and_classes() -> None:
    """As timm.create_model made it, with its fused attention."""
    module = timm.create_model(DEIT, **SMALL)
    built = build(module)
    named = build(DEIT, random_init=True, model_args=SMALL)
    assert (built.name, built.recipe, built.classes, built.library.name) == (DEIT, named.recipe, named.classes, "timm")
    assert built.weights().sha256 == build(module).weights().sha256 != named.weights().sha256


# timm's folders and arguments ----------------------------------------------------------------------------------------


def folder(path: Path, *, labels: bool = True, **entries: Any) -> Path:
    """A folder as timm saves a model for the hub."""
    path.mkdir()
    module = make(DEIT, num_classes=3).module
    save_file(module.state_dict(), path / "model.safetensors")
    config = {
        "architecture": DEIT, "num_classes": 3, "model_args": SMALL,
        "pretrained_cfg": {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 3,
                           "classifier": "head", "interpolation": "bilinear"},
    }  # fmt: skip
    if labels:
        config |= {"label_names": ["cat", "dog", "newt"], "label_descriptions": {"cat": "a cat"}}
    (path / "config.json").write_text(json.dumps(config | entries))
    return path


def test_folder_of_timm_gives_arguments_weights_recipe_and_classes(tmp_path: Path) -> None:
    """And the recipe that was assumed is said, with what config.json does not give."""
    built = build(f"local-dir:{folder(tmp_path / 'pets')}")
    assert (built.name, built.full_name, built.source, built.image_size) == ("pets", "pets", "pretrained", (64, 64))
    assert [(c.id, c.name) for c in built.classes] == [("cat", "a cat"), ("dog", "dog"), ("newt", "newt")]
    assert built.weights().sha256 == make(DEIT, num_classes=3).weights().sha256
    assert built.notes == (f"the recipe is that of config.json, which lacks crop_pct: {built.recipe}",)
    assert built.recipe.interpolation == "bilinear"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"architecture": "vit_of_mine"}, "has no model 'vit_of_mine', which its config.json names"),
        ({"architecture": None, "model_type": "vit"}, "has no model None"),
        ({"model_args": {**SMALL, "depth": 3}}, "pets: timm cannot load its weights"),
    ],
)
def test_folder_of_timm_that_does_not_fit_is_refused(entries: dict[str, Any], message: str, tmp_path: Path) -> None:
    """In one line."""
    with pytest.raises(AttlasError, match=message) as caught:
        build(f"local-dir:{folder(tmp_path / 'pets', **entries)}")
    assert "\n" not in str(caught.value)


def test_folder_of_timm_with_quantised_weights_is_refused(tmp_path: Path) -> None:
    """Timm would load whole numbers in silence."""
    model = timm.create_model(DEIT, **SMALL)
    entries = {"architecture": DEIT, "num_classes": 1000, "pretrained_cfg": {}, "model_args": SMALL}
    (tmp_path / "config.json").write_text(json.dumps(entries))
    save_file({n: t.to(torch.int8) for n, t in model.state_dict().items()}, tmp_path / "model.safetensors")
    with pytest.raises(AttlasError, match=r"model\.safetensors: its weights are quantised \(I8\)"):
        build(f"local-dir:{tmp_path}")


def test_folder_of_transformers_is_sent_to_its_door(tmp_path: Path) -> None:
    """Its config.json names no architecture of timm."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_size": 48}))
    with pytest.raises(UsageError, match=r"names no architecture of timm.*transformers:FOLDER"):
        build(f"local-dir:{tmp_path}")
    with pytest.raises(UsageError, match=r"there is no such folder"):
        build(f"local-dir:{tmp_path / 'absent'}")


def test_repository_of_others_needs_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it cannot be reached, a line says so at once; gated weights say how to get them."""
    monkeypatch.setattr(timm_build, "lacking", lambda *a: "huggingface.co cannot be reached")
    with pytest.raises(AttlasError, match=r"MahmoodLab/UNI: cannot be downloaded: .*local-dir:FOLDER"):
        build("hf-hub:MahmoodLab/UNI")

    class GatedRepoError(Exception):
        pass

    def gated(place: str) -> Any:
        raise GatedRepoError("401 Client Error")

    monkeypatch.setattr(timm_build, "lacking", lambda *a: "")
    monkeypatch.setattr(timm_build, "load_model_config_from_hf", gated)
    with pytest.raises(AttlasError, match=r"MahmoodLab/UNI: is gated: .*hf auth login"):
        build("hf-hub:MahmoodLab/UNI")


def test_model_arguments_reach_timm() -> None:
    """LayerScale, a dynamic picture size, and what the head reads."""
    args = arguments("init_values=1e-5, dynamic_img_size=true,global_pool=avg,norm=None,sizes=(1,2)")
    assert args == {
        "init_values": 1e-5, "dynamic_img_size": True, "global_pool": "avg", "norm": None, "sizes": (1, 2),
    }  # fmt: skip
    assert arguments(None) == {}
    for wrong in ("init_values", "=3", "a b=3"):
        with pytest.raises(UsageError, match="is no KEY=VALUE"):
            arguments(wrong)
    built = build(
        "vit_tiny_patch16_224", random_init=True, model_args={**SMALL, "init_values": 1e-5, "global_pool": "avg"}
    )
    assert "blocks.0.ls1.gamma" in built.module.state_dict()
    assert built.library.facts(built, built.library.parts(built)).pooling == "mean"
    with pytest.raises(UsageError, match=r"timm does not build it with .*nonsense=1"):
        build(DEIT, random_init=True, model_args={**SMALL, "nonsense": 1})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_weights_of_any_precision_are_computed_in_float32(dtype: str, tmp_path: Path) -> None:
    """As they are kept in a file."""
    state = {name: value.to(getattr(torch, dtype)) for name, value in make(DEIT).module.state_dict().items()}
    save_file(state, tmp_path / "half.safetensors")
    built = build(DEIT, checkpoint=tmp_path / "half.safetensors", model_args=SMALL)
    weight = built.module.blocks[0].attn.qkv.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, state["blocks.0.attn.qkv.weight"].float())


def test_positions_resampled_to_another_size_are_said(tmp_path: Path) -> None:
    """Only where the user asks for that size."""
    save_file(make(DEIT).module.state_dict(), tmp_path / "w.safetensors")
    args = {k: v for k, v in SMALL.items() if k != "img_size"}
    built = build(DEIT, checkpoint=tmp_path / "w.safetensors", img_size=96, model_args=args)
    assert "position embeddings of 17 tokens were resampled to 37 by timm" in built.notes


def test_graph_without_a_library_is_timms() -> None:
    """Graphs of earlier versions stay readable."""
    spec = GraphSpec.from_dict(_plain_spec(), "old")
    assert (spec.library, spec.processor, spec.recipe.crop_rounding) == ("timm", "", "even")

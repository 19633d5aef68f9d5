"""What can be asked of an export, and what is refused with its reason."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

pytest.importorskip("timm")


import timm  # noqa: E402
from attlas.errors import AttlasError, UsageError  # noqa: E402
from attlas.exporter import GraphSpec, export, list_models  # noqa: E402
from attlas.exporter.libraries.build import build  # noqa: E402
from attlas.exporter.libraries.timm.build import _recipe  # noqa: E402
from attlas.exporter.taps.attention import Taps  # noqa: E402
from attlas.exporter.taps.facts import summarize  # noqa: E402
from attlas.exporter.trace.export import export_model  # noqa: E402
from support_export import DEIT, SMALL, _plain_spec, make  # noqa: E402


def test_layer_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    """The error names the layers that do."""
    with pytest.raises(UsageError, match="layers 0 to 1, asked for 2"):
        export_model(make(DEIT), tmp_path / "deit.onnx", layers=[2])


def test_spec_of_a_newer_format_is_refused(exported: Any) -> None:
    """A number this version does not know is no damage, but a reason to upgrade."""
    data = {**exported(DEIT)[1].spec.to_dict(), "attlas_format": 2}
    with pytest.raises(AttlasError, match=r"here\.onnx: written in format 2"):
        GraphSpec.from_dict(data, "here.onnx")


def test_existing_output_is_refused_unless_overwrite(tmp_path: Path) -> None:
    """What is there stays as it was."""
    path = tmp_path / "deit.onnx"
    path.write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"deit.onnx: exists already; pass --overwrite"):
        export(DEIT, path, random_init=True)
    assert path.read_bytes() == b"mine"
    export_model(make(DEIT), path, overwrite=True)
    assert len(path.read_bytes()) > 1000


# Names and options ---------------------------------------------------------------------------------------------------


def test_unknown_model_suggests_near_names(tmp_path: Path) -> None:
    """A slip of the pen is answered with what was meant."""
    with pytest.raises(UsageError, match=r"did you mean .*vit_base_patch16_224"):
        export("vit_base_patch16_22", tmp_path / "vit.onnx")
    for name, meant in (
        ("deit_tiny", "deit_tiny_patch16_224, deit_tiny_distilled"),
        ("deit_tinyy", "deit_tiny_patch16"),
    ):
        with pytest.raises(UsageError, match=f"did you mean {meant}"):
            export(name, tmp_path / "vit.onnx")
    with pytest.raises(UsageError, match="no pretrained tag 'dinno'; it has dino"):
        export("vit_base_patch16_224.dinno", tmp_path / "vit.onnx")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("swin_tiny_patch4_window7_224", "windows of 49 tokens"),
        ("resnet18", "no attention blocks"),
        ("xcit_nano_12_p16_224", "over channels"),
        ("volo_d1_224", r"network\.1 has no attention over patches"),
        ("visformer_tiny", "several kinds or stages .*stage2 of Attention, stage3"),
        ("levit_128s", "shows no map over all patches"),
        ("hiera_tiny_224", "MaskUnitAttention.* shows no map"),
        ("pit_ti_224", "blocks|grid"),
        ("pvt_v2_b0", "reads pooled keys"),
    ],
)
def test_model_without_global_attention_is_refused_with_the_reason(name: str, reason: str, tmp_path: Path) -> None:
    """Windowed, convolutional, channel and pooled attention: the model is named and why, never silence."""
    with pytest.raises(UsageError, match=rf"^{name}[.\w]*: cannot be exported: .*({reason})"):
        export(name, tmp_path / "model.onnx", random_init=True)
    assert list(tmp_path.iterdir()) == []


def test_no_weights_are_fetched_of_a_model_that_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `attlas models` refuses it, whatever the hub says."""
    monkeypatch.setattr("attlas.exporter.libraries.timm.build._reach", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(UsageError, match=r"^resnet18[.\w]*: cannot be exported: it has no attention blocks"):
        export("resnet18", tmp_path / "model.onnx")


def test_map_of_another_size_than_the_tokens_is_refused() -> None:
    """Windows and pooled keys are told by their shapes, with the reason in words."""
    taps = Taps(make(DEIT), "some_model")
    with torch.no_grad(), taps.recording() as seen:
        taps.model(torch.zeros(2, 3, 64, 64))
    whole = seen.maps[0][0]
    for images, tokens, broken, reason in (
        (2, 17, whole.repeat(4, 1, 1, 1), "inside windows of 17 tokens"),
        (2, 17, whole[..., :4], "pooled keys"),
        (2, 50, whole, "not 50 x 50 tokens"),
    ):
        seen.maps[0] = [broken]
        with pytest.raises(UsageError, match=f"^some_model: .*{reason}"):
            taps.check(seen, images, tokens)
    seen.maps[0] = []
    with pytest.raises(UsageError, match="block 0 did not show its attention"):
        taps.check(seen, 2, 17)


def test_fused_attention_is_left_as_it_was_for_others() -> None:
    """Building a model here changes no setting of timm's for the rest of the program."""
    from timm.layers import set_fused_attn, use_fused_attn

    for wanted in (True, False):
        set_fused_attn(wanted)
        build(DEIT, random_init=True, model_args=SMALL)
        assert bool(use_fused_attn()) is wanted
    set_fused_attn(True)


def test_recipe_can_be_overridden_in_parts() -> None:
    """The recipe of Hebbar et al., as text and as a mapping."""
    text = "mean=imagenet,std=0.229,0.224,0.225,resize=squash:256,crop=224,interpolation=bilinear"
    mapping = {"mean": [0.485, 0.456, 0.406], "std": "imagenet", "resize": "squash:256", "interpolation": "bilinear"}
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    recipe = build(name, random_init=True, preprocess=text).recipe
    assert recipe == build(name, random_init=True, preprocess=mapping).recipe
    assert (recipe.resize, recipe.crop_mode, recipe.interpolation) == ((256, 256), "squash", "bilinear")
    assert recipe.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        ("size=3", "'size' is none of mean, std"),
        ("mean=1,2", "mean=1,2 is not one or three"),
        ("mean=1,2,3,4", "mean=1,2,3,4 is not one or three"),
        ("mean=123.675,116.28,103.53", r"looks like pixels in 0\.\.255; .*: write mean=0\.485,0\.456,0\.406$"),
        ("mean=imagenet,std=58.395,57.12,57.375", r"0\.\.255; .*: write std=0\.229,0\.224,0\.225$"),
        ("mean=127.5,std=127.5", r"write mean=0\.5,0\.5,0\.5"),
        ("mean=103.53,116.28,123.675", r"write mean=0\.485,0\.456,0\.406, in RGB order"),
        ("mean=0.406,0.456,0.485", r"is in BGR order; .*mean=0\.485,0\.456,0\.406"),
        ("std=0.225,0.224,0.229", r"is in BGR order; .*std=0\.229,0\.224,0\.225"),
        ("mean=BGR", "the graph takes RGB"),
        ("order=bgr", "the graph takes RGB"),
        ("mean=-0.5", "belongs to no pixels"),
        ("mean=300", "belongs to no pixels"),
        ("mean=nan", "three finite numbers"),
        ("std=inf", "three finite numbers"),
        ("std=0", "positive"),
        ("std=0.2,-0.2,0.2", "positive"),
        ("std=0.0009", r"divided by 255 once too often; .*std=0\.2295"),
        ("resize=200", "resize 200x200 is smaller than crop 224x224"),
        ("resize=border:224x200", "resize 224x200 is smaller than crop 224x224"),
        (
            "crop=230,resize=256",
            r"no multiple of the model's tokens of 16x16 pixels; pass crop=224x224 and --img-size 224,224",
        ),
        ("resize=stretch:256", "'stretch' is none of center, squash, border"),
        ("crop=256,resize=256", "pass --img-size 256,256"),
        ("blurred", "no key=value"),
    ],
)
def test_preprocess_that_cannot_be_read_is_refused(preprocess: str, message: str) -> None:
    """Each with what would be right."""
    with pytest.raises(UsageError, match=message):
        build(DEIT, random_init=True, preprocess=preprocess)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (123.675, 116.28, 103.53)}, r"recipe: mean=.* write mean=0\.485,0\.456,0\.406"),
        ({"std": (0.2, 0.2)}, "three finite numbers"),
        ({"resize": (32, 32)}, "smaller than crop"),
        ({"crop": (48, 48)}, "crop 48x48 is not the graph's input 64x64"),
        ({"crop_mode": "stretch"}, "'stretch' is none of"),
    ],
)
def test_recipe_put_in_by_hand_is_checked_too(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Whatever way it comes, no graph is written with it; one that was written by an earlier version still loads."""
    built = make(DEIT)
    built = dataclasses.replace(built, recipe=dataclasses.replace(built.recipe, **changes))
    with pytest.raises(UsageError, match=message):
        export_model(built, tmp_path / "deit.onnx")
    assert list(tmp_path.iterdir()) == []
    old = _plain_spec()
    old["recipe"] |= {"mean": [123.675, 116.28, 103.53], "resize": [16, 16]}
    assert GraphSpec.from_dict(old, "old.onnx").recipe.mean == (123.675, 116.28, 103.53)


def test_recipe_of_every_tag_passes() -> None:
    """The rules are no stricter than timm's own models."""
    for name in list_models("*.*"):
        cfg = timm.get_pretrained_cfg(name).to_dict()
        _recipe(cfg, cfg["input_size"][1:]).check(name)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (DEIT, 100, r"--img-size 100,100: .*tokens of 16x16 pixels .* the nearest size that they do is 96,96$"),
        (DEIT, 110, r"nearest size that they do is 112,112$"),
        (DEIT, 8, r"nearest size that they do is 16,16$"),
        (DEIT, (8, 250), r"--img-size 8,250: .* 16,256$"),
        ("vit_tiny_r_s16_p8_224", 200, r"--img-size 200,200: .*tokens of 32x32 pixels .* 192,192$"),
        ("vit_small_patch14_reg4_dinov2", 224 + 1, r"nearest size that they do is 224,224$"),
    ],
)
def test_size_that_the_patch_does_not_divide_is_refused(name: str, size: Any, message: str) -> None:
    """No silent cropping or padding of the grid, no bare assertion; and the size that is offered is taken."""
    with pytest.raises(UsageError, match=message) as caught:
        summarize(name, img_size=size)
    assert "Assertion" not in str(caught.value)
    assert summarize(name, img_size=str(caught.value).rpartition(" ")[2]).tokens > 0


def test_list_models_gives_what_can_be_exported() -> None:
    """Names by pattern, tags where the pattern has one, and no model of another kind."""
    assert {DEIT, "vit_base_patch16_224", "vit_large_patch16_224"} <= set(list_models())
    assert list_models("swin*") == []
    assert "vit_base_patch16_224.dino" in list_models("vit_base_patch16_224.*")


@pytest.mark.parametrize(
    ("name", "small", "reason"),
    [
        ("tnt_s_patch16_224", {"depth": 1}, "each block has a second attention, among the pixels inside a patch"),
        (
            "convit_tiny",
            {"depth": 3, "local_up_to_layer": 2, "img_size": 64},
            "its first 2 blocks attend over 16 tokens and the others over 17: a class token joins on the way",
        ),
        (
            "samvit_base_patch16",
            {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 64, "window_size": 2, "global_attn_indexes": [1]},
            "the attention of block 0 runs inside windows of 2 x 2 patches",
        ),
    ],
)
def test_model_whose_blocks_do_not_all_attend_over_all_patches_is_refused_with_the_reason(
    name: str, small: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    built = build(name, random_init=True, model_args=small)
    with pytest.raises(UsageError, match=reason):
        export_model(built, tmp_path / "x.onnx")

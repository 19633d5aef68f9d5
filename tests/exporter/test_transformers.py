"""Models of transformers: their own attention, their own pixels, their own classes, and what is refused."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
T = pytest.importorskip("transformers")

from attlas.errors import AttlasError, UsageError  # noqa: E402
from attlas.exporter.differences import row_variation  # noqa: E402
from attlas.exporter.libraries.build import build  # noqa: E402
from attlas.exporter.taps.pictures import pictures  # noqa: E402
from attlas.exporter.trace.export import ExportResult, export_model  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from support import make_picture  # noqa: E402
from support_export import make, reference, run  # noqa: E402
from support_transformers import MODELS, expected, make_folder, save  # noqa: E402


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of each model."""
    root = tmp_path_factory.mktemp("transformers")
    return functools.cache(lambda name: make_folder(name, root / name))


@pytest.fixture(scope="module")
def exported_once(folders: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ExportResult]:
    """The graph of each model."""
    root = tmp_path_factory.mktemp("graphs")
    return functools.cache(lambda name: export_model(build(f"transformers:{folders(name)}"), root / f"{name}.onnx"))


# Those whose blocks and inputs are like another's are traced with ATTLAS_FULL alone; their PyTorch is compared always.
ALIKE = frozenset({"deit", "registers", "registered", "clip", "clip_classes", "dpt", "dpt_dinov2", "ijepa"})


@pytest.mark.parametrize("name", MODELS)
def test_architecture_gives_the_librarys_own_attention(name: str, folders: Any, exported_once: Any) -> None:
    """The graph in onnxruntime against `output_attentions` of the eager model, and its facts."""
    _, prefix, pooling, position, head = MODELS[name]
    if name in ALIKE and "ATTLAS_FULL" not in os.environ:
        built = build(f"transformers:{folders(name)}")
        parts = built.library.parts(built)
        found = built.library.facts(built, parts)
        facts, depth, size = (built.name, found.prefix, found.pooling, found.position), len(parts.blocks), (32, 32)
        images = pictures(3, size, seed=5)
        outputs = reference(built)(images)
    else:
        result = exported_once(name)
        spec = result.spec
        facts, depth = (spec.model, spec.prefix, spec.pooling, spec.position), spec.depth
        assert (spec.library, spec.outputs[0].name) == ("transformers", head)
        images = pictures(3, spec.image_size, seed=5)
        outputs = run(result.path, images)
    assert facts == (name, prefix, pooling, position)
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    maps, first = expected(name, folders(name), pixels)
    rows = [row_variation(outputs[f"attention.{i}"], a.detach().numpy()) for i, a in enumerate(maps)]
    assert len(maps) == depth
    assert np.mean(rows) <= 1e-5
    assert np.max(rows) <= 1e-3
    first = first.detach().numpy()
    np.testing.assert_allclose(outputs[head], first, atol=2e-5 * max(1, np.abs(first).max()))
    assert (outputs[head].argmax(-1) == first.argmax(-1)).all()
    shares = [-(a * a.clamp_min(1e-30).log()).sum(-1).mean() / np.log(a.shape[-1]) for a in maps]
    assert max(shares) < 0.97  # a uniform map would hide a mistake


def test_pool_of_siglip_reads_the_tokens_by_its_map(exported_once: Any) -> None:
    """Its map is a distribution over patches for each head, and not the mean over heads."""
    result = exported_once("siglip")
    pool = run(result.path, pictures(2, (32, 32)))["pool_attention"]
    assert pool.shape == (2, 3, 1, 16)
    np.testing.assert_allclose(pool.sum(-1), 1, atol=1e-5)
    assert np.abs(pool[:, 0] - pool[:, 1]).max() > 1e-3


# Recipes -------------------------------------------------------------------------------------------------------------

PROCESSORS: dict[str, Callable[[], Any]] = {
    "squashed": lambda: T.ViTImageProcessorPil(size={"height": 32, "width": 48}, resample=3),
    "cropped": lambda: T.BitImageProcessorPil(size={"shortest_edge": 37}, crop_size={"height": 32, "width": 32}),
    "clip": lambda: T.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    "lanczos": lambda: T.ViTImageProcessorPil(size={"height": 40, "width": 40}, resample=1, do_normalize=False),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_the_image_processor(name: str) -> None:
    """Forty pictures of odd sizes, in colour, grey, with transparency and with a palette: bit for bit."""
    from attlas.engine.runtime.decode import colours_of, prepare
    from attlas.exporter.libraries.transformers.recipe import of_processor

    processor = PROCESSORS[name]()
    recipe, said = of_processor(processor, name)
    assert said.endswith("with Pillow as its backend")
    for seed in range(40):
        picture = make_picture(seed, 33 + 7 * seed % 61, 35 + 11 * seed % 53)
        picture = picture.convert(("RGB", "L", "RGBA", "P")[seed % 4])
        if picture.mode == "RGBA":
            picture.putalpha(make_picture(seed + 40, *picture.size).convert("L"))
        ours = np.asarray(prepare(colours_of(picture, recipe)[0], recipe)).astype(np.float64) / 255
        ours = (ours - np.array(recipe.mean)) / np.array(recipe.std)
        # Without `do_convert_rgb` it takes nothing but RGB.
        given = picture if processor.do_convert_rgb else picture.convert("RGB")
        theirs = processor(given, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_torchvisions_resize_is_said_and_at_most_one_step_off() -> None:
    """DINOv3 has no processor with Pillow."""
    from attlas.engine.runtime.decode import colours_of, prepare
    from attlas.exporter.libraries.transformers.recipe import of_processor

    processor = T.DINOv3ViTImageProcessor(size={"height": 32, "width": 32})
    recipe, said = of_processor(processor, "dinov3")
    assert "at most 1 of 255" in said
    picture = make_picture(3, 61, 45)
    ours = (np.asarray(prepare(colours_of(picture, recipe)[0], recipe)) / 255 - np.array(recipe.mean)) / np.array(
        recipe.std
    )
    theirs = processor(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    assert np.abs((ours - theirs) * np.array(recipe.std)).max() * 255 <= 1


@pytest.mark.parametrize(
    ("processor", "reason"),
    [
        (lambda: T.DPTImageProcessorPil(keep_aspect_ratio=True), "keep_aspect_ratio"),
        (lambda: T.Siglip2ImageProcessorPil(), "a grid of its own"),
        (lambda: T.ViTImageProcessorPil(rescale_factor=1 / 127.5), "does not scale pixels"),
        (lambda: T.ViTImageProcessorPil(do_resize=False), "resizes nothing"),
        (lambda: T.CLIPImageProcessorPil(do_center_crop=False), "pictures of different sizes"),
    ],
)
def test_processor_that_no_recipe_says_is_refused(processor: Callable[[], Any], reason: str) -> None:
    """In one line, with what to pass instead."""
    from attlas.exporter.libraries.transformers.recipe import of_processor

    with pytest.raises(UsageError, match=rf"^model: its image processor.*{reason}.*--preprocess mean=") as caught:
        of_processor(processor(), "model")
    assert "\n" not in str(caught.value)


# Weights and options -------------------------------------------------------------------------------------------------


RENAMED = {
    "blocks.": "encoder.layer.", "attn.proj": "attention.o_proj", "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1", "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
}  # fmt: skip


def test_timms_dinov2_and_the_librarys_attend_alike() -> None:
    """The same weights under the names of either: the same attention and the same tokens."""
    from attlas.exporter.libraries.timm.build import names

    timm_name = "vit_small_patch14_dinov2"
    assert timm_name in names()
    ours = make(timm_name, img_size=56, init_values=1.0, depth=2, embed_dim=48, num_heads=3)
    config = T.Dinov2Config(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, image_size=56, patch_size=14, layerscale_value=1.0
    )
    model = T.Dinov2Model(config).eval()
    state = ours.module.state_dict()
    new = {"embeddings.mask_token": torch.zeros(1, 48)}
    for key, value in state.items():
        if "qkv" in key:
            block, kind = key.split(".")[1], key.rpartition(".")[2]
            # The test model's queries are sharpened by its scale, which the other library fixes.
            query, rest, last = value.chunk(3)
            query = query * (ours.module.blocks[int(block)].attn.scale * 4)
            for name, part in zip("qkv", (query, rest, last), strict=True):
                new[f"encoder.layer.{block}.attention.{name}_proj.{kind}"] = part
            continue
        for a, b in RENAMED.items():
            key = key.replace(a, b)
        new[key.replace("norm.", "layernorm.") if key.startswith("norm.") else key] = value
    model.load_state_dict(new)
    images = pictures(2, (56, 56))
    one = reference(ours)(images)
    mean, std = (np.array(v, np.float32) for v in (ours.recipe.mean, ours.recipe.std))
    pixels = torch.from_numpy(((images / np.float32(255) - mean) / std).transpose(0, 3, 1, 2))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        other = model(pixels, output_attentions=True)
    for layer, a in enumerate(other.attentions):
        assert row_variation(one[f"attention.{layer}"], a.numpy()).max() <= 1e-5
    np.testing.assert_allclose(one["tokens"], other.last_hidden_state.numpy(), atol=1e-4)


def test_classes_come_from_id2label(tmp_path: Path) -> None:
    """Names with their index as the id; names that nobody gave are none."""
    config = T.ViTConfig(**{"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3, "image_size": 32})
    config.id2label = {0: "cat", 1: "dog", 2: "newt"}
    save(T.ViTForImageClassification(config), tmp_path / "pets")
    built = build(f"transformers:{tmp_path / 'pets'}")
    assert [(c.id, c.name) for c in built.classes] == [("0", "cat"), ("1", "dog"), ("2", "newt")]
    bare = build(f"transformers:{tmp_path / 'pets'}", num_classes=0)
    assert (bare.head, bare.classes) == ("features", ())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_weights_in_shards_and_other_precisions_are_computed_in_float32(dtype: str, tmp_path: Path) -> None:
    """As save_pretrained writes them."""
    model = MODELS["vit"][0]().to(getattr(torch, dtype))
    folder = save(model, tmp_path / "vit")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    built = build(f"transformers:{folder}")
    weight = built.module.model.vit.layers[0].attention.q_proj.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, model.vit.layers[0].attention.q_proj.weight.float())


def test_checkpoint_with_a_wrapper_is_read_into_the_folders_model(folders: Any, tmp_path: Path) -> None:
    """As Lightning keeps a module called model; the folder gives the architecture."""
    own = T.ViTForImageClassification.from_pretrained(folders("vit"))
    own.classifier.bias.data += 1
    own.save_pretrained(tmp_path / "plain")
    from safetensors.torch import load_file

    state = {f"model.{name}": value for name, value in load_file(tmp_path / "plain" / "model.safetensors").items()}
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    built = build(f"transformers:{folders('vit')}", checkpoint=tmp_path / "last.ckpt")
    assert (built.source, built.key) == ("checkpoint", "state_dict.model")
    assert torch.equal(built.module.model.classifier.bias, own.classifier.bias)
    with pytest.raises(AttlasError, match=r"its head has 5 classes.*pass --num-classes 5"):
        build(f"transformers:{folders('vit')}", checkpoint=tmp_path / "last.ckpt", num_classes=7)


def test_another_picture_size_resamples_positions_and_says_so(folders: Any) -> None:
    """By the library's own code."""
    built = build(f"transformers:{folders('vit')}", img_size=48)
    assert built.image_size == built.recipe.crop == (48, 48)
    assert any("32x32 pixels are resampled to 48x48" in note for note in built.notes)
    facts = built.library.facts(built, built.library.parts(built))
    assert facts.grid == (6, 6)
    own = built.module.model.vit(
        torch.zeros(1, 3, 48, 48), interpolate_pos_encoding=True, output_hidden_states=True
    ).hidden_states[0]
    assert facts.position_embedding is not None
    assert own.shape[1:] == facts.position_embedding.shape
    with pytest.raises(UsageError, match="the nearest size that they do is 32,32"):
        build(f"transformers:{folders('vit')}", img_size=33)


# What is refused -----------------------------------------------------------------------------------------------------


def config_of(folder: Path, **entries: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(entries))
    return folder


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model_type": "bert"}, r"m: is a model of type 'bert', and no Vision Transformer .*dinov2"),
        ({}, "without a model_type"),
        ({"model_type": "mine", "auto_map": {"AutoModel": "modeling.Mine"}},
         r"trust_remote_code.*never run.*export\(module"),
        ({"model_type": "vit", "image_size": None}, "image size|image_size"),
        ({"model_type": "vit"}, "no preprocessor_config.json"),
        ({"model_type": "dpt", "is_hybrid": True}, "hybrid"),
    ],
)  # fmt: skip
def test_folder_that_cannot_be_exported_says_why(entries: dict[str, Any], message: str, tmp_path: Path) -> None:
    """One line, and no code of the folder is run."""
    folder = config_of(tmp_path / "m", **entries)
    (folder / "modeling.py").write_text("raise SystemExit('was run')")
    with pytest.raises(AttlasError, match=message) as caught:
        build(f"transformers:{folder}", random_init=True)
    assert "\n" not in str(caught.value)


def _shard(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.rename(folder / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def _stored_as(dtype: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        weights = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def _entries(file: str, **entries: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / f"{file}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_entries("config", image_size=64), "position_embeddings 1x17x48 instead of 1x65x48.*config.json"),
        (_entries("config", patch_size=-8), "negative dimension"),
        (_entries("config", hidden_act="none such"), "'none such'"),
        (_entries("config", quantization_config={"quant_method": "x"}), "its weights are quantised"),
        (lambda f: (f / "config.json").write_text("[]"), "is no JSON object"),
        (lambda f: (f / "config.json").write_text("{"), "is not valid JSON"),
        (_entries("preprocessor_config", image_mean=[0.5, 0.5]), r"image_mean=\(0\.5, 0\.5\), not one or three"),
        (_entries("preprocessor_config", resample=99), r"\(99 is not a valid Resampling\)"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), r"m/model\.safetensors: is empty"),
        (lambda f: (f / "model.safetensors").write_text("version https://git-lfs"), "Git LFS pointer"),
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
        (_shard, r"m: lacks model-00002-of-00002\.safetensors, which model\.safetensors\.index\.json names"),
        (_stored_as(torch.int8), r"quantised \(I8\), and their scales"),
        (_stored_as(torch.float8_e4m3fn), r"quantised \(F8_E4M3\)"),
    ],
)  # fmt: skip
def test_folder_with_something_wrong_says_what(
    change: Callable[[Path], None], message: str, folders: Any, tmp_path: Path
) -> None:
    """Where transformers would say little, export whole numbers in silence, or end in a traceback."""
    folder = Path(shutil.copytree(folders("vit"), tmp_path / "m"))
    change(folder)
    with pytest.raises(AttlasError, match=message) as caught:
        build(f"transformers:{folder}")
    assert "\n" not in str(caught.value)


def test_class_that_transformers_lacks_is_said(folders: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders("vit"), tmp_path / "m"))
    _entries("config", architectures=["Mine"])(folder)
    assert build(f"transformers:{folder}").notes == (
        "transformers has no class Mine, which config.json names: ViTModel is exported",
    )
    assert build(f"transformers:{folders('vit')}").notes == ()


def test_places_that_are_no_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown library, a missing folder, one without config, gated weights, and no network."""
    from attlas.exporter.libraries.transformers import build as module

    with pytest.raises(UsageError, match=r"mxnet: is no library.*timm, transformers"):
        build("mxnet:org/name")
    with pytest.raises(UsageError, match=r"^':name': is no library"):
        build(":name")
    for name in ("", " "):
        with pytest.raises(UsageError, match="MODEL is empty"):
            build(name)
    for name in (f"{tmp_path}/absent/model", ""):
        with pytest.raises(UsageError, match="there is no such folder"):
            build(f"transformers:{name}")
    for scheme in ("transformers", "hf-hub"):
        with pytest.raises(UsageError, match="'a b': is no repository of the hub"):
            build(f"{scheme}:a b")
    (tmp_path / "w.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="is a file; pass the folder"):
        build(f"transformers:{tmp_path}/w.safetensors")
    with pytest.raises(UsageError, match=r"has no config\.json"):
        build(f"transformers:{tmp_path}")
    monkeypatch.setattr(module, "lacking", lambda *a: "huggingface.co cannot be reached")
    with pytest.raises(AttlasError, match=r"^org/name: cannot be downloaded: huggingface\.co cannot be reached"):
        build("transformers:org/name")
    monkeypatch.setattr(module, "lacking", lambda *a: "")

    def gated(*given: Any, **options: Any) -> Any:
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it")

    monkeypatch.setattr(module.PreTrainedConfig, "get_config_dict", gated)
    with pytest.raises(AttlasError, match=r"org/name: is gated: accept its terms .* `hf auth login`") as caught:
        build("transformers:org/name")
    assert "\n" not in str(caught.value)

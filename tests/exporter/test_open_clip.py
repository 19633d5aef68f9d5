"""Image towers of open_clip, by themselves and with texts as classes, against the library's own code."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip", reason="needs open_clip: pip install 'attlas[open-clip]'")

from attlas.cli import main  # noqa: E402
from attlas.engine.runtime.decode import decode  # noqa: E402
from attlas.engine.runtime.graph import read_spec  # noqa: E402
from attlas.errors import AttlasError, UsageError  # noqa: E402
from attlas.exporter import export  # noqa: E402
from attlas.exporter.differences import row_variation  # noqa: E402
from attlas.exporter.libraries.build import build  # noqa: E402
from attlas.exporter.spec import GraphSpec  # noqa: E402
from attlas.exporter.taps.pictures import pictures  # noqa: E402
from PIL import Image  # noqa: E402
from support import make_picture  # noqa: E402

TEXTS = ("a photo of a cat", "a photo of a dog", "nothing at all")
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VISION = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 2, "head_width": 16}
CONFIGS: dict[str, dict[str, Any]] = {
    "tiny-clip": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT},
    "tiny-mean": {"embed_dim": 24, "vision_cfg": VISION | {"pool_type": "avg"}, "text_cfg": TEXT},
    "tiny-tokens": {"embed_dim": 24, "vision_cfg": VISION | {"output_tokens": True}, "text_cfg": TEXT},
    "tiny-queries": {"embed_dim": 24, "vision_cfg": VISION | {"attentional_pool": True}, "text_cfg": TEXT},
    "tiny-pool": {
        "embed_dim": 64, "custom_text": True, "text_cfg": TEXT,
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit2", "timm_pool": "map", "timm_proj": "none"},
    },
    "tiny-token": {
        "embed_dim": 64, "custom_text": True, "text_cfg": TEXT,
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"},
    },
    "tiny-timm": {
        "embed_dim": 64, "init_logit_bias": -10, "custom_text": True, "text_cfg": TEXT,
        "vision_cfg": {"image_size": 224, "timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear"},
    },
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def configs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The small models, known to open_clip by name."""
    from open_clip import factory

    before = dict(factory._MODEL_CONFIGS), list(factory._MODEL_CONFIG_PATHS)
    folder = tmp_path_factory.mktemp("configs")
    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    yield
    factory._MODEL_CONFIGS, factory._MODEL_CONFIG_PATHS = before


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, configs: None) -> dict[str, tuple[Path, Any]]:
    """Of each model a file, and open_clip's own model with these weights; attention is not uniform."""
    from safetensors.torch import save_model

    found = {}
    for name in ("tiny-clip", "tiny-mean", "tiny-timm"):
        torch.manual_seed(3)
        model = open_clip.create_model(name).eval()
        for key, weight in model.visual.named_parameters():
            if key.endswith(("in_proj_weight", "qkv.weight")):
                weight.data[: 2 * weight.shape[1]] *= 6
        path = tmp_path_factory.mktemp(name) / "weights.safetensors"
        save_model(model, path)
        found[name] = (path, model)
    return found


class Graph(NamedTuple):
    path: Path
    spec: GraphSpec


@pytest.fixture(scope="module")
def graphs(
    weights: dict[str, tuple[Path, Any]], once: Callable[[str, Callable[[Path], Any]], Path]
) -> Callable[[str], Graph]:
    """The exports: with texts and gradients, without texts, and a tower of timm's with texts."""
    choices: dict[str, dict[str, Any]] = {
        "tiny-clip": {"texts": TEXTS, "gradients": True}, "tiny-mean": {}, "tiny-timm": {"texts": TEXTS},
    }  # fmt: skip

    def make(name: str, folder: Path) -> None:
        export(f"open_clip:{name}", folder / "graph.onnx", checkpoint=weights[name][0], **choices[name])

    def get(name: str) -> Graph:
        path = once(f"open_clip-{name}", lambda folder: make(name, folder)) / "graph.onnx"
        return Graph(path, read_spec(path))

    return get


def run(result: Graph, **given: Any) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(result.path), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, given), strict=True))


def pixels_of(images: np.ndarray, spec: Any) -> Any:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (spec.recipe.mean, spec.recipe.std))
    return (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std


def maps_of(model: Any, pixels: Any) -> list[np.ndarray]:
    """The tower's maps by PyTorch's own weights of `nn.MultiheadAttention`."""
    found: list[np.ndarray] = []

    def hook(module: Any, given: Any, options: Any, output: Any) -> None:
        _, maps = torch.nn.functional.multi_head_attention_forward(
            *(t.transpose(0, 1) for t in given), module.embed_dim, module.num_heads, module.in_proj_weight,
            module.in_proj_bias, None, None, False, 0.0, module.out_proj.weight, module.out_proj.bias,
            training=False, need_weights=True, average_attn_weights=False,
        )  # fmt: skip
        found.append(maps.numpy())

    hooks = [b.attn.register_forward_hook(hook, with_kwargs=True) for b in model.visual.transformer.resblocks]
    with torch.no_grad():
        model.visual(pixels)
    for one in hooks:
        one.remove()
    return found


@pytest.mark.parametrize("name", ["tiny-clip", "tiny-mean"])
def test_attention_is_the_librarys_own(
    name: str, graphs: Callable[[str], Graph], weights: dict[str, tuple[Path, Any]]
) -> None:
    """Rows within 1e-5 on average, 1e-3 at most."""
    spec, images = graphs(name).spec, pictures(3, (32, 32), seed=5)
    given: dict[str, Any] = {"target": np.array([-1, 0, 2])} if spec.gradients else {}
    outputs = run(graphs(name), image=images, **given)
    maps = maps_of(weights[name][1], pixels_of(images, spec))
    rows = np.stack([row_variation(outputs[f"attention.{i}"], a) for i, a in enumerate(maps)])
    assert rows.mean() <= 1e-5
    assert rows.max() <= 1e-3
    assert np.ptp(maps[0]) > 0.2  # not uniform
    assert (spec.library, spec.prefix, spec.grid) == ("open_clip", ("class",), (4, 4))
    assert spec.pooling == {"tiny-clip": "class", "tiny-mean": "mean"}[name]


@pytest.mark.parametrize("name", ["tiny-clip", "tiny-timm"])
def test_logits_are_the_cosines_of_texts_as_the_model_scales_them(
    name: str, graphs: Callable[[str], Graph], weights: dict[str, tuple[Path, Any]]
) -> None:
    """`get_logits` of the library; the texts are the classes' names."""
    result, model = graphs(name), weights[name][1]
    images = pictures(3, result.spec.image_size, seed=5)
    given: dict[str, Any] = {"target": np.full(3, -1)} if result.spec.gradients else {}
    logits = run(result, image=images, **given)["logits"]
    tokens = open_clip.get_tokenizer(name)(list(TEXTS))
    with torch.no_grad():
        expected, _ = model.get_logits(pixels_of(images, result.spec), tokens)
    scale = float(model.logit_scale.detach().exp())
    assert np.abs(logits - expected.numpy()).max() / scale <= 1e-5  # of the cosine
    assert [one.name for one in result.spec.classes] == list(TEXTS)
    assert result.spec.output("features") is None


def test_without_texts_the_embedding_is_the_output(
    graphs: Callable[[str], Graph], weights: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    """And there are no classes whose gradient could be taken."""
    images = pictures(3, (32, 32), seed=5)
    found = run(graphs("tiny-mean"), image=images)["features"]
    with torch.no_grad():
        expected = weights["tiny-mean"][1].encode_image(pixels_of(images, graphs("tiny-mean").spec)).numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert graphs("tiny-mean").spec.classes == ()
    with pytest.raises(UsageError, match=r"^open_clip:local-dir:/absent: has no classes"):  # before it is looked for
        export("open_clip:local-dir:/absent", tmp_path / "g.onnx", gradients=True)


def test_scale_and_bias_of_logits_are_hashed_with_the_weights(weights: dict[str, tuple[Path, Any]]) -> None:
    """They change every probability."""
    built = build("open_clip:tiny-timm", checkpoint=weights["tiny-timm"][0], texts=TEXTS)
    before = built.weights().sha256
    built.module.bias += 1  # type: ignore[operator]
    assert built.weights().sha256 != before


def test_gradients_are_those_of_autograd(graphs: Callable[[str], Graph], weights: dict[str, tuple[Path, Any]]) -> None:
    """Of the logit by the last layer's map, through the library's own code."""
    result = graphs("tiny-clip")
    built = build("open_clip:tiny-clip", checkpoint=weights["tiny-clip"][0], texts=TEXTS)
    images = pictures(2, (32, 32), seed=5)
    seen: list[Any] = []

    def hook(module: Any, given: Any, out: Any) -> Any:
        seen.append(out.detach().requires_grad_())
        return seen[-1]

    last: Any = built.module.visual.transformer.resblocks[-1].attn.attn_drop
    handle = last.register_forward_hook(hook)
    with torch.enable_grad():
        logits = built.module(pixels_of(images, result.spec))
        (wanted,) = torch.autograd.grad(logits[0, 1] + logits[1, 2], seen)
    handle.remove()
    found = run(result, image=images, target=np.array([1, 2]))["gradient.1"]
    assert np.abs(found - wanted.numpy()).max() <= 1e-4 * np.abs(wanted.numpy()).max()
    assert np.abs(found).max() > 0


def test_pixels_are_those_of_its_own_transform(
    graphs: Callable[[str], Graph], weights: dict[str, tuple[Path, Any]]
) -> None:
    """On odd sizes, greyscale, with transparency and with a palette, which become RGB only in the end."""
    spec, model = graphs("tiny-clip").spec, weights["tiny-clip"][1]
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (spec.recipe.mean, spec.recipe.std))
    for i, (size, mode) in enumerate([((61, 45), "RGB"), ((33, 97), "L"), ((40, 50), "RGBA"), ((99, 34), "P")]):
        picture = Image.fromarray(np.asarray(make_picture(i, *size))).convert(mode)
        if mode == "RGBA":
            picture.putalpha(make_picture(9, *size).convert("L"))
        own = np.rint((transform(picture).numpy() * std + mean) * 255).astype(np.uint8).transpose(1, 2, 0)
        picture.save(buffer := io.BytesIO(), "PNG")
        np.testing.assert_array_equal(decode(buffer.getvalue(), spec.recipe).pixels, own)


def test_a_tag_of_quick_gelu_is_built_with_it(configs: None) -> None:
    """OpenAI's weights under the plain name: open_clip warns alone, and every value would be another."""
    from open_clip import pretrained

    pretrained._PRETRAINED["tiny-clip"] = {"quick": {"quick_gelu": True}, "plain": {}}
    try:
        for tag, kind in (("quick", "QuickGELU"), ("plain", "GELU")):
            built = build(f"open_clip:tiny-clip/{tag}", random_init=True)
            assert type(built.module.visual.transformer.resblocks[0].mlp.gelu).__name__ == kind
            assert any("QuickGELU" in note for note in built.notes) == (tag == "quick")
    finally:
        del pretrained._PRETRAINED["tiny-clip"]


@pytest.mark.parametrize(("name", "pooling"), [("tiny-timm", "mean"), ("tiny-pool", "pool"), ("tiny-token", "class")])
def test_pooling_of_a_timm_tower_is_its_own(name: str, pooling: str) -> None:
    """It stands in the trunk, not in the tower around it."""
    built = build(f"open_clip:{name}", random_init=True)
    parts = built.library.parts(built)
    assert built.library.facts(built, parts).pooling == pooling
    assert (parts.pool is not None) == (pooling == "pool")


def test_embeddings_of_another_size_and_of_towers_that_give_tokens_too(weights: dict[str, tuple[Path, Any]]) -> None:
    """As open_clip's own; a file of a timm tower is loaded at its own size first."""
    from safetensors.torch import load_file

    path, _ = weights["tiny-timm"]
    built = build("open_clip:tiny-timm", checkpoint=path, img_size=192)
    own = open_clip.create_model("tiny-timm").eval()
    own.load_state_dict(load_file(path))
    own.visual.set_input_size((192, 192))
    pixels = torch.randn(2, 3, 192, 192, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = own.encode_image(pixels)
        assert (built.module(pixels) - expected).abs().max() <= 1e-5 * expected.abs().max()
        plain, tokens = (build(f"open_clip:{name}", random_init=True) for name in ("tiny-clip", "tiny-tokens"))
        torch.testing.assert_close(tokens.module(pixels[..., :32, :32]), plain.module(pixels[..., :32, :32]))


def test_what_cannot_be_exported_is_one_line(weights: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    out = tmp_path / "g.onnx"
    for name, more, reason in (
        ("open_clip:tiny-clop", {}, "has no model of that name; did you mean tiny-clip"),
        ("open_clip:ViT-B-32/nobody", {}, "has no weights called 'nobody'; it has openai"),
        ("open_clip:ViT-B-32", {}, "name the weights, as open_clip:ViT-B-32/TAG"),
        ("open_clip:local-dir:/no/such", {}, "there is no such folder"),
        ("open_clip:RN50", {"random_init": True}, "its image tower is a ModifiedResNet"),
        ("open_clip:tiny-queries", {"random_init": True}, "pools its tokens by an attention that shows no map"),
        ("open_clip:tiny-clip", {"random_init": True, "num_classes": 5}, "pass texts with --text"),
        ("deit_tiny_patch16_224", {"random_init": True, "texts": TEXTS}, "--text: .* has no text tower"),
    ):
        with pytest.raises(UsageError, match=reason):
            export(name, out, **more)
    with pytest.raises(AttlasError, match="are not the weights of open_clip's tiny-timm"):
        export("open_clip:tiny-timm", out, checkpoint=weights["tiny-clip"][0])
    assert list(tmp_path.iterdir()) == []
    torch.save(torch.nn.Linear(2, 2), pickled := tmp_path / "pickled.pt")
    with pytest.raises(AttlasError, match=r"pickled\.pt: .*save model.state_dict\(\)"):
        build("open_clip:tiny-clip", checkpoint=pickled)


def test_texts_come_from_the_command_line_and_from_a_file(
    weights: dict[str, tuple[Path, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from attlas.engine.messages import texts

    (tmp_path / "classes.txt").write_text("a cat\n\n  a dog \n")
    assert texts(["x", f"@{tmp_path / 'classes.txt'}"]) == ("x", "a cat", "a dog")
    for given, reason in ((["a", "a"], "given twice"), ([" "], "empty"), (["@/no/file"], "cannot be read")):
        with pytest.raises(UsageError, match=reason):
            texts(given)
    with pytest.raises(SystemExit):
        main(["export", "deit_tiny_patch16_224", "-o", str(tmp_path / "g.onnx"), "--random-init", "--text", "a cat"])
    assert "has no text tower" in capsys.readouterr().err


def test_a_model_that_is_built_already(weights: dict[str, tuple[Path, Any]]) -> None:
    """Its own transform comes along."""
    model = weights["tiny-clip"][1]
    built = build(model)
    assert built.recipe == build("open_clip:tiny-clip", random_init=True).recipe
    with pytest.raises(UsageError, match="which tokenizer its texts need"):
        build(model, texts=TEXTS)

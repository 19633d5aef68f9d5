"""The exporter, on small models of every family, and on real weights where they are at hand."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

import timm  # noqa: E402
from attlas.engine.runner import run as run_images  # noqa: E402
from attlas.engine.runtime.session import Session  # noqa: E402
from attlas.engine.store.store import Store  # noqa: E402
from attlas.errors import AttlasError, UsageError, first_line  # noqa: E402
from attlas.exporter import GraphSpec, export, list_models  # noqa: E402
from attlas.exporter.models.build import Model, _recipe, build  # noqa: E402
from attlas.exporter.spec import METADATA_KEY  # noqa: E402
from attlas.exporter.taps.attention import Taps  # noqa: E402
from attlas.exporter.taps.facts import describe, summarize  # noqa: E402
from attlas.exporter.taps.pictures import pictures  # noqa: E402
from attlas.exporter.taps.tapped import Tapped  # noqa: E402
from attlas.exporter.trace import export as graph_module  # noqa: E402
from attlas.exporter.trace.export import ExportResult, export_model  # noqa: E402
from attlas.exporter.trace.parity import Parity, compare, row_variation  # noqa: E402
from support import make_images  # noqa: E402

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 64}
DEIT = "deit_tiny_patch16_224"

# One name of each kind, with what must be read from the model: prefix, pooling, position, first output.
FAMILIES: dict[str, tuple[dict[str, Any], tuple[str, ...], str, str, str]] = {
    DEIT: ({}, ("class",), "class", "absolute", "logits"),
    "deit_tiny_distilled_patch16_224": ({}, ("class", "distillation"), "distilled", "absolute", "logits"),
    "vit_base_patch16_224.dino": ({}, ("class",), "class", "absolute", "features"),
    "vit_base_patch16_clip_224.openai": ({}, ("class",), "class", "absolute", "features"),
    "vit_small_patch14_reg4_dinov2": (
        {"img_size": 56}, ("class", *["register"] * 4), "class", "absolute", "features",
    ),
    "vit_medium_patch16_reg4_gap_256": ({}, ("register",) * 4, "mean", "absolute", "logits"),
    "vit_base_patch16_siglip_224": ({}, (), "pool", "absolute", "features"),
    "eva02_tiny_patch14_224": ({"img_size": 56}, ("class",), "mean", "rotary", "features"),
    "vit_small_patch16_dinov3": ({}, ("class", *["register"] * 4), "mean", "rotary", "features"),
    "vit_relpos_small_patch16_224": ({}, (), "mean", "relative", "logits"),
    "beit_base_patch16_224": ({}, ("class",), "mean", "relative", "logits"),
    "vit_small_patch16_18x2_224": ({}, ("class",), "class", "absolute", "logits"),
    "vit_dpwee_patch16_reg1_gap_256": ({}, ("register",), "mean", "absolute", "logits"),
    "qwen3_vit_88m": ({}, (), "mean", "rotary", "features"),
    "naflexvit_base_patch16_map": ({}, ("register",), "pool", "absolute", "logits"),
    "cait_xxs24_224": ({"num_heads": 4}, (), "class", "absolute", "logits"),
}  # fmt: skip

_SHARED = os.environ.get("ATTLAS_SHARED")
needs_shared = pytest.mark.skipif(
    not _SHARED, reason="ATTLAS_SHARED is not set: the folder with models/ and images/ of the real-weight tests"
)
SHARED = Path(_SHARED or ".")


def make(name: str, **kwargs: Any) -> Model:
    """A small model with random weights and attention that is neither uniform nor one-hot."""
    built = build(name, random_init=True, seed=3, model_kwargs={**SMALL, **FAMILIES.get(name, ({},))[0], **kwargs})
    sharpen(built)
    return built


def sharpen(built: Model, rounds: int = 8) -> None:
    """Scale the queries of each layer until its mean entropy is about half of ln N: uniform maps prove nothing."""
    taps = Taps(built.module, built.name)
    image = torch.from_numpy(pictures(1, built.image_size)).permute(0, 3, 1, 2) / 127.5 - 1
    step = 2.0**rounds
    for _ in range(rounds + 2):
        with torch.no_grad(), taps.recording() as seen:
            built.module(image)
        for layer, owners in taps.owners.items():
            a = seen.maps[layer][0].abs().clamp_min(1e-30)
            uniform = float(-(a * a.log()).sum(-1).mean()) > 0.5 * math.log(a.shape[-1])
            for owner in owners:
                owner.scale = owner.scale * (step if uniform else 1 / step)
        step = math.sqrt(step)


def run(path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"image": images}), strict=True))


def reference(built: Model) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    taps = Taps(built.module, built.name)
    return Tapped(built, taps, describe(built, taps), tuple(range(taps.depth))).run


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Model, ExportResult]]:
    """Each family is exported once for all tests."""
    folder, made = tmp_path_factory.mktemp("graphs"), dict[str, tuple[Model, ExportResult]]()

    def get(name: str) -> tuple[Model, ExportResult]:
        if name not in made:
            built = make(name)
            made[name] = built, export_model(built, folder / f"{name}.onnx")
        return made[name]

    return get


# What the graph gives ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_family_is_exported_with_its_own_facts_and_equals_pytorch(name: str, exported: Any) -> None:
    """Every family's graph gives PyTorch's attention, for any batch, and names its tokens, pooling and positions."""
    built, result = exported(name)
    _, prefix, pooling, position, head = FAMILIES[name]
    spec = result.spec
    assert (spec.prefix, spec.pooling, spec.position) == (prefix, pooling, position)
    assert spec.outputs[0].name == head
    images = pictures(5, spec.image_size, seed=9)
    figures = compare(run(result.path, images), reference(built)(images), spec)
    assert figures.row_mean <= 1e-5
    assert figures.row_max <= 1e-3
    assert figures.head <= 1e-4 * figures.head_scale


def test_maps_of_the_test_models_are_not_uniform(exported: Any) -> None:
    """The parity tests would catch a wrong map: entropies lie around half of ln N."""
    _, result = exported(DEIT)
    outputs = run(result.path, pictures(2, result.spec.image_size))
    for layer in result.spec.layers:
        a = outputs[f"attention.{layer}"].astype(np.float64)
        share = -(a * np.log(a.clip(1e-30))).sum(-1).mean() / math.log(a.shape[-1])
        assert 0.35 < share < 0.65


def test_attention_multiplies_the_values(exported: Any) -> None:
    """The exported map, times the values by hand in float64, is what the block projects."""
    built, result = exported(DEIT)
    images = pictures(2, built.image_size)
    caught: dict[str, Any] = {}
    attn = built.module.blocks[1].attn
    hooks = [
        attn.qkv.register_forward_hook(lambda m, i, o: caught.update(qkv=o)),
        attn.proj.register_forward_pre_hook(lambda m, i: caught.update(mixed=i[0])),
    ]
    reference(built)(images)
    for hook in hooks:
        hook.remove()
    a = run(result.path, images)["attention.1"].astype(np.float64)
    heads = result.spec.heads
    values = caught["qkv"].double().numpy().reshape(2, a.shape[-1], 3, heads, -1)[:, :, 2].transpose(0, 2, 1, 3)
    by_hand = (a @ values).transpose(0, 2, 1, 3).reshape(2, a.shape[-1], -1)
    np.testing.assert_allclose(by_hand, caught["mixed"].numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "naflexvit_base_patch16_map"])
def test_pool_map_multiplies_the_values_of_the_pool(name: str, exported: Any) -> None:
    """A learned query's map is an output over all tokens, zero where the pool does not look."""
    built, result = exported(name)
    images = pictures(2, built.image_size)
    caught: dict[str, Any] = {}
    pool = built.module.attn_pool
    hooks = [
        pool.kv.register_forward_hook(lambda m, i, o: caught.update(kv=o)),
        pool.proj.register_forward_pre_hook(lambda m, i: caught.update(mixed=i[0])),
    ]
    reference(built)(images)
    for hook in hooks:
        hook.remove()
    output = result.spec.output("pool_attention")
    assert output is not None
    assert output.dims == ("image", "head", "pool_query", "key")
    a = run(result.path, images)["pool_attention"].astype(np.float64)
    assert a.shape[-1] == result.spec.tokens
    unseen = a.shape[-1] - caught["kv"].shape[1]
    assert (a[..., :unseen] == 0).all()
    kv = caught["kv"].double().numpy()
    values = kv.reshape(2, kv.shape[1], 2, pool.num_heads, -1)[:, :, 1].transpose(0, 2, 1, 3)
    by_hand = (a[..., unseen:] @ values).transpose(0, 2, 1, 3).reshape(2, 1, -1)
    np.testing.assert_allclose(by_hand, caught["mixed"].numpy(), atol=1e-5)


def test_differential_attention_is_marked_mixed(exported: Any) -> None:
    """Maps that are subtracted from each other are no distributions, and the spec says so."""
    built, result = exported("vit_dpwee_patch16_reg1_gap_256")
    assert result.spec.attention_kind == "mixed"
    assert run(result.path, pictures(1, built.image_size))["attention.0"].min() < 0


def test_class_token_that_joins_late_has_maps_of_its_own(exported: Any) -> None:
    """CaiT: the blocks attend over patches and mix their heads; then the class token alone has a query."""
    built, result = exported("cait_xxs24_224")
    assert result.spec.attention_kind == "mixed"
    assert (result.spec.tokens, result.spec.readout) == (16, "mean")
    output = result.spec.output("class_attention.1")
    assert output is not None
    assert output.dims == ("image", "head", "class_query", "class_key")
    caught: dict[str, Any] = {}
    attn = built.module.blocks_token_only[1].attn
    hooks = [
        attn.v.register_forward_hook(lambda m, i, o: caught.update(values=o)),
        attn.proj.register_forward_pre_hook(lambda m, i: caught.update(mixed=i[0])),
    ]
    images = pictures(2, built.image_size)
    outputs = run(result.path, images)
    expected = reference(built)(images)
    for hook in hooks:
        hook.remove()
    values = caught["values"].double().numpy().reshape(2, 17, 4, -1).transpose(0, 2, 1, 3)
    by_hand = (outputs["class_attention.1"] @ values).transpose(0, 2, 1, 3).reshape(2, 1, -1)
    np.testing.assert_allclose(by_hand, caught["mixed"].numpy(), atol=1e-5)
    assert outputs["tokens"].shape[1] == result.spec.tokens
    np.testing.assert_allclose(outputs["tokens"], expected["tokens"], atol=1e-5)


def test_run_stores_the_class_tokens_own_maps(tmp_path: Path, exported: Any) -> None:
    """Beside those of the blocks, on an axis of their own, as the graph gives them."""
    _, result = exported("cait_xxs24_224")
    folder = make_images(tmp_path / "images", 3)
    run_images(result.path, folder, tmp_path / "cait.zarr", reducer=None)
    store = Store(tmp_path / "cait.zarr")
    expected = Session(result.path, provider="cpu")([folder / str(p) for p in store.read("path")])
    assert expected["class_attention"].shape == (3, 2, 4, 1, 17)
    np.testing.assert_array_equal(store.read("class_attention"), expected["class_attention"])
    np.testing.assert_array_equal(store.read("attention"), expected["attention"].astype(np.float16))


def test_parallel_attentions_of_a_block_stand_side_by_side(exported: Any) -> None:
    """A block with two attentions has the heads of both, first those of the first."""
    _, result = exported("vit_small_patch16_18x2_224")
    assert result.spec.heads == 2 * SMALL["num_heads"]
    assert result.spec.attention_kind == "probability"


def test_position_embedding_is_the_models_own(exported: Any) -> None:
    """The learned absolute embedding is a constant output, by token where it has one for the prefix."""
    built, result = exported(DEIT)
    output = result.spec.output("position_embedding")
    assert output is not None
    assert output.dims == ("token", "channel")
    given = run(result.path, pictures(1, built.image_size))["position_embedding"]
    np.testing.assert_array_equal(given, built.module.pos_embed[0].numpy())
    assert exported("vit_relpos_small_patch16_224")[1].spec.output("position_embedding") is None


@pytest.mark.parametrize(("name", "embeds"), [("naflexvit_base_patch16_map", "embeds"), ("qwen3_vit_88m", "encoder")])
def test_position_embedding_is_resampled_as_the_model_does(name: str, embeds: str, exported: Any) -> None:
    """Families with a grid of their own give what they add to the patches of this picture."""
    built, result = exported(name)
    module = built.module.get_submodule(embeds)
    seen = []
    for factor in (1.0, 0.0):
        kept = module.pos_embed.data.clone()
        module.pos_embed.data.mul_(factor)
        with torch.no_grad():
            image = torch.zeros(1, 3, *built.image_size)
            tokens = module(image)[0] if embeds == "embeds" else module._pos_embed(module.patch_embed(image))[0]
        module.pos_embed.data.copy_(kept)
        seen.append(tokens[0, len(result.spec.prefix) :].numpy())
    given = run(result.path, pictures(1, built.image_size))["position_embedding"]
    np.testing.assert_allclose(given, seen[0] - seen[1], atol=1e-6)


def test_parameter_free_pool_gives_the_row_the_head_reads(tmp_path: Path) -> None:
    """Refining pools attend once more over the tokens: their map times the tokens is the pooled vector."""
    built = make("vit_base_patch16_224", global_pool="prr", num_classes=0)
    result = export_model(built, tmp_path / "vit.onnx")
    outputs = run(result.path, pictures(2, built.image_size))
    assert result.spec.pooling == "pool"
    values = outputs["tokens"].reshape(2, result.spec.tokens, SMALL["num_heads"], -1).transpose(0, 2, 1, 3)
    by_hand = (outputs["pool_attention"] @ values).transpose(0, 2, 1, 3).reshape(2, -1)
    np.testing.assert_allclose(by_hand, outputs["features"], atol=1e-5)


def test_unpooled_model_gives_features_of_its_class_token(tmp_path: Path) -> None:
    """A model that pools nothing is read at its class token."""
    built = make(DEIT, global_pool="", num_classes=0)
    result = export_model(built, tmp_path / "deit.onnx")
    outputs = run(result.path, pictures(2, built.image_size))
    assert (result.spec.pooling, result.spec.readout) == ("none", "class")
    np.testing.assert_allclose(outputs["features"], outputs["tokens"][:, 0], atol=1e-6)


def test_chosen_layers_alone_are_outputs(tmp_path: Path) -> None:
    """A subset of layers keeps their own numbers."""
    result = export_model(make(DEIT, depth=3), tmp_path / "deit.onnx", layers=[2, 0])
    maps = [o.name for o in result.spec.outputs if o.name.startswith("attention")]
    assert maps == ["attention.0", "attention.2"]
    assert (result.spec.layers, result.spec.depth) == ((0, 2), 3)


def test_layer_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    """The error names the layers that do."""
    with pytest.raises(UsageError, match="layers 0 to 1, asked for 2"):
        export_model(make(DEIT), tmp_path / "deit.onnx", layers=[2])


def test_picture_that_is_not_square_keeps_its_grid(tmp_path: Path) -> None:
    """Height and width go into the grid in this order, the positions are resampled."""
    kwargs = {k: v for k, v in SMALL.items() if k != "img_size"}
    built = build(DEIT, random_init=True, img_size=(64, 96), model_kwargs=kwargs)
    spec = export_model(built, tmp_path / "deit.onnx").spec
    assert (spec.image_size, spec.grid, spec.patch_size) == ((64, 96), (4, 6), (16, 16))
    assert spec.recipe.crop == (64, 96)


def test_float16_graph_gives_float32_outputs_near_pytorch(tmp_path: Path, exported: Any) -> None:
    """Half precision inside, float32 outside, rows that still sum to 1."""
    built, _ = exported(DEIT)
    result = export_model(built, tmp_path / "half.onnx", dtype="float16")
    outputs = run(result.path, pictures(4, built.image_size))
    assert {v.dtype for v in outputs.values()} == {np.dtype("float32")}
    assert np.abs(outputs["attention.1"].sum(-1) - 1).max() < 1e-5
    assert result.parity.row_mean < 5e-3
    kinds = {i.data_type for i in onnx.load(result.path).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds


def test_float16_graph_rounds_alike_whatever_is_asked_for(tmp_path: Path) -> None:
    """On a CPU, too, which drops casts: logits and maps are the same bits beside statistics, tokens or nothing."""
    pytest.importorskip("ndonnx")
    from attlas.analysis.kernels.fused import Reducer
    from attlas.engine.runtime.outputs import Wanted

    result = export_model(make(DEIT), tmp_path / "half.onnx", dtype="float16")
    statistics = Reducer(result.spec).graph("float16")
    assert statistics is not None
    images, logits, half = pictures(2, result.spec.image_size), Wanted("logits"), Wanted("attention.1", "float16")
    found = []
    for appended, wanted in ((None, [logits]), (statistics, [logits, half]), (None, [logits, half, Wanted("tokens")])):
        session = Session(result.path, provider="cpu", wanted=wanted, appended=appended)
        buffers = session.buffers(2)
        session.run_into(images, buffers, 2)
        found.append(buffers)
    for buffers in found[1:]:
        np.testing.assert_array_equal(buffers["logits"], found[0]["logits"])
    np.testing.assert_array_equal(found[1][half.name], found[2][half.name])


# The file ------------------------------------------------------------------------------------------------------------


def test_spec_stands_in_the_file_and_beside_it(exported: Any) -> None:
    """Metadata, the JSON beside it and the result are one spec, and it names every output of the graph."""
    _, result = exported(DEIT)
    model = onnx.load(result.path, load_external_data=False)
    inside = {p.key: p.value for p in model.metadata_props}[METADATA_KEY]
    beside = result.path.with_suffix(".json").read_text(encoding="utf-8")
    assert GraphSpec.from_json(inside, "inside") == result.spec
    assert GraphSpec.from_json(beside, "beside") == result.spec
    assert [o.name for o in model.graph.output] == [o.name for o in result.spec.outputs]
    assert json.loads(beside)["attlas_format"] == 1
    assert result.spec.classes[0].id == "n01440764"


def test_spec_of_a_newer_format_is_refused(exported: Any) -> None:
    """A number this version does not know is no damage, but a reason to upgrade."""
    data = {**exported(DEIT)[1].spec.to_dict(), "attlas_format": 2}
    with pytest.raises(AttlasError, match=r"here\.onnx: written in format 2"):
        GraphSpec.from_dict(data, "here.onnx")


def test_batch_axis_is_dynamic_everywhere(exported: Any) -> None:
    """The input and every output but the constant name their first axis `batch`."""
    _, result = exported(DEIT)
    graph = onnx.load(result.path).graph
    for value in (*graph.input, *graph.output):
        if value.name != "position_embedding":
            assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_two_exports_of_the_same_weights_are_identical_and_tell_no_path(tmp_path: Path) -> None:
    """Bytes depend on the weights alone: no stack traces, no paths, no temporary names."""
    files = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        files.append(export_model(make(DEIT), tmp_path / folder / "deit.onnx").path.read_bytes())
    assert files[0] == files[1]
    for text in (str(Path.home()), str(tmp_path), "site-packages", "stack_trace", ".py"):
        assert text.encode() not in files[0]


def test_existing_output_is_refused_unless_overwrite(tmp_path: Path) -> None:
    """What is there stays as it was."""
    path = tmp_path / "deit.onnx"
    path.write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"deit.onnx: exists already; pass --overwrite"):
        export(DEIT, path, random_init=True)
    assert path.read_bytes() == b"mine"
    export_model(make(DEIT), path, overwrite=True)
    assert len(path.read_bytes()) > 1000


def test_graph_that_differs_from_pytorch_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parity is proven before the file gets its name."""
    trace = graph_module._trace

    def wrong(tapped: Tapped, spec: GraphSpec) -> Any:
        model = trace(tapped, spec)
        tapped.model.blocks[0].attn.scale *= 1.5
        return model

    monkeypatch.setattr(graph_module, "_trace", wrong)
    with pytest.raises(AttlasError, match=r"rows of attention.0 differ .* nothing was written"):
        export_model(make(DEIT), tmp_path / "deit.onnx")
    assert list(tmp_path.iterdir()) == []


def test_weights_above_the_limit_go_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """External data lies in NAME.onnx.data, by relative name, and the pair can be moved."""
    monkeypatch.setattr(graph_module, "LARGEST_FILE", 1000)
    built = make(DEIT)
    result = export_model(built, tmp_path / "deit.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deit.json", "deit.onnx", "deit.onnx.data"]
    moved = tmp_path.with_name("moved")
    tmp_path.rename(moved)
    images = pictures(1, built.image_size)
    compare(run(moved / "deit.onnx", images), reference(built)(images), result.spec)


def test_weights_beside_the_old_graph_stay_until_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overwriting that is interrupted at its last step leaves the old graph whole."""
    built, path, replace = make(DEIT), tmp_path / "deit.onnx", Path.replace
    with monkeypatch.context() as patch:
        patch.setattr(graph_module, "LARGEST_FILE", 1000)
        spec = export_model(built, path).spec

    def interrupted(self: Path, target: Path) -> Path:
        if target == path:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export_model(built, path, overwrite=True)
    images = pictures(1, built.image_size)
    compare(run(path, images), reference(built)(images), spec)
    export_model(built, path, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deit.json", "deit.onnx"]


def test_export_says_its_stages_and_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each step as it begins and as it ends, with its seconds, to the callable; stdout and stderr stay the caller's."""
    said: list[str] = []
    export_model(make(DEIT), tmp_path / "deit.onnx", progress=said.append)
    assert [line.split()[0] for line in said] == ["tracing", "traced", "writing", "wrote", "comparing", "compared"]
    assert all(re.search(r" in \d+ s$", line) for line in said[1::2])
    assert max(map(len, said)) < 90
    assert capfd.readouterr() == ("", "")


def test_interrupted_export_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the graph is compared: what was not proven is gone."""

    def interrupted(*args: object) -> None:
        assert [p.suffix for p in tmp_path.iterdir()] == [".partial"]
        raise KeyboardInterrupt

    monkeypatch.setattr(graph_module, "check", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_model(make(DEIT), tmp_path / "deit.onnx")
    assert list(tmp_path.iterdir()) == []


def test_sigterm_ends_an_export_as_ctrl_c_does(tmp_path: Path) -> None:
    """A batch system's signal runs what cleans up, and ends with 130."""
    code = (
        "import os, signal, attlas, attlas.cli\n"
        "def export(*args, **kwargs):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    finally:\n"
        "        print('cleaned')\n"
        "attlas.export = export\n"
        "attlas.cli.main(['export', 'some_model', '-o', 'x.onnx', '--random-init'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (130, "cleaned\n")
    assert done.stderr.splitlines()[-1] == "attlas: interrupted; nothing was written"


def test_top1_that_changes_fails() -> None:
    """Another first class is another model, unless the two were tied."""
    spec = GraphSpec.from_dict(_plain_spec(), "test")
    maps = {"attention.0": np.full((1, 1, 2, 2), 0.5, np.float32)}
    expected = {"logits": np.array([[1.0, 0.9995, 0]], np.float32), **maps}
    tied = {"logits": np.array([[1.0, 0.999999, 0]], np.float32), **maps}
    swapped = {"logits": np.array([[0.9996, 1.0, 0]], np.float32), **maps}
    with pytest.raises(AttlasError, match="the first class agrees on 0% of the pictures"):
        compare(swapped, expected, spec)
    assert compare({"logits": tied["logits"][:, [1, 0, 2]], **maps}, tied, spec).top1 == 1


def test_row_variation_is_half_the_l1_distance() -> None:
    """Two disjoint rows are 1 apart, whatever their length."""
    a, b = np.eye(3)[None], np.roll(np.eye(3), 1, 0)[None]
    np.testing.assert_array_equal(row_variation(a, b), [[1, 1, 1]])
    np.testing.assert_array_equal(row_variation(a, a), [[0, 0, 0]])


def _plain_spec() -> dict[str, Any]:
    recipe = {
        "resize": [32, 32], "crop": [32, 32], "crop_mode": "center", "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
    }  # fmt: skip
    return {
        "attlas_format": 1, "model": "m", "tag": "", "weights": {"source": "random", "sha256": ""}, "dtype": "float32",
        "image_size": [32, 32], "recipe": recipe, "patch_size": [16, 16], "grid": [2, 2], "prefix": ["class"],
        "pooling": "class", "layers": [0], "depth": 1, "heads": 1, "attention_kind": "probability",
        "position": "none", "outputs": [],
    }  # fmt: skip


# Weights -------------------------------------------------------------------------------------------------------------


def test_seed_decides_random_weights() -> None:
    """The same seed gives the same model, another one another, and the caller's generator is left alone."""
    before = torch.random.get_rng_state()
    hashes = [build(DEIT, random_init=True, seed=s, model_kwargs=SMALL).weights().sha256 for s in (1, 1, 2)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert torch.equal(before, torch.random.get_rng_state())


def test_pretrained_weights_come_through_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tag's weights are loaded by timm's own loader, which never unpickles."""
    state = make(DEIT).module.state_dict()
    asked = []

    def answer(hub_id: str, *args: object, **kwargs: object) -> dict[str, Any]:
        asked.append((hub_id, kwargs.get("weights_only")))
        return dict(state)

    monkeypatch.setattr("attlas.exporter.models.build._reach", lambda *a: None)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", answer)
    built = build(f"{DEIT}.fb_in1k", model_kwargs=SMALL)
    assert asked == [("timm/deit_tiny_patch16_224.fb_in1k", True)]
    assert (built.source, built.weights().sha256) == ("pretrained", make(DEIT).weights().sha256)


def test_without_network_the_message_names_the_alternatives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One line at once, instead of the hub's minute of retries."""

    def unreachable(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)
    with pytest.raises(AttlasError, match=r"--checkpoint FILE .*--random-init") as caught:
        export(DEIT, tmp_path / "deit.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# Names and options ---------------------------------------------------------------------------------------------------


def test_unknown_model_suggests_near_names(tmp_path: Path) -> None:
    """A slip of the pen is answered with what was meant."""
    with pytest.raises(UsageError, match=r"did you mean .*vit_base_patch16_224"):
        export("vit_base_patch16_22", tmp_path / "vit.onnx")
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


def test_map_of_another_size_than_the_tokens_is_refused() -> None:
    """Windows and pooled keys are told by their shapes, with the reason in words."""
    taps = Taps(make(DEIT).module, "some_model")
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
        build(DEIT, random_init=True, model_kwargs=SMALL)
        assert bool(use_fused_attn()) is wanted
    set_fused_attn(True)


def test_recipe_is_that_of_the_pretrained_tag() -> None:
    """Tags of one architecture differ in mean, std and crop; resize is the floor of size / crop_pct."""
    plain = build(DEIT, random_init=True).recipe
    assert (plain.resize, plain.crop, plain.crop_mode) == ((248, 248), (224, 224), "center")
    assert plain.mean == (0.485, 0.456, 0.406)
    augreg = build("vit_tiny_patch16_224.augreg_in21k_ft_in1k", random_init=True).recipe
    assert augreg.mean == (0.5, 0.5, 0.5)


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


def test_first_line_of_a_bare_assertion_is_the_assertion() -> None:
    """An exception without words names its type, and where it can, what was asserted."""
    with pytest.raises(AssertionError) as caught:
        raise AssertionError
    assert first_line(caught.value) == "AssertionError at `raise AssertionError`"
    assert first_line(ValueError("\n two\nlines")) == "two"
    assert first_line(ValueError()) == "ValueError"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "model: pass timm's name of a model, not None"),
        ({"model": Path("deit")}, "model: pass timm's name"),
        ({"model": torch.nn.Linear(2, 2)}, r"model: a Linear was given; .*save_file\(model\.state_dict\(\)"),
        ({"output": None}, r"output: pass the path of the graph"),
        ({"checkpoint": {"head.weight": torch.ones(2)}}, "checkpoint: a dict was given; save"),
        ({"checkpoint": torch.nn.Linear(2, 2)}, "checkpoint: a Linear was given; save"),
        ({"checkpoint": 3}, "checkpoint: pass the path of a file"),
        ({"layers": "0,1"}, "layers: pass a list of whole numbers"),
        ({"layers": 3}, "layers: pass a list of whole numbers"),
        ({"layers": ["0"]}, "layers: pass a list of whole numbers"),
        ({"num_classes": "10"}, "num_classes: pass a whole number"),
        ({"seed": None}, "seed: pass a whole number"),
        ({"dtype": "float64"}, "--dtype float64"),
    ],
)
def test_value_of_another_type_is_a_usage_error(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Before anything is built, with what to pass instead."""
    request = {"model": DEIT, "output": tmp_path / "deit.onnx", "random_init": True} | changes
    with pytest.raises(UsageError, match=message) as caught:
        export(**request)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_sources_that_contradict_are_refused(tmp_path: Path) -> None:
    """Weights come from one place."""
    with pytest.raises(UsageError, match="exclude each other"):
        build(DEIT, checkpoint=tmp_path / "x.pth", random_init=True)
    with pytest.raises(UsageError, match="there is no such file"):
        build(DEIT, checkpoint=tmp_path / "x.pth")
    with pytest.raises(UsageError, match="would leave a new head random"):
        build(DEIT, num_classes=10)


def test_list_models_gives_what_can_be_exported() -> None:
    """Names by pattern, tags where the pattern has one, and no model of another kind."""
    assert {DEIT, "vit_base_patch16_224", "vit_large_patch16_224"} <= set(list_models())
    assert list_models("swin*") == []
    assert "vit_base_patch16_224.dino" in list_models("vit_base_patch16_224.*")


# Real weights and pictures -------------------------------------------------------------------------------------------


@needs_shared
def test_trained_weights_on_photographs_equal_pytorch(tmp_path: Path) -> None:
    """deit_tiny's own weights on real JPEGs, with timm's own transform: rows, logits and classes."""
    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    checkpoint = SHARED / "models" / f"{DEIT}.safetensors"
    result = export(DEIT, tmp_path / "deit.onnx", checkpoint=checkpoint)
    built = build(DEIT, checkpoint=checkpoint)
    transform = create_transform(**resolve_data_config({}, model=built.module), is_training=False)
    transform.transforms = [t for t in transform.transforms if type(t).__name__ not in ("MaybeToTensor", "Normalize")]
    files = sorted((SHARED / "images").glob("*.JPEG"))[:: 1 if os.environ.get("ATTLAS_FULL") else 8]
    torch_run, means, largest, right = reference(built), [], 0.0, 0
    session = onnxruntime.InferenceSession(str(result.path), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    for start in range(0, len(files), 8):
        batch = files[start : start + 8]
        images = np.stack([np.asarray(transform(Image.open(f).convert("RGB"))) for f in batch])
        outputs = dict(zip(names, session.run(None, {"image": images}), strict=True))
        figures = compare(outputs, torch_run(images), result.spec)
        means.append(figures.row_mean)
        largest = max(largest, figures.row_max)
        assert figures.head <= 1e-4 * figures.head_scale
        assert figures.top1 == 1
        first = [result.spec.classes[k].id for k in outputs["logits"].argmax(-1)]
        right += sum(f.name.startswith(k) for f, k in zip(batch, first, strict=True))
    assert np.mean(means) <= 5e-6
    assert largest <= 5e-4
    assert right / len(files) > 0.7


@pytest.mark.parametrize(
    "name",
    [
        DEIT,
        "vit_base_patch32_224",
        pytest.param("vit_base_patch16_224", marks=pytest.mark.slow),
        pytest.param("vit_large_patch16_224", marks=pytest.mark.slow),
    ],
)
@needs_shared
def test_mission_model_at_full_depth_equals_pytorch(name: str, tmp_path: Path) -> None:
    """Random weights with sharp attention in every layer: rows within 1e-5 on average and 1e-3 at most."""
    built = build(name, random_init=True)
    sharpen(built, rounds=5)
    parity: Parity = export_model(built, tmp_path / "model.onnx").parity
    assert parity.row_mean <= 1e-5
    assert parity.row_max <= 1e-3
    assert dataclasses.asdict(parity)["top1"] == 1
    assert timm.is_model(name)

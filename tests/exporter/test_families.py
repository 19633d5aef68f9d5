"""Models of every family give the maps that multiply their values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("timm")


from attlas.engine.runner import run as run_images
from attlas.engine.runtime.session import Session
from attlas.engine.store.store import Store
from attlas.exporter.taps.pictures import pictures
from attlas.exporter.trace.export import export_model
from attlas.exporter.trace.fold import fixed_nodes
from attlas.exporter.trace.parity import compare
from support import make_images
from support_export import DEIT, FAMILIES, SMALL, make, reference, run

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


@pytest.mark.parametrize("name", FAMILIES)
def test_whatever_depends_on_no_image_is_a_constant(name: str, exported: Any) -> None:
    """A runtime may compute it wrong in silence."""
    graph = ir.load(exported(name)[1].path).graph
    assert [node.op_type for node in fixed_nodes(graph)] == []


def test_a_resampled_position_table_is_right_in_openvino(exported: Any) -> None:
    """It resizes with antialiasing wrong, so that none may be left to it."""
    pytest.importorskip("openvino")
    _, result = exported("naflexvit_base_patch16_map")
    images = pictures(2, result.spec.image_size)
    plain, other = (Session(result.path, provider=provider)(images) for provider in ("cpu", "openvino"))
    np.testing.assert_allclose(other["attention"], plain["attention"], atol=1e-4)


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


def test_unpooled_model_gives_features_of_its_class_token(tmp_path: Path) -> None:
    """A model that pools nothing is read at its class token."""
    built = make(DEIT, global_pool="", num_classes=0)
    result = export_model(built, tmp_path / "deit.onnx")
    outputs = run(result.path, pictures(2, built.image_size))
    assert (result.spec.pooling, result.spec.readout) == ("none", "class")
    np.testing.assert_allclose(outputs["features"], outputs["tokens"][:, 0], atol=1e-6)

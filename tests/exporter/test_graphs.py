"""What a graph gives beside its maps: positions, pools, layers, grids, and half the precision."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

pytest.importorskip("timm")


import timm  # noqa: E402
from attlas.engine.runtime.session import Session  # noqa: E402
from attlas.errors import UsageError, first_line  # noqa: E402
from attlas.exporter import export  # noqa: E402
from attlas.exporter.libraries.build import build  # noqa: E402
from attlas.exporter.taps.pictures import pictures  # noqa: E402
from attlas.exporter.trace.export import export_model  # noqa: E402
from attlas.exporter.trace.parity import Parity  # noqa: E402
from support_export import DEIT, SMALL, make, needs_shared, run, sharpen  # noqa: E402


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


def test_chosen_layers_alone_are_outputs(tmp_path: Path) -> None:
    """A subset of layers keeps their own numbers."""
    result = export_model(make(DEIT, depth=3), tmp_path / "deit.onnx", layers=[2, 0])
    maps = [o.name for o in result.spec.outputs if o.name.startswith("attention")]
    assert maps == ["attention.0", "attention.2"]
    assert (result.spec.layers, result.spec.depth) == ((0, 2), 3)


def test_picture_that_is_not_square_keeps_its_grid(tmp_path: Path) -> None:
    """Height and width go into the grid in this order, the positions are resampled."""
    kwargs = {k: v for k, v in SMALL.items() if k != "img_size"}
    built = build(DEIT, random_init=True, img_size=(64, 96), model_args=kwargs)
    spec = export_model(built, tmp_path / "deit.onnx").spec
    assert (spec.image_size, spec.grid, spec.patch_size) == ((64, 96), (4, 6), (16, 16))
    assert spec.recipe.crop == (64, 96)


def test_float16_graph_gives_float32_outputs_near_pytorch(exported: Any, export_once: Any) -> None:
    """Half precision inside, float32 outside, rows that still sum to 1."""
    built, _ = exported(DEIT)
    result = export_once("half", built, dtype="float16")
    outputs = run(result.path, pictures(4, built.image_size))
    assert {v.dtype for v in outputs.values()} == {np.dtype("float32")}
    assert np.abs(outputs["attention.1"].sum(-1) - 1).max() < 1e-5
    assert result.parity.row_mean < 5e-3
    kinds = {i.data_type for i in onnx.load(result.path).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds


def test_float16_graph_rounds_alike_whatever_is_asked_for(exported: Any, export_once: Any) -> None:
    """On a CPU, too, which drops casts: logits and maps are the same bits beside statistics, tokens or nothing."""
    pytest.importorskip("ndonnx")
    from attlas.analysis.kernels.fused import Reducer
    from attlas.engine.runtime.outputs import Wanted

    result = export_once("half", exported(DEIT)[0], dtype="float16")
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


def test_first_line_of_a_bare_assertion_is_the_assertion() -> None:
    """An exception without words names its type, and where it can, what was asserted."""
    with pytest.raises(AssertionError) as caught:
        raise AssertionError
    assert first_line(caught.value) == "AssertionError at `raise AssertionError`"
    assert first_line(ValueError("\n two\nlines")) == "two"
    assert first_line(ValueError()) == "ValueError"
    assert first_line(ValueError("\x1b[96mStep 3/3\x1b[0m failed")) == "Step 3/3 failed"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "model: pass the name of a model, or a module, not None"),
        ({"model": Path("deit")}, "model: pass the name of a model, or a module"),
        ({"model": torch.nn.Linear(2, 2)}, "Linear: a module has its weights and its arguments; leave out"),
        (
            {"model": torch.nn.Linear(2, 2), "random_init": False},
            r"Linear: a module has no recipe of its own; pass preprocess=",
        ),
        ({"output": None}, r"output: pass the path of the graph"),
        ({"checkpoint": {"head.weight": torch.ones(2)}}, "checkpoint: a dict was given; save"),
        ({"checkpoint": torch.nn.Linear(2, 2)}, "checkpoint: a Linear was given; save"),
        ({"checkpoint": 3}, "checkpoint: pass the path of a file"),
        ({"layers": "0,1"}, "layers: pass a list of whole numbers"),
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


WIDE = ("vit_base_patch16_224", "vit_large_patch16_224")


@pytest.mark.parametrize(
    "name",
    [
        DEIT,
        "vit_base_patch32_224",
        *(pytest.param(name, marks=pytest.mark.slow) for name in WIDE),
    ],
)
@needs_shared
def test_mission_model_at_full_depth_equals_pytorch(name: str, tmp_path: Path) -> None:
    """Random weights with sharp attention in every layer: rows within 1e-5 on average and 1e-3 at most."""
    # Two of them on small pictures: their depth and width count here, and tokens only take time.
    built = build(name, random_init=True, img_size=64 if name in WIDE else None)
    sharpen(built, rounds=5)
    parity: Parity = export_model(built, tmp_path / "model.onnx").parity
    assert parity.row_mean <= 1e-5
    assert parity.row_max <= 1e-3
    assert dataclasses.asdict(parity)["top1"] == 1
    assert timm.is_model(name)

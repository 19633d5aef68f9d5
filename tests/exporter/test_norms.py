"""Norms in the graph: against the definition by hand in float64, in the store, and where there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from attlas.engine.runner import run as run_images  # noqa: E402
from attlas.engine.runtime.session import Session  # noqa: E402
from attlas.engine.store.store import Store  # noqa: E402
from attlas.errors import AttlasError, UsageError  # noqa: E402
from attlas.exporter import GraphSpec  # noqa: E402
from attlas.exporter.libraries.build import build  # noqa: E402
from attlas.exporter.libraries.protocol import Model  # noqa: E402
from attlas.exporter.spec import NORMS  # noqa: E402
from attlas.exporter.taps.attention import Taps  # noqa: E402
from attlas.exporter.taps.pictures import pictures  # noqa: E402
from attlas.exporter.trace.export import ExportResult, export_model  # noqa: E402
from attlas.exporter.trace.parity import compare  # noqa: E402
from support import make_images  # noqa: E402

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 64}
DEIT = "deit_tiny_patch16_224"
# Which module takes the stream behind attention's branch: the second norm, or the MLP where norms come after it.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    DEIT: ("norm2", {}),
    "deit3_small_patch16_224": ("norm2", {"init_values": 0.3}),
    "beit_base_patch16_224": ("norm2", {"init_values": 0.3}),
    "vit_base_patch16_rpn_224": ("mlp", {}),
    "vit_relpos_small_patch16_224": ("norm2", {}),
    "vit_small_patch16_dinov3": ("norm2", {}),
}


def make(name: str = DEIT, **kwargs: Any) -> Model:
    """A small model with random weights, its queries scaled so that attention is far from uniform."""
    built = build(name, random_init=True, seed=3, model_args={**SMALL, **kwargs})
    for owners in Taps(built, name).owners.values():
        for owner in owners:
            owner.scale = owner.scale * 30
    return built


def run(path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"image": images}), strict=True))


def watch(built: Model, images: np.ndarray, layer: int, then: str) -> dict[str, np.ndarray]:
    """What enters a block, what its branch makes of it, and the values, by plain hooks, in float64.

    With the identity for attention, what goes to the output projection is the values themselves.
    """
    seen: dict[str, np.ndarray] = {}
    block = built.module.blocks[layer]

    def keep(name: str) -> Any:
        return lambda module, given: seen.update({name: given[0].double().numpy()})

    with torch.no_grad():
        hooks = [
            block.register_forward_pre_hook(keep("entered")),
            block.get_submodule(then).register_forward_pre_hook(keep("joined")),
        ]
        built.module(pixels(built, images))
        for hook in hooks:
            hook.remove()
        hooks = [
            block.attn.attn_drop.register_forward_hook(lambda m, i, a: torch.eye(a.shape[-1]).expand_as(a)),
            block.attn.proj.register_forward_pre_hook(keep("values")),
        ]
        built.module(pixels(built, images))
        for hook in hooks:
            hook.remove()
    return seen


def pixels(built: Model, images: np.ndarray) -> torch.Tensor:
    """What the model takes, by its recipe."""
    normal = (images.astype(np.float32) / 255 - np.float32(built.recipe.mean)) / np.float32(built.recipe.std)
    return torch.from_numpy(normal.transpose(0, 3, 1, 2).copy())


@pytest.fixture(scope="module")
def exported(export_once: Any) -> tuple[Model, ExportResult]:
    """A small deit with norms."""
    built = make()
    return built, export_once("norms", built, norms=True)


# What the graph gives ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_norms_are_those_of_the_definition(name: str, exported: Any, export_once: Any) -> None:
    """Stream, branch and projected values, caught by hooks of another kind and squared by hand."""
    then, kwargs = FAMILIES[name]
    built = make(name, **kwargs)
    result = exported[1] if name == DEIT else export_once(f"norms-{name}", built, norms=True)
    images = pictures(3, built.image_size)
    outputs = run(result.path, images)
    for layer in result.spec.layers:
        seen = watch(built, images, layer, then)
        entered = np.linalg.norm(seen["entered"], axis=-1)
        np.testing.assert_allclose(outputs[f"token_norm.{layer}"], entered, rtol=1e-5)
        # The branch is a difference of float32 numbers here.
        branch = np.linalg.norm(seen["joined"] - seen["entered"], axis=-1)
        np.testing.assert_allclose(outputs[f"branch_ratio.{layer}"], branch / entered, rtol=1e-3, atol=1e-5)
        weight = built.module.blocks[layer].attn.proj.weight.double().numpy()
        values = seen["values"].reshape(*seen["values"].shape[:2], result.spec.heads, -1)
        projected = np.einsum("bkhc,whc->bhkw", values, weight.reshape(len(weight), result.spec.heads, -1))
        np.testing.assert_allclose(outputs[f"value_norm.{layer}"], np.linalg.norm(projected, axis=-1), rtol=1e-4)


def test_parallel_attentions_stand_side_by_side(tmp_path: Path) -> None:
    """A block with two attentions has the norms of both, and one branch, their sum."""
    built = make("vit_small_patch16_18x2_224")
    result = export_model(built, tmp_path / "graph.onnx", norms=True)
    outputs = run(result.path, pictures(2, built.image_size))
    caught: list[torch.Tensor] = []
    block = built.module.blocks[0]
    hooks = [part.register_forward_hook(lambda m, i, o: caught.append(o)) for part in block.attns]
    hooks.append(block.register_forward_pre_hook(lambda m, i: caught.append(i[0])))
    with torch.no_grad():
        built.module(pixels(built, pictures(2, built.image_size)))
    for hook in hooks:
        hook.remove()
    entered, first, second = caught
    expected = (first + second).norm(dim=-1) / entered.norm(dim=-1)
    np.testing.assert_allclose(outputs["branch_ratio.0"], expected.numpy(), rtol=1e-4)
    assert outputs["value_norm.0"].shape == (2, 2 * SMALL["num_heads"], result.spec.tokens)


def test_attention_weighted_values_are_bounded_by_their_norms(exported: Any) -> None:
    """Triangle inequality: a branch is at most the sum of attention times value norms, and the bias."""
    built, result = exported
    outputs = run(result.path, pictures(2, built.image_size))
    for layer in result.spec.layers:
        weighted = np.einsum("bhqk,bhk->bq", outputs[f"attention.{layer}"], outputs[f"value_norm.{layer}"])
        branch = outputs[f"branch_ratio.{layer}"] * outputs[f"token_norm.{layer}"]
        bias = built.module.blocks[layer].attn.proj.bias.norm().item()
        assert (branch <= weighted * (1 + 1e-5) + bias).all()
        assert branch.mean() > 0.05 * weighted.mean()


def test_norms_leave_everything_else_as_it_was(exported: Any, export_once: Any) -> None:
    """Attention and logits are those of the graph without them."""
    built, result = exported
    plain = export_once("plain", built)
    images = pictures(2, built.image_size)
    with_norms, without = run(result.path, images), run(plain.path, images)
    for name, values in without.items():
        np.testing.assert_allclose(with_norms[name], values, atol=1e-6, err_msg=name)
    assert not plain.spec.norms


def test_chosen_layers_have_norms_beside_gradients(tmp_path: Path) -> None:
    """Layers keep their numbers, and gradients and norms go together."""
    built = make(depth=3)
    result = export_model(built, tmp_path / "graph.onnx", norms=True, gradients=True, layers=[2])
    names = [o.name for o in result.spec.outputs]
    assert [n for n in names if "." in n] == ["attention.2", *(f"{n}.2" for n in NORMS), "gradient.2"]
    assert result.parity.norm_max is not None
    assert result.parity.norm_max <= 1e-5


def test_float16_graph_keeps_norms_near(tmp_path: Path, exported: Any) -> None:
    """Sums of squares and ratios are made in float32."""
    built, _ = exported
    result = export_model(built, tmp_path / "half.onnx", norms=True, dtype="float16")
    assert result.parity.norm_max is not None
    assert result.parity.norm_max <= 5e-3


# The file and its spec -----------------------------------------------------------------------------------------------


def test_spec_says_that_there_are_norms(exported: Any) -> None:
    """Flag, names and dimensions; metadata from before norms reads as without."""
    spec = exported[1].spec
    assert spec.norms
    dims = {name: spec.output(f"{name}.1").dims for name in NORMS}
    assert dims == {
        "value_norm": ("image", "head", "key"), "branch_ratio": ("image", "token"), "token_norm": ("image", "token"),
    }  # fmt: skip
    assert GraphSpec.from_json(spec.to_json(), "here") == spec
    before = {k: v for k, v in spec.to_dict().items() if k != "norms"}
    assert not GraphSpec.from_dict(before, "here").norms


def test_two_exports_with_norms_are_identical(tmp_path: Path, exported: Any) -> None:
    """Bytes depend on the weights alone."""
    again = export_model(make(), tmp_path / "deit.onnx", norms=True)
    assert again.path.read_bytes() == exported[1].path.read_bytes()


def test_graph_whose_norms_differ_is_refused(exported: Any) -> None:
    """A wrong norm is no file, like a wrong map."""
    built, result = exported
    outputs = run(result.path, pictures(2, built.image_size))
    wrong = {**outputs, "value_norm.1": outputs["value_norm.1"] * np.float32(1.01)}
    with pytest.raises(AttlasError, match=r"value_norm differs from PyTorch by up to 0\.01"):
        compare(wrong, outputs, result.spec)


@pytest.mark.parametrize(
    ("name", "kwargs", "reason"),
    [
        ("vit_pwee_patch16_reg1_gap_256", {}, "attention and MLP share one branch"),
        ("vit_dpwee_patch16_reg1_gap_256", {}, "attention and MLP share one branch"),
        ("eva02_large_patch14_224", {"scale_attn_inner": True, "img_size": 56}, "normalises or gates the weighted sum"),
    ],
)
def test_block_without_a_branch_of_its_own_is_refused(
    name: str, kwargs: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    """One line with the reason, and no file."""
    with pytest.raises(UsageError, match=f"^{name}.*: --norms: .*{reason}"):
        export_model(make(name, **kwargs), tmp_path / "graph.onnx", norms=True)
    assert list(tmp_path.iterdir()) == []


# The store -----------------------------------------------------------------------------------------------------------


def test_run_stores_the_norms_of_every_image(tmp_path: Path, exported: Any) -> None:
    """Without being asked, as the graph gives them, and NaN for an image that cannot be read."""
    _, result = exported
    folder = make_images(tmp_path / "images", 5)
    (folder / "n00000000" / "broken.jpg").write_bytes(b"no picture")
    run_images(result.path, folder, tmp_path / "store.zarr", keep=("none",), reducer=None)
    store = Store(tmp_path / "store.zarr")
    paths = [str(p) for p in store.read("path")]
    expected = Session(result.path, provider="cpu")([folder / p for p in paths if "broken" not in p])
    broken = np.array(["broken" in p for p in paths])
    for name in NORMS:
        found = store.read(name)
        assert found.dtype == np.float32
        assert np.isnan(found[broken]).all()
        np.testing.assert_array_equal(found[~broken], expected[name])

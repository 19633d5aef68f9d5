"""Gradients in a graph: those of autograd, for any batch and class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

pytest.importorskip("timm")


from attlas.errors import AttlasError, UsageError  # noqa: E402
from attlas.exporter import GraphSpec  # noqa: E402
from attlas.exporter.taps.gradients import Gradients  # noqa: E402
from attlas.exporter.taps.pictures import pictures as synthetic  # noqa: E402
from attlas.exporter.trace.export import export_model  # noqa: E402
from attlas.exporter.trace.parity import compare, example, relative_difference  # noqa: E402
from support_gradients import DEIT, derive, make, run  # noqa: E402

# A class token, two read tokens, registers and a mean, relative positions, parallel attention, a difference of maps, a
# stem of convolutions.
KINDS = (
    DEIT, "deit_tiny_distilled_patch16_224", "vit_medium_patch16_reg4_gap_256", "vit_relpos_small_patch16_224",
    "vit_small_patch16_18x2_224", "vit_dpwee_patch16_reg1_gap_256", "vit_tiny_r_s16_p8_224",
)  # fmt: skip


# What the graph gives ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_gradients_equal_autograd_for_any_batch_and_target(name: str, exported: Any, export_once: Any) -> None:
    """Predicted and given classes in one batch of another size than the traced one."""
    built = make(name)
    result = exported[1] if name == DEIT else export_once(f"gradients-{name}", built, gradients=True)
    images = synthetic(5, built.image_size, seed=9)
    target = np.array([-1, 7, 0, 999, -1])
    outputs = run(result.path, images, target)
    expected = derive(built).run(images, target)
    assert list(outputs) == list(expected) == [o.name for o in result.spec.outputs]
    assert relative_difference(outputs, expected, "gradient").max() <= 1e-4
    assert all(np.abs(expected[f"gradient.{layer}"]).max() > 0 for layer in result.spec.layers)


def test_gradients_of_the_loss_are_those_of_cross_entropy(tmp_path: Path) -> None:
    """By autograd from the logits on, and the spec says which they are."""
    built = make()
    result = export_model(built, tmp_path / "graph.onnx", gradients="loss")
    assert (result.spec.gradients, result.spec.objective) == (True, "loss")
    images, target = synthetic(3, built.image_size, seed=9), np.array([7, 0, 999])
    outputs = run(result.path, images, target)
    tapped = derive(built).tapped
    seen, out = tapped.look(tapped.pixels(torch.from_numpy(images)).requires_grad_())
    loss = torch.nn.functional.cross_entropy(tapped.pooled(out), torch.from_numpy(target), reduction="sum")
    sources = [source for layer in tapped.layers for _, source in seen.sources[layer]]
    for layer, wanted in zip(tapped.layers, torch.autograd.grad(loss, sources), strict=True):
        np.testing.assert_allclose(outputs[f"gradient.{layer}"], wanted, atol=1e-4 * float(wanted.abs().max()))
    with pytest.raises(UsageError, match="of the logit"):
        export_model(built, tmp_path / "other.onnx", gradients="both")


@pytest.mark.parametrize("name", [DEIT, "vit_small_patch16_18x2_224", "vit_dpwee_patch16_reg1_gap_256"])
def test_gradient_is_the_logits_change_when_attention_changes(name: str) -> None:
    """Central differences in float64 of every head's entry in turn: no autograd, no map confused with another."""
    built = make(name)
    derived = derive(built)
    derived.tapped.double()
    image = torch.from_numpy(synthetic(1, built.image_size))
    target = torch.tensor([5])
    with torch.no_grad():
        pixels = derived.tapped.pixels(image).double()
    analytic = _gradients(derived, pixels, target)
    row, column, step = 0, 3, 1e-4
    for layer, found in analytic.items():
        for head in range(found.shape[1]):
            change = [_logit(derived, pixels, 5, layer, head, row, column, sign * step) for sign in (1, -1)]
            numeric = (change[0] - change[1]) / (2 * step)
            assert abs(numeric - found[0, head, row, column]) <= 1e-5 * np.abs(found).max() + 1e-9


def _gradients(derived: Gradients, pixels: Any, target: Any) -> dict[int, np.ndarray]:
    """By the code under test, from pixels in float64: what the uint8 path would round to float32."""
    derived.tapped.pixels = lambda image: pixels.clone()  # type: ignore[method-assign]
    values = dict(zip(derived.names, derived(pixels, target), strict=True))
    return {layer: values[f"gradient.{layer}"].numpy() for layer in derived.tapped.layers}


def _logit(
    derived: Gradients, pixels: Any, target: int, layer: int, head: int, row: int, column: int, step: float
) -> float:
    """One logit with one entry of what multiplies the values moved; heads counted over the block's attentions."""
    owners = derived.tapped.taps.owners[layer]
    each = derived.tapped.examples[f"attention.{layer}"].shape[1] // len(owners)
    owner = owners[head // each]
    # Of a differential pair the first map is moved, by which the difference moves as much.
    place = (head % each) * (2 if hasattr(owner, "_compute_lambda") else 1)

    def move(module: Any, given: Any, out: Any) -> Any:
        out = out.clone()
        out[:, place, row, column] += step
        return out

    hook = owner.get_submodule("attn_drop").register_forward_hook(move)
    with torch.no_grad():
        logits = derived.tapped.model(pixels)
    hook.remove()
    return float(logits[0, target])


def test_minus_one_is_the_predicted_class(exported: Any) -> None:
    """The same gradients as with the class of the largest logit written out."""
    _, result = exported
    images = synthetic(3, result.spec.image_size)
    asked = run(result.path, images, np.full(3, -1))
    given = run(result.path, images, asked["logits"].argmax(-1))
    np.testing.assert_array_equal(asked["gradient.0"], given["gradient.0"])


def test_image_alone_has_the_gradients_it_has_in_a_batch(exported: Any) -> None:
    """The sum over a batch that is derived has each image's own gradient."""
    _, result = exported
    images, target = synthetic(4, result.spec.image_size), np.array([-1, 1, 2, 3])
    together = run(result.path, images, target)["gradient.0"]
    alone = np.concatenate([run(result.path, images[i : i + 1], target[i : i + 1])["gradient.0"] for i in range(4)])
    assert np.abs(alone - together).max() <= 1e-5 * np.abs(together).max()


def test_last_layer_has_gradients_in_the_row_that_is_read_alone(exported: Any) -> None:
    """Only the class token's row of the last block feeds the logit."""
    _, result = exported
    gradient = run(result.path, synthetic(2, result.spec.image_size), np.array([-1, 3]))["gradient.1"]
    assert np.abs(gradient[:, :, 0]).max() > 0
    assert np.abs(gradient[:, :, 1:]).max() == 0


def test_chosen_layers_have_gradients_under_their_own_numbers(tmp_path: Path) -> None:
    """A subset of layers gives a subset of gradients, unchanged."""
    built = make(depth=3)
    result = export_model(built, tmp_path / "graph.onnx", gradients=True, layers=[1])
    images, target = synthetic(2, built.image_size), np.array([4, -1])
    outputs, expected = run(result.path, images, target), derive(built).run(images, target)
    assert [n for n in outputs if n.startswith("gradient")] == ["gradient.1"]
    assert relative_difference(outputs, {"gradient.1": expected["gradient.1"]}, "gradient").max() <= 1e-4


# The file and its spec -----------------------------------------------------------------------------------------------


def test_spec_says_that_there_are_gradients(exported: Any) -> None:
    """The input and the outputs of the file are those that the spec promises; the batch has one name."""
    _, result = exported
    graph = onnx.load(result.path).graph
    assert [i.name for i in graph.input] == ["image", "target"]
    assert {i.type.tensor_type.shape.dim[0].dim_param for i in graph.input} == {"batch"}
    assert result.spec.gradients
    output = result.spec.output("gradient.1")
    assert output is not None
    assert output.dims == ("image", "head", "query", "key")
    assert GraphSpec.from_json(result.spec.to_json(), "here") == result.spec


def test_spec_of_a_graph_from_before_gradients_reads_as_without(exported: Any) -> None:
    """Metadata that does not know the key still reads."""
    data = {k: v for k, v in exported[1].spec.to_dict().items() if k != "gradients"}
    assert not GraphSpec.from_dict(data, "here").gradients


def test_two_exports_with_gradients_are_identical(tmp_path: Path, exported: Any) -> None:
    """Bytes depend on the weights alone, the traced backward pass included."""
    again = export_model(make(), tmp_path / "deit.onnx", gradients=True)
    assert again.path.read_bytes() == exported[1].path.read_bytes()
    for text in (str(Path.home()), "site-packages", "stack_trace", ".py"):
        assert text.encode() not in again.path.read_bytes()


def test_parity_names_the_gradients_figures(exported: Any) -> None:
    """What was measured stands in the result."""
    figures = exported[1].parity
    assert 0 < figures.gradient_median <= figures.gradient_max <= 1e-4


def test_graph_with_wrong_gradients_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backward pass that is not autograd's is found before the file is in place."""
    own = Gradients.run

    def wrong(self: Gradients, *given: Any, **options: Any) -> dict[str, Any]:
        values = own(self, *given, **options)
        return values | {name: v * 1.001 for name, v in values.items() if name == "gradient.1"}

    monkeypatch.setattr(Gradients, "run", wrong)
    with pytest.raises(AttlasError, match=r"gradients differ from autograd by up to 0\.001.* in layer 1"):
        export_model(make(), tmp_path / "graph.onnx", gradients=True)
    assert list(tmp_path.iterdir()) == []


def test_gradients_that_are_no_numbers_fail(exported: Any) -> None:
    """NaN compares with nothing, and must not pass."""
    _, result = exported
    given = example(2, result.spec)
    outputs = run(result.path, *given.values())
    broken = outputs | {"gradient.0": outputs["gradient.0"] * np.nan}
    with pytest.raises(AttlasError, match="gradients differ"):
        compare(broken, outputs, result.spec)


# What is refused -----------------------------------------------------------------------------------------------------


def test_headless_model_has_no_logit_to_derive(tmp_path: Path) -> None:
    """Features are no classes: one line says so."""
    with pytest.raises(UsageError, match="has no classes, so there is no logit"):
        export_model(make(num_classes=0), tmp_path / "graph.onnx", gradients=True)


def test_float16_gradients_are_refused(tmp_path: Path) -> None:
    """They would be zeros for the most part."""
    with pytest.raises(UsageError, match="float16's smallest numbers"):
        export_model(make(), tmp_path / "graph.onnx", gradients=True, dtype="float16")

"""A graph that is not the model is refused, however sharp the model is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch")

pytest.importorskip("timm")


from attlas.engine.conform import write_cases  # noqa: E402
from attlas.errors import AttlasError  # noqa: E402
from attlas.exporter.differences import LIMITS, Limits  # noqa: E402
from attlas.exporter.models import memory  # noqa: E402
from attlas.exporter.spec import GraphSpec  # noqa: E402
from attlas.exporter.taps.attention import Taps  # noqa: E402
from attlas.exporter.taps.facts import describe  # noqa: E402
from attlas.exporter.taps.tapped import Tapped  # noqa: E402
from attlas.exporter.trace.exact import in_float64  # noqa: E402
from attlas.exporter.trace.parity import Differences, check, judged  # noqa: E402
from support_conform import results_of  # noqa: E402
from support_export import _plain_spec, make  # noqa: E402

NAME = "eva02_tiny_patch14_224"  # biases, and rotary positions


@pytest.fixture(scope="module")
def graph(export_once: Any) -> tuple[Any, Any]:
    """A sharp model whose biases are not 0, and its graph."""
    built = make(NAME, depth=3)
    generator = torch.Generator().manual_seed(0)
    for block in built.module.blocks:
        for bias in (block.attn.q_bias, block.attn.v_bias, block.attn.proj.bias):
            bias.data = torch.randn(bias.shape, generator=generator) * 0.1
        block.attn.scale *= 30
    return built, export_once("mistakes", built)


def _wrong_scale(module: Any) -> None:
    module.blocks[1].attn.scale *= 1.01


def _dropped_bias(module: Any) -> None:
    module.blocks[1].attn.v_bias.zero_()


def _swapped_heads(module: Any) -> None:
    attn = module.blocks[2].attn
    weight = attn.qkv.weight.view(3, attn.num_heads, -1, attn.qkv.weight.shape[1])
    weight.copy_(weight.flip(1).clone())


def _missing_rotary_table(module: Any) -> None:
    table = next(b for b in module.rope.buffers() if b.ndim == 2)
    sine, cosine = table.tensor_split(2, -1)
    sine.zero_()
    cosine.fill_(1.0)


@pytest.mark.parametrize("sensitive", [False, True])
@pytest.mark.parametrize("mistake", [_wrong_scale, _dropped_bias, _swapped_heads, _missing_rotary_table])
def test_mistake_is_refused(
    mistake: Callable[[Any], None], sensitive: bool, graph: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the usual bound lets it pass, nor the one that grows with the model's own rounding."""
    built, result = graph
    taps = Taps(built)
    tapped = Tapped(built, taps, describe(built, taps), tuple(range(taps.depth)))
    if sensitive:  # a model so small is never beyond the usual bound
        monkeypatch.setitem(LIMITS, "float32", Limits(row_max=1e-7, head=1e-3, tie=1e-5))
    found = check(result.path, result.spec, tapped.run, in_float64(tapped.run, tapped))
    assert (found.own is not None and found.own > 1e-5) if sensitive else found.own is None
    tensors = {name: value.clone() for name, value in (*tapped.named_parameters(), *tapped.named_buffers())}
    scales = [block.attn.scale for block in built.module.blocks]
    try:
        with torch.no_grad():
            mistake(built.module)
        with pytest.raises(AttlasError, match="is not the model"):
            check(result.path, result.spec, tapped.run, in_float64(tapped.run, tapped))
    finally:
        for name, value in (*tapped.named_parameters(), *tapped.named_buffers()):
            value.data.copy_(tensors[name])
        for block, scale in zip(built.module.blocks, scales, strict=True):
            block.attn.scale = scale


def test_missing_rotary_table_is_found_in_a_runtime(graph: tuple[Any, Any], tmp_path: Path) -> None:
    """By the graph alone, under the bounds that follow its own rounding."""
    built, result = graph
    write_cases(result.path, tmp_path / "cases.npz", limit=2, threads=1)
    table = next(b for b in built.module.rope.buffers() if b.ndim == 2)
    cosine = table.tensor_split(2, -1)[1].numpy()
    model = onnx.load(result.path)
    held = [w for w in model.graph.initializer if tuple(w.dims) == cosine.shape]
    (place,) = [w for w in held if np.allclose(numpy_helper.to_array(w), cosine)]
    place.CopyFrom(numpy_helper.from_array(np.ones_like(cosine), place.name))
    onnx.save(model, tmp_path / "faulty.onnx")
    came = results_of(tmp_path / "faulty.onnx", tmp_path / "cases.npz", tmp_path / "r.npz")
    found = attlas.conform(result.path, tmp_path / "cases.npz", results=came, threads=1)
    assert (found.conforms, found.layer) == (False, 0)
    assert found.first is not None
    assert found.first.own is not None
    assert "a weight, a bias, or an operator differs" in found.cause


def test_model_that_rounding_alone_changes_is_not_compared() -> None:
    """Where PyTorch itself is far from its float64, a mistake would not be seen: that is said, and refused."""
    spec = GraphSpec.from_dict(_plain_spec(), "test")
    maps = np.full((1, 1, 2, 2), 0.5, np.float32)
    shifted = maps + np.array([0.05, -0.05], np.float32)
    head = {"logits": np.ones((1, 3), np.float32)}
    own, found = Differences(), Differences()
    own.add({"attention.0": shifted, **head}, {"attention.0": maps, **head})
    found.add({"attention.0": maps, **head}, {"attention.0": maps, **head})
    with pytest.raises(AttlasError, match=r"cannot be compared: in attention\.0, PyTorch's own .* 0\.05 from"):
        judged(found, spec, own)


def test_blocks_are_compared_a_few_at_a_time(graph: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all maps would not fit: the figures are those of all at once."""
    built, result = graph
    taps = Taps(built)
    tapped = Tapped(built, taps, describe(built, taps), tuple(range(taps.depth)))
    asked = []

    def run(*given: Any, layers: tuple[int, ...]) -> Any:
        asked.append(layers)
        found = tapped.run(*given, layers=layers)
        assert [name for name in found if name.startswith("attention")] == [f"attention.{layer}" for layer in layers]
        return found

    whole = check(result.path, result.spec, run)
    monkeypatch.setattr(memory, "AT_ONCE", 1.0)
    monkeypatch.setattr(memory, "available", lambda: None)
    monkeypatch.setattr(memory, "LARGEST_BLOCK", 1.0)
    one = check(result.path, result.spec, run)
    assert asked == [(0, 1, 2), (0,), (1,), (2,)]
    assert (whole.images, one.images) == (3, 1)
    assert one.row_max <= LIMITS["float32"].row_max

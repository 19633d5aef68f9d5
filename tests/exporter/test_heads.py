"""Queries, keys and values in the graph: their two products are the attention and what it hands over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from attlas.engine.contents import Choices, Contents  # noqa: E402
from attlas.engine.keep import Keep  # noqa: E402
from attlas.engine.runtime.session import Session  # noqa: E402
from attlas.errors import UsageError  # noqa: E402
from attlas.exporter.libraries.build import build  # noqa: E402
from attlas.exporter.spec import QKV  # noqa: E402
from attlas.exporter.taps.attention import Taps  # noqa: E402
from attlas.exporter.taps.facts import describe  # noqa: E402
from attlas.exporter.taps.pictures import pictures  # noqa: E402
from attlas.exporter.taps.tapped import Tapped  # noqa: E402
from attlas.exporter.trace.export import export_model  # noqa: E402

SMALL = {"depth": 1, "embed_dim": 48, "num_heads": 3, "img_size": 64}


def test_the_two_products_of_the_graph_are_its_attention_and_its_output(tmp_path: Path) -> None:
    """softmax(Q K^T) is the attention, and attention times V is what the output projection takes."""
    built = build("deit_tiny_patch16_224", random_init=True, seed=3, model_args=SMALL)
    result = export_model(built, tmp_path / "deit.onnx", qkv=True)
    assert result.parity.qkv_max is not None
    assert result.parity.qkv_max < 1e-4
    images, taken = pictures(2, (64, 64)), []
    block = built.module.blocks[0]
    hook = block.attn.proj.register_forward_pre_hook(lambda module, given: taken.append(given[0]))
    tapped = Tapped(built, taps := Taps(built, "deit"), describe(built, taps), (0,))
    taken.clear()
    tapped.run(images)
    hook.remove()
    found = Session(result.path)(list(images))
    query, key, value = (found[name][:, 0].astype(np.float64) for name in QKV)
    assert query.shape == (2, 3, 17, 16)
    powers = np.exp(query @ key.swapaxes(-1, -2))
    attention = powers / powers.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(found["attention"][:, 0], attention, atol=1e-6)
    mixed = (attention @ value).transpose(0, 2, 1, 3).reshape(2, 17, 48)
    np.testing.assert_allclose(taken[0].detach().numpy(), mixed, atol=1e-5)
    choices = Choices(Keep.choose(result.spec, ["attention"], None, "float16"))
    assert not {t.name for t in Contents.derive(result.spec, choices).templates} & set(QKV)


def test_heads_that_are_no_pair_of_plain_products_are_refused_with_the_reason() -> None:
    """Differential attention has two maps for each head that multiplies values."""
    built = build("vit_dpwee_patch16_reg1_gap_256", random_init=True, model_args={"depth": 1, "img_size": 64})
    taps = Taps(built, "diff")
    with pytest.raises(UsageError, match="--qkv: block 0 does not multiply"):
        Tapped(built, taps, describe(built, taps), (0,), qkv=True)

"""Gradients, norms, queries, keys, values and silenced heads of transformers' models, against the library's own."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
T = pytest.importorskip("transformers")

from attlas.errors import UsageError  # noqa: E402
from attlas.exporter.libraries.build import build  # noqa: E402
from attlas.exporter.taps.ablation import Ablated  # noqa: E402
from attlas.exporter.taps.attention import Taps  # noqa: E402
from attlas.exporter.taps.facts import describe  # noqa: E402
from attlas.exporter.taps.gradients import Gradients  # noqa: E402
from attlas.exporter.taps.pictures import pictures  # noqa: E402
from attlas.exporter.taps.tapped import Tapped  # noqa: E402
from attlas.exporter.trace.export import export_model  # noqa: E402
from support_transformers import MODELS, make_folder, save  # noqa: E402

NAMES = ("vit", "registered", "clip_classes")
IMAGES = pictures(2, (32, 32), seed=5)
TARGET = np.array([1, 4], np.int64)
HEADS, CHANNELS = 3, 16


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of each model."""
    root = tmp_path_factory.mktemp("transformers")
    return functools.cache(lambda name: make_folder(name, root / name))


def tapped(folder: Path, **options: Any) -> tuple[Tapped, Taps]:
    built = build(f"transformers:{folder}")
    taps = Taps(built)
    return Tapped(built, taps, describe(built, taps), tuple(range(taps.depth)), **options), taps


@dataclasses.dataclass
class Own:
    """The library's model with its eager attention, and what its modules take and give in a forward pass."""

    model: Any
    seen: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, name: str, folder: Path) -> Own:
        own = cls(type(MODELS[name][0]()).from_pretrained(folder, attn_implementation="eager").eval())
        for path, part in own.model.named_modules():
            part.register_forward_hook(functools.partial(own._see, path), with_kwargs=True)
        return own

    def _see(self, path: str, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        given = args[0] if args else kwargs.get("hidden_states")
        self.seen[path] = (given, output)

    def __call__(self) -> Any:
        pixels = (torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        return self.model(pixel_values=pixels, output_attentions=True)

    def part(self, layer: int, *ends: str) -> str:
        """The path of the first of these parts that a block has."""
        return next(
            path for end in ends for path, _ in self.model.named_modules()
            if re.search(rf"layers?\.{layer}(\.|$)", path) and path.endswith(end)
        )  # fmt: skip


def by_head(tokens: Any) -> Any:
    return tokens.view(*tokens.shape[:2], HEADS, CHANNELS).transpose(1, 2)


def near(found: Any, wanted: Any, bound: float = 1e-4) -> None:
    wanted = wanted.detach().numpy()
    assert found.shape == wanted.shape
    assert np.abs(wanted).max() > 0
    np.testing.assert_allclose(found, wanted, atol=bound * np.abs(wanted).max())


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_the_librarys_modules(name: str, folders: Any) -> None:
    """Gradients are autograd's of its own maps; the rest is what hooks see its modules take and give."""
    model, _ = tapped(folders(name), norms=True, qkv=True)
    found = Gradients(model, name).run(IMAGES, TARGET)
    own = Own.load(name, folders(name))
    out = own()
    near(found["logits"], out.logits, 1e-5)
    gradients = torch.autograd.grad(out.logits[[0, 1], TARGET].sum(), out.attentions)
    for layer, gradient in enumerate(gradients):
        near(found[f"gradient.{layer}"], gradient)
        entered = own.seen[own.part(layer, f".{layer}")][0]
        project = own.part(layer, "o_proj", "out_proj")
        added = own.seen[own.part(layer, "layer_scale1", "o_proj", "out_proj")][1]
        query, key, value = (by_head(own.seen[own.part(layer, f"{kind}_proj")][1]) for kind in "qkv")
        near(found[f"token_norm.{layer}"], entered.norm(dim=-1))
        near(found[f"branch_ratio.{layer}"], added.norm(dim=-1) / entered.norm(dim=-1))
        weight = own.model.get_submodule(project).weight.view(-1, HEADS, CHANNELS)
        near(found[f"value_norm.{layer}"], torch.einsum("bhtc,ohc->bhto", value, weight).norm(dim=-1))
        near(found[f"query.{layer}"], query * CHANNELS**-0.5)
        near(found[f"key.{layer}"], key)
        near(found[f"value.{layer}"], value)


@pytest.mark.parametrize("name", NAMES)
def test_silenced_heads_are_those_of_the_librarys_model(name: str, folders: Any) -> None:
    """Zeroing a head before the library's own output projection gives the same logits."""
    model, taps = tapped(folders(name))
    mask = np.ones((2, HEADS), np.float32)
    mask[0, 1] = mask[1, 2] = 0
    fill = np.random.default_rng(0).normal(size=(2, HEADS, CHANNELS)).astype(np.float32)
    found = Ablated(model, taps).run(IMAGES, mask, fill)
    own = Own.load(name, folders(name))
    means = []

    def silence(layer: int, module: Any, given: Any) -> Any:
        tokens = by_head(given[0]).clone()
        means.append(tokens.mean(2))
        tokens[:, mask[layer] == 0] = torch.from_numpy(fill[layer][mask[layer] == 0])[:, None]
        return (tokens.transpose(1, 2).flatten(2),)

    for layer in range(2):
        projection = own.model.get_submodule(own.part(layer, "o_proj", "out_proj"))
        projection.register_forward_pre_hook(functools.partial(silence, layer))
    near(found["logits"], own().logits, 1e-5)
    for layer, mean in enumerate(means):
        near(found[f"head_output.{layer}"], mean)


def test_graph_holds_all_of_them(folders: Any, tmp_path: Path) -> None:
    """One export of the deepest adapter: registers, layer scale, and a head that reads class and mean."""
    built = build(f"transformers:{folders('registered')}")
    result = export_model(built, tmp_path / "all.onnx", gradients=True, norms=True, qkv=True)
    parity = result.parity
    assert max(parity.gradient_max or 1, parity.norm_max or 1, parity.qkv_max or 1, parity.row_max) < 1e-4


def test_token_of_zeros_has_no_ratio(tmp_path: Path) -> None:
    """A class token that nobody trained: refused in one line, instead of a comparison that gives NaN."""
    model = MODELS["vit"][0]()
    model.vit.embeddings.cls_token.data.zero_()
    model.vit.embeddings.position_embeddings.data.zero_()
    folder = save(model, tmp_path / "vit")
    with pytest.raises(UsageError, match=r"--norms: a token enters block 0 as zeros.*export it without"):
        tapped(folder, norms=True)
    tapped(folder)

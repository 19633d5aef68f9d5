"""The list of what can be exported, made without a weight."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")

from attlas.errors import AttlasError, UsageError
from attlas.exporter import export, list_models, listing
from attlas.exporter.libraries.build import build
from attlas.exporter.libraries.timm.build import names
from attlas.exporter.listing import summaries
from attlas.exporter.models import memory
from attlas.exporter.models.summary import Summary
from attlas.exporter.taps.attention import Taps
from attlas.exporter.taps.facts import describe, summarize


@pytest.mark.parametrize(
    ("name", "prefix", "grid", "depth", "heads", "maps"),
    [
        ("deit_tiny_patch16_224", ("class",), (14, 14), 12, 3, 2 * 12 * 3 * 197**2),
        ("vit_small_patch16_18x2_224", ("class",), (14, 14), 18, 12, 2 * 18 * 12 * 197**2),
        ("vit_dpwee_patch16_reg1_gap_256", ("register",), (16, 16), 16, 4, 2 * 16 * 4 * 257**2),
        ("vit_tiny_r_s16_p8_224", ("class",), (7, 7), 12, 3, 2 * 12 * 3 * 50**2),
        ("cait_xxs24_224", (), (14, 14), 24, 4, 2 * 24 * 4 * 196**2),
        # A tag of another input size than the architecture's default.
        ("deepseek_vit_412m.deepseek_v4_flash_vision_exp", (), (28, 28), 32, 16, 2 * 32 * 16 * 784**2),
    ],
)
def test_summary_is_the_models_own(
    name: str, prefix: tuple[str, ...], grid: tuple[int, int], depth: int, heads: int, maps: int
) -> None:
    """Tokens by kind, grid, layers, heads after parallel and differential blocks, and the bytes of an image's maps."""
    found = summarize(name)
    assert (found.prefix, found.grid, found.depth, found.heads) == (prefix, grid, depth, heads)
    assert found.attention_bytes == maps


def test_summary_agrees_with_the_built_model() -> None:
    """What is read without data is what is read with it."""
    built = build("vit_tiny_patch16_224", random_init=True)
    facts, found = describe(built, Taps(built)), summarize("vit_tiny_patch16_224")
    assert (found.prefix, found.grid, found.pooling, found.tokens) == (
        facts.prefix, facts.grid, facts.pooling, facts.tokens,
    )  # fmt: skip
    assert found.image_size == built.image_size
    assert found.parameters == sum(p.numel() for p in built.module.parameters())


def test_exact_name_that_cannot_be_exported_says_why_and_what_can() -> None:
    """The reason and the name most like it; a pattern of such names matches nothing."""
    with pytest.raises(UsageError, match=r"windows of 49 tokens.*such as vit_tiny_patch16_224"):
        summaries("swin_tiny_patch4_window7_224")
    with pytest.raises(UsageError, match=r"swin\*: no model that can be exported"):
        summaries("swin*")


def test_model_too_large_for_the_memory_is_refused_before_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line with what it takes and what there is, instead of a killed process."""
    summary = summarize("vit_giant_patch14_224")
    assert 10e9 < memory.needed(summary) < 20e9
    monkeypatch.setattr(memory, "available", lambda: 4e9)
    monkeypatch.setattr("attlas.exporter.trace.export.build", lambda *a, **k: pytest.fail("was built"))
    with pytest.raises(AttlasError, match=r"vit_giant_patch14_224: .*takes about \d\d\.\d GB .* 4\.0 GB are free"):
        export("vit_giant_patch14_224", tmp_path / "giant.onnx", random_init=True)
    assert list(tmp_path.iterdir()) == []


def test_most_models_fit_into_a_machine_of_24_gb() -> None:
    """All that are listed, by the estimate that export goes by: 22 at most do not."""
    rows = listing._read(listing.SHIPPED, listing._version())
    if rows is None:
        pytest.skip("another timm than the table's is installed")
    found = {name: Summary.of(name, *row) for name, row in rows.items() if row is not None and "." not in name}
    assert sum(memory.needed(summary) > 24e9 for summary in found.values()) <= 22
    # A few layers, and gradients, are counted.
    many = found["gemma4_vit_167m"]
    assert memory.needed(many, [0]) < memory.needed(many) < memory.needed(many, gradients=True)


def test_memory_at_hand_is_that_of_machine_and_container() -> None:
    """More than nothing, and no more than the machine has."""
    left = memory.available()
    if left is None:
        pytest.skip("this system says nothing about its memory")
    assert 1e8 < left < 1e14


def test_command_line_lists_a_table_and_json(command: Callable[..., Any], tmp_path: Path) -> None:
    """A line a model under a heading, or the same as JSON; names alone at once."""
    lines = command("models", "deit_tiny*", cwd=tmp_path).stdout.splitlines()
    assert lines[0].split() == ["model", "prefix", "grid", "pooling", "layers", "heads", "weights", "maps"]
    assert " ".join(lines[2].split()) == "deit_tiny_patch16_224 class 14 x 14 class 12 3 5.7 M 2.8 MB"
    found = json.loads(command("models", "deit_tiny*", "--json", cwd=tmp_path).stdout)
    assert [one["name"] for one in found] == ["deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224"]
    assert found[0]["prefix"] == ["class", "distillation"]
    assert command("models", "deit_tiny*", "--names", cwd=tmp_path).stdout.split() == [one["name"] for one in found]


def test_table_holds_every_model_of_this_timm() -> None:
    """What comes with attlas is what would be built, and nothing in it is left to be built."""
    rows = listing._read(listing.SHIPPED, listing._version())
    if rows is None:
        pytest.skip("another timm than the table's is installed")
    assert set(rows) == set(names())
    for name in ("cait_xxs24_224", "vit_base_patch16_224.dino"):
        assert Summary.of(name, *rows[name] or []) == summarize(name)


def test_listing_brings_in_neither_torch_nor_timm() -> None:
    """Hundreds of models are listed with their figures before PyTorch would have been imported."""
    code = (
        "from attlas.exporter.listing import list_models, summaries\nimport sys\n"
        "print(len(list_models('vit*')), len(summaries('vit*')), 'torch' in sys.modules, 'timm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    listed, summed, *heavy = done.stdout.split()
    assert int(listed) == int(summed) > 100
    assert heavy == ["False", "False"]


@pytest.fixture
def new_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A version of timm without a table: three names, one of them of another kind; gives the list of what is built."""
    built: list[str] = []
    names = ["deit_tiny_patch16_224", "deit_tiny_patch16_224.fb_in1k", "swin_tiny_patch4_window7_224"]

    def count(name: str) -> Any:
        built.append(name)
        return summarize(name)

    monkeypatch.setattr("attlas.exporter.libraries.timm.build.names", lambda: names)
    monkeypatch.setattr("attlas.exporter.taps.facts.summarize", count)
    monkeypatch.setattr(listing, "_version", lambda: "999.0")
    monkeypatch.setenv("XDG_CACHE_HOME" if os.name != "nt" else "LOCALAPPDATA", str(tmp_path / "cache"))
    return built


def test_another_timm_is_looked_at_once(new_timm: list[str], tmp_path: Path) -> None:
    """With a line that says so; what was made is kept, model by model, and a damaged file is made again."""
    said: list[str] = []
    first = listing.summaries("deit*", said.append)
    assert [one.name for one in first] == new_timm == ["deit_tiny_patch16_224"]
    assert said == ["timm 999.0 is new here: looking at 1 models, a quarter of a second each, once"]
    assert listing.summaries("deit*", said.append) == first
    assert listing.summaries("deit*.*")[0].name == "deit_tiny_patch16_224.fb_in1k"
    assert new_timm == ["deit_tiny_patch16_224", "deit_tiny_patch16_224.fb_in1k"]
    with pytest.raises(UsageError, match="no model that can be exported"):
        listing.summaries("swim*")
    (kept,) = (tmp_path / "cache" / "attlas").iterdir()
    kept.write_text(kept.read_text()[:100])
    assert listing.summaries("deit*") == first
    assert new_timm[2:] == ["deit_tiny_patch16_224"]


def test_model_of_another_kind_is_left_out_of_the_table(new_timm: list[str]) -> None:
    """A family's module may hold one that does not attend globally; the list is of those that can be exported."""
    assert [one.name for one in listing.summaries("*")] == ["deit_tiny_patch16_224"]
    assert list_models() == ["deit_tiny_patch16_224"]


def test_cache_that_cannot_be_written_is_no_fault(new_timm: list[str], tmp_path: Path) -> None:
    """The answer is given all the same."""
    (tmp_path / "cache").write_text("a file, where the folder would be")
    for _ in range(2):
        assert [one.name for one in listing.summaries("deit*")] == ["deit_tiny_patch16_224"]
    assert len(new_timm) == 2

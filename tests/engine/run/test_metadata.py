"""Whatever stands in a store's zarr.json: every command ends in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attlas
import pytest
from attlas.engine.inspect import screen
from attlas.errors import AttlasError

ARRAY = "consolidated_metadata/metadata"
DAMAGES: list[tuple[str, Any]] = [
    ("attributes", [1]),
    ("attributes/attlas_format", {}),
    ("attributes/spec", 0.5),
    ("attributes/spec", [1]),
    ("attributes/plan", [1]),
    ("attributes/plan/batch", None),
    ("attributes/plan/batch", {"a": 1}),
    ("attributes/plan/images", "x"),
    ("attributes/plan/images", -5),
    ("attributes/plan/images", 10**18),
    ("attributes/plan/images", 3),
    ("attributes/plan/unit", 0),
    ("attributes/plan/unit", 10**30),
    ("attributes/plan/unit", ["a"]),
    ("attributes/plan/sample", 3),
    ("attributes/plan/sample/1", []),
    ("attributes/plan/sample/2", 10**18),
    ("attributes/plan/identity", 1),
    ("attributes/kept", {}),
    ("attributes/kept", ["a"]),
    ("attributes/kept/layers", 5),
    ("attributes/kept/keep/0", -(10**30)),
    ("attributes/columns", 5),
    ("attributes/columns", None),
    ("attributes/analyzed/0", 1e308),
    (f"{ARRAY}/rollout_mean", 0.5),
    (f"{ARRAY}/run~1size/chunk_key_encoding/name", {"a": 1}),
    (f"{ARRAY}/entropy/dimension_names", 0.5),
    (f"{ARRAY}/entropy/codecs", 3),
    (f"{ARRAY}/entropy/codecs/1/configuration/blocksize", ""),
    (f"{ARRAY}/valid/chunk_grid/configuration/chunk_shape", 1e308),
    (f"{ARRAY}/valid/shape", [10**30]),
    (f"{ARRAY}/layer/shape", [10**30]),
    (f"{ARRAY}/layer/attributes", [1]),
    (f"{ARRAY}/height/fill_value", {}),
    (f"{ARRAY}/run~1done/shape", [10**18]),
]
# What only one command reads.
ANALYSED: list[tuple[str, Any]] = [
    (f"{ARRAY}/rollout_mean/attributes/images", [-1]),
    (f"{ARRAY}/rollout_mean/attributes/units_summed", 7),
    (f"{ARRAY}/rollout_mean/attributes/units_summed", [["a", {}]]),
]


@pytest.fixture(scope="module")
def whole(tiny_graph: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "s.zarr"
    attlas.run(tiny_graph, pictures, path, limit=8, batch_size=2)
    attlas.analyze(path, ["rollout"])
    return path


def _edit(path: Path, where: str, value: Any) -> None:
    root = json.loads((path / "zarr.json").read_text())
    *parts, last = [part.replace("~1", "/") for part in where.split("/")]
    node = root
    for part in parts:
        node = node[int(part)] if isinstance(node, list) else node[part]
    node[int(last) if isinstance(node, list) else last] = value
    (path / "zarr.json").write_text(json.dumps(root))


def test_damaged_metadata_is_one_line_of_every_command(
    whole: Path, tiny_graph: Path, pictures: Path, tmp_path: Path
) -> None:
    """And `run --overwrite`, which it advises, works."""
    commands: list[Callable[[Path], Any]] = [
        lambda path: list(screen(attlas.inspect(path))),
        attlas.verify,
        lambda path: attlas.verify(path, repair=True),
        attlas.analyze,
        attlas.open,
        lambda path: attlas.run(tiny_graph, pictures, path, limit=8),
    ]
    path = Path(shutil.copytree(whole, tmp_path / "s.zarr"))
    root = (path / "zarr.json").read_bytes()
    for turn, (where, value) in enumerate(DAMAGES):
        (path / "zarr.json").write_bytes(root)
        _edit(path, where, value)
        for number in (0, 1 + turn % (len(commands) - 1)):  # all begin alike
            command = commands[number]
            with pytest.raises(AttlasError, match=r"s\.zarr: ") as caught:
                pytest.fail(f"{where} = {value}: {number} went through: {command(path)}")
            assert "\n" not in str(caught.value)
    assert attlas.run(tiny_graph, pictures, path, limit=8, overwrite=True).finished


def test_what_is_said_of_a_sum_is_written_again_by_what_the_error_names(whole: Path, tmp_path: Path) -> None:
    """Of that sum alone."""
    path = Path(shutil.copytree(whole, tmp_path / "s.zarr"))
    root = (path / "zarr.json").read_bytes()
    for where, value in ANALYSED:
        (path / "zarr.json").write_bytes(root)
        _edit(path, where, value)
        with pytest.raises(AttlasError, match=r"rollout_mean does not read .*`attlas analyze --overwrite` writes it"):
            attlas.analyze(path, ["rollout"])
    attlas.analyze(path, ["rollout"], overwrite=True)
    attlas.analyze(path, ["rollout"])

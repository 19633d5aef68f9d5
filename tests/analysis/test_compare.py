"""Two stores' attention on the same images: against plain numpy, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from attlas.analysis import formulas as f
from attlas.errors import AttlasError, UsageError
from click.testing import CliRunner
from support_statistics import BROKEN, IMAGES, SPEC, make_store

compare = pytest.importorskip("attlas.analysis.statistics.compare")
inference = pytest.importorskip("attlas.analysis.statistics.inference")

DEEP = dataclasses.replace(SPEC, depth=4, layers=(0, 1, 2, 3), prefix=(), pooling="mean", model="vit_deep")


def test_divergence_is_of_head_means_at_the_same_relative_depth(tmp_path: Path) -> None:
    """Two blocks against four, with and without a class token, of any stored dtype; unreadable images left out."""
    one = make_store(tmp_path / "a.zarr", units=[0, 1, 2])
    other = make_store(tmp_path / "b.zarr", spec=DEEP, dtype="uint8", layers=DEEP.layers)
    found = compare.compare(one.path, other.path)
    assert found.layers.tolist() == [[0, 1], [1, 3]]
    own = [i for i in range(12) if i != BROKEN]
    assert (found.images, found.n) == (11, 11)
    a = one.read("attention")[own].astype(np.float64).mean(2)
    b = f.decode_codes(other.read("attention_code")[own], np.float64).mean(2)
    wanted = np.stack([f.divergence(a[:, i], b[:, k], SPEC.grid) for i, k in found.layers], axis=1)
    np.testing.assert_allclose(found.divergence, wanted.mean(0), rtol=1e-5)
    np.testing.assert_allclose((found.low, found.high), inference.interval(wanted), rtol=1e-4)
    swapped = compare.compare(other.path, one.path)
    assert swapped.layers.tolist() == [[1, 0], [3, 1]]
    np.testing.assert_allclose(swapped.divergence, found.divergence, rtol=1e-6)


def test_a_store_does_not_differ_from_itself_and_the_command_prints_csv(tmp_path: Path) -> None:
    from attlas.cli import cli

    make_store(tmp_path / "a.zarr")
    result = CliRunner().invoke(cli, ["compare", str(tmp_path / "a.zarr"), str(tmp_path / "a.zarr")])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "layer,other_layer,divergence,low,high"
    assert [line.split(",")[:2] for line in lines[1:]] == [["0", "0"], ["1", "1"]]
    assert all(abs(float(line.split(",")[2])) < 1e-7 for line in lines[1:])
    assert f"{IMAGES - 1} images in both" in result.stderr


def test_what_does_not_compare_is_refused(tmp_path: Path) -> None:
    one = make_store(tmp_path / "a.zarr", units=[0]).path
    with pytest.raises(UsageError, match=r"grids of patches differ .*2 x 3.*3 x 2"):
        compare.compare(one, make_store(tmp_path / "g.zarr", spec=dataclasses.replace(SPEC, grid=(3, 2))).path)
    with pytest.raises(AttlasError, match="share no image by path"):
        compare.compare(one, make_store(tmp_path / "o.zarr", units=[3]).path)
    with pytest.raises(AttlasError, match="--keep attention"):
        compare.compare(one, make_store(tmp_path / "n.zarr", keep=("none",)).path)

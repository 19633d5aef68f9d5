"""Two stores' attention on the same images: against plain numpy, and what is refused."""

from __future__ import annotations

import dataclasses
import math
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
    np.testing.assert_allclose((found.low, found.high), inference.interval(wanted, within=(0, math.log(2))), rtol=1e-4)
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


def test_a_block_is_compared_with_the_same_one_or_with_none(tmp_path: Path) -> None:
    """Graphs of some blocks and runs that keep some: what one store lacks is left out of the other, and said."""
    from attlas.cli import cli

    whole = make_store(tmp_path / "whole.zarr", spec=DEEP, layers=DEEP.layers, units=[0])
    some = make_store(tmp_path / "some.zarr", spec=dataclasses.replace(DEEP, layers=(0, 3)), layers=(0, 3), units=[0])
    kept = make_store(tmp_path / "kept.zarr", spec=DEEP, layers=(1, 3), units=[0])
    found = compare.compare(whole.path, some.path)
    assert found.layers.tolist() == [[0, 0], [3, 3]]
    assert found.left_out == ((1, 2), ())
    found = compare.compare(kept.path, some.path)
    assert (found.layers.tolist(), found.left_out) == ([[3, 3]], ((1,), (0,)))
    shallow = make_store(
        tmp_path / "shallow.zarr", units=[0]
    )  # of two blocks, whose depths are those of 1 and 3 of four
    assert compare.compare(shallow.path, some.path).layers.tolist() == [[1, 3]]
    assert compare.compare(shallow.path, some.path).left_out == ((0,), ())
    result = CliRunner().invoke(cli, ["compare", str(kept.path), str(some.path)])
    assert "kept.zarr: left out, since the other store has nothing to compare: layers 1" in result.stderr
    neither = make_store(tmp_path / "neither.zarr", spec=DEEP, layers=(2,), units=[0])
    with pytest.raises(AttlasError, match=r"no blocks that compare: .*1, 3 and .*neither.zarr 2"):
        compare.compare(kept.path, neither.path)


def test_intervals_of_divergences_end_at_their_range(tmp_path: Path) -> None:
    """Of equal stores what another image could add, not NaN; and none below 0 where one image differs alone."""
    one, other = make_store(tmp_path / "a.zarr", units=[0, 1, 2]), make_store(tmp_path / "b.zarr", units=[0, 1, 2])
    found = compare.compare(one.path, other.path)
    most = (1 - 0.05 ** (1 / 11)) * math.log(2)
    np.testing.assert_allclose([found.low, found.high], [[0, 0], [most, most]], atol=1e-6)
    block = other.read("attention", (slice(0, 2), slice(None)))
    block[0] = np.roll(block[0], 1, axis=-1)
    other.write("attention", 0, block[:, :1], slice(0, 1))
    other.write("attention", 0, block[:, 1:], slice(1, 2))
    found = compare.compare(one.path, other.path)
    assert (found.low == 0).all()
    assert (found.divergence > 0).all()


def test_what_does_not_compare_is_refused(tmp_path: Path) -> None:
    one = make_store(tmp_path / "a.zarr", units=[0]).path
    with pytest.raises(UsageError, match=r"grids of patches differ .*2 x 3.*3 x 2"):
        compare.compare(one, make_store(tmp_path / "g.zarr", spec=dataclasses.replace(SPEC, grid=(3, 2))).path)
    with pytest.raises(AttlasError, match="share no image by path"):
        compare.compare(one, make_store(tmp_path / "o.zarr", units=[3]).path)
    with pytest.raises(AttlasError, match="--keep attention"):
        compare.compare(one, make_store(tmp_path / "n.zarr", keep=("none",)).path)

"""Maps as segmentations of objects that people have outlined."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import pytest
from attlas.analysis.formulas import boxes as formulas
from attlas.engine.runtime.decode import DecodeError, crop_box, decode_mask
from attlas.engine.store.store import Store
from attlas.errors import AttlasError, UsageError
from PIL import Image

segmentation = pytest.importorskip("attlas.analysis.judge.segmentation")
torch = pytest.importorskip("torch")


@pytest.fixture
def masked(made: Any, tmp_path: Path) -> tuple[Path, Path]:
    """The store, and a mask of each picture's own size: a rectangle somewhere."""
    path, folder = Path(shutil.copytree(made.store, tmp_path / "s.zarr")), tmp_path / "masks"
    store, random = Store(path), np.random.default_rng(0)
    for i in np.flatnonzero(store.read("valid")):
        height, width = int(store.read("height", i)), int(store.read("width", i))
        mask = np.zeros((height, width), np.uint8)
        top, left = random.integers(0, height // 2), random.integers(0, width // 2)
        mask[top : top + height // 2, left : left + width // 2] = 7
        file = folder / Path(str(store.read("path", i))).with_suffix(".png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(file)
    return path, folder


def slow(values: np.ndarray, inside: np.ndarray) -> dict[str, float]:
    """Chefer's protocol, in torch and pixel by pixel."""
    given = torch.from_numpy(np.asarray(values, np.float64))[None, None]
    whole = torch.nn.functional.interpolate(given, size=inside.shape, mode="bilinear")[0, 0].numpy()
    found = whole > whole.mean()
    pairs = list(zip(found.ravel().tolist(), inside.ravel().tolist(), strict=True))
    size = len(pairs)
    counts = {
        "correct": sum(a == b for a, b in pairs) / size,
        "intersection_background": sum(not a and not b for a, b in pairs) / size,
        "union_background": sum(not a or not b for a, b in pairs) / size,
        "intersection_object": sum(a and b for a, b in pairs) / size,
        "union_object": sum(a or b for a, b in pairs) / size,
    }
    certain = (whole - whole.min()) / (whole.max() - whole.min())
    scores, true = np.concatenate([1 - certain.ravel(), certain.ravel()]), np.r_[~inside.ravel(), inside.ravel()]
    precision, recalled = 0.0, 0.0
    for level in sorted(set(scores.tolist()), reverse=True):
        above = scores >= level
        recall = true[above].sum() / true.sum()
        precision += (recall - recalled) * true[above].mean()
        recalled = recall
    patches = inside.reshape(2, 8, 3, 8).mean((1, 3))
    counts["average_precision"] = precision
    counts["pointing"] = float(patches.ravel()[values.argmax()] >= 0.5)
    counts["energy"] = float((values * patches).sum() / values.sum())
    return counts


def test_counts_are_chefer_s(made: Any, masked: tuple[Path, Path]) -> None:
    path, folder = masked
    result = attlas.judge(path, made.graph, made.images, maps=["rollout"], steps=2, masks=folder).segmentation
    store, rows = Store(path), []
    for i in np.flatnonzero(store.read("valid")):
        file = folder / Path(str(store.read("path", int(i)))).with_suffix(".png")
        known = (int(store.read("height", int(i))), int(store.read("width", int(i))))
        inside, _ = decode_mask(file.read_bytes(), store.spec.recipe, known)
        wanted = slow(store.read("rollout", int(i)), inside)
        rows.append(wanted)
        found = store.read("segmentation.rollout", int(i))
        np.testing.assert_allclose(found, [wanted[name] for name in segmentation.COUNTS], atol=1e-6)
    assert result is not None
    assert result.maps == ("rollout", "uniform", "centre", "random")
    assert result.images == len(rows) == 12
    total = {name: sum(row[name] for row in rows) for name in rows[0]}
    parts = [total[f"intersection_{kind}"] / total[f"union_{kind}"] for kind in ("background", "object")]
    at = result.maps.index("rollout")
    assert result.mean[at, segmentation.SCORES.index("mean_iou")] == pytest.approx(sum(parts) / 2, rel=1e-6)
    assert result.mean[at, segmentation.SCORES.index("energy")] == pytest.approx(total["energy"] / 12, rel=1e-6)
    assert (result.bounds[0, at] < result.mean[at]).all()
    for file in folder.rglob("*.png"):  # other masks: what the object is and what is not, exchanged
        Image.fromarray(7 - np.asarray(Image.open(file))).save(file)
    again = attlas.judge(path, made.graph, made.images, maps=["rollout"], steps=2, masks=folder)
    assert again.forwards == 0
    assert again.segmentation is not None
    energy = segmentation.SCORES.index("energy")
    np.testing.assert_allclose(again.segmentation.mean[:, energy] + result.mean[:, energy], 1, rtol=1e-6)


def test_equal_shares_have_the_bounds_that_their_range_leaves() -> None:
    """20 hits of one map, half hits of another, and the energy of a map of both signs, which is no share."""
    values, missed = np.tile([[1.0, 0.25], [0.5, 1.5]], (20, 1, 1)), 1 - 0.05 ** (1 / 20)
    _, bounds, difference, edges = segmentation.summed(values, None)
    np.testing.assert_allclose(bounds[:, :, 0], [[1 - missed, 0.5 - 0.5 * missed], [1, 0.5 + 0.5 * missed]])
    np.testing.assert_allclose(bounds[:, :, 1].T, [[0.25 - 0.25 * missed, 0.25 + 0.75 * missed], [np.nan, np.nan]])
    assert difference[0, 1, 0] == 0.5
    np.testing.assert_allclose(edges[:, 0, 1, 0], [0.5 - 1.5 * missed, 0.5 + 0.5 * missed])
    assert np.isnan(edges[:, 0, 1, 1]).all()


def test_a_mask_is_cropped_as_its_picture_is(made: Any) -> None:
    recipe = dataclasses.replace(Store(made.store).spec.recipe, crop_mode="center", resize=(32, 32), crop=(16, 24))
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 32:] = 255
    data = io.BytesIO()
    Image.fromarray(mask).save(data, "png")
    inside, size = decode_mask(data.getvalue(), recipe, (64, 64))
    wanted = np.zeros((16, 24), bool)
    wanted[:, 12:] = True  # rows 8 to 24 of 32, columns 4 to 28
    assert size == (64, 64)
    np.testing.assert_array_equal(inside, wanted)


def test_a_picture_as_large_as_the_crop_is_resized_and_so_is_its_mask(made: Any) -> None:
    """224 of a crop of 224, but a resize to 248: only a mask of another picture's crop is taken as it is."""
    recipe = dataclasses.replace(Store(made.store).spec.recipe, crop_mode="center", resize=(32, 32), crop=(16, 16))
    mask = np.zeros((16, 16), np.uint8)
    mask[4:8, 4:12] = 1
    data = io.BytesIO()
    Image.merge("LA", [Image.fromarray(mask), Image.new("L", (16, 16), 255)]).save(data, "png")
    for known, wanted in (((16, 16), np.kron(mask, np.ones((2, 2)))[8:24, 8:24]), ((40, 30), mask)):
        np.testing.assert_array_equal(decode_mask(data.getvalue(), recipe, known)[0], wanted)


def test_a_mask_of_absurd_size_is_refused_in_one_line(made: Any) -> None:
    data = io.BytesIO()
    Image.new("1", (20000, 9000)).save(data, "png")
    with pytest.raises(DecodeError, match="exceeds limit"):
        decode_mask(data.getvalue(), Store(made.store).spec.recipe, (16, 24))


def test_refuses_masks_that_are_missing_or_of_another_size(made: Any, masked: tuple[Path, Path]) -> None:
    path, folder = masked

    def judge(where: Path) -> None:
        attlas.judge(path, made.graph, made.images, maps=["rollout"], steps=2, masks=where)

    with pytest.raises(UsageError, match="there is no such folder"):
        judge(folder / "nowhere")
    first = sorted(folder.rglob("*.png"))[0]
    data = first.read_bytes()
    first.unlink()
    with pytest.raises(AttlasError, match="lacks the masks of 1 of 12 images"):
        judge(folder)
    Image.new("L", (9, 9)).save(first)
    with pytest.raises(AttlasError, match="has 9x9 pixels, its image"):
        judge(folder)
    first.write_bytes(data[:30])
    with pytest.raises(AttlasError, match="cannot be read as a mask"):
        judge(folder)


def test_one_mask_for_two_images_is_refused(made: Any, masked: tuple[Path, Path], tmp_path: Path) -> None:
    """In one folder masks are found by the image's name, unless an image of another folder has it too."""
    path, folder = masked
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in folder.rglob("*.png"):
        shutil.copy(file, flat)
    store = Store(path)
    usable = store.done_images & store.read("valid").astype(bool)
    segmentation.check_masks(store, flat, usable)
    names = [str(name) for name in store.read("path")]
    first, second = (i for i, name in enumerate(names) if name.endswith(("00000.png", "00001.jpg")))
    names[second] = names[second].replace("00001.jpg", "00000.jpg")

    class Twice:
        def read(self, name: str) -> Any:
            return np.array(names, np.dtypes.StringDType())

    with pytest.raises(AttlasError, match=rf"00000\.png: would be the mask of {names[first]} and of {names[second]};"):
        segmentation.check_masks(Twice(), flat, usable)


def test_boxes_are_found_by_maps(made: Any, tmp_path: Path) -> None:
    """Two boxes in one picture, one in another: by the formulas, mean over objects; other boxes replace the rows."""
    path = Path(shutil.copytree(made.store, tmp_path / "s.zarr"))
    store = Store(path)
    at = [int(i) for i in np.flatnonzero(store.read("valid"))[:2]]
    sizes = [(int(store.read("height", i)), int(store.read("width", i))) for i in at]
    boxes = [(0, [0, 0, sizes[0][1], sizes[0][0]]), (0, [0, 0, sizes[0][1] / 3, sizes[0][0] / 2])]
    boxes += [(1, [sizes[1][1] / 2, 0, sizes[1][1] / 2, sizes[1][0]])]
    for name, given in (("all.json", boxes), ("one.json", boxes[:2])):
        images = [{"id": n, "file_name": str(store.read("path", i))} for n, i in enumerate(at)]
        annotations = [{"image_id": n, "bbox": box} for n, box in given]
        (tmp_path / name).write_text(json.dumps({"images": images, "annotations": annotations}))
    result = attlas.judge(path, made.graph, made.images, maps=["rollout"], steps=2, boxes=tmp_path / "all.json")
    found = result.localisation
    assert found is not None
    assert (found.images, found.objects, found.maps) == (2, 3, ("rollout", "uniform", "centre", "random"))
    for n, i in enumerate(at):
        crop = crop_box(*sizes[n], store.spec.recipe)
        covers = [
            formulas.cover((y, x, y + height, x + width), crop, store.spec.grid)
            for image, (x, y, width, height) in boxes
            if image == n
        ]
        maps = store.read("rollout", i).astype(np.float64)
        wanted = [[formulas.pointing_hit(maps, one), formulas.box_mass(maps, one)] for one in covers]
        np.testing.assert_allclose(Store(path).read("localisation.rollout", i), np.mean(wanted, axis=0), rtol=1e-6)
    rows = Store(path).read("localisation.rollout")[at]
    np.testing.assert_allclose(found.mean[0], rows.mean(axis=0), rtol=1e-6)
    assert found.bounds[1].max() <= 1
    attlas.judge(path, made.graph, made.images, maps=["rollout"], steps=2, boxes=tmp_path / "one.json")
    assert np.isnan(Store(path).read("localisation.rollout")[at[1]]).all()
    with pytest.raises(UsageError, match="there is no such file"):
        attlas.judge(path, made.graph, made.images, maps=["rollout"], steps=2, boxes=tmp_path / "none.json")

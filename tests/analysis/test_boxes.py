"""Boxes through the crop onto the grid, and how maps and tokens meet them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attlas.analysis import objects
from attlas.analysis.formulas import boxes
from attlas.analysis.report import report
from attlas.errors import AttlasError, UsageError
from hypothesis import given, settings
from hypothesis import strategies as st
from support_report import coco, make_store

CROP = (10.0, 20.0, 50.0, 100.0)


def test_cover_of_half_a_patch_and_of_the_whole_crop() -> None:
    # Two rows of 20 px, four columns of 20 px; the box is half of the second column of the first row.
    assert boxes.cover((10, 40, 30, 50), CROP, (2, 4)) == [[0, 0.5, 0, 0], [0, 0, 0, 0]]
    assert boxes.cover((0, 0, 90, 900), CROP, (2, 4)) == [[1] * 4] * 2


@given(st.tuples(*[st.floats(0, 60)] * 2), st.tuples(*[st.floats(1, 60)] * 2))
@settings(max_examples=50, deadline=None)
def test_cover_sums_to_the_area_inside_the_crop(corner: Any, size: Any) -> None:
    box = (corner[0], corner[1], corner[0] + size[0], corner[1] + size[1])
    inside = [max(0.0, min(box[i + 2], CROP[i + 2]) - max(box[i], CROP[i])) for i in (0, 1)]
    if min(inside) < 1e-6:
        return
    covered = np.array(boxes.cover(box, CROP, (3, 5)))
    assert covered.sum() * (40 / 3) * (80 / 5) == pytest.approx(inside[0] * inside[1])


def test_mass_hit_and_overlap_of_a_map() -> None:
    covered = [[0.0, 1.0], [0.0, 0.5]]
    maps = np.array([[[0.1, 0.6], [0.1, 0.2]], [[0.7, 0.1], [0.1, 0.1]]])
    np.testing.assert_allclose(boxes.box_mass(maps, covered), [0.7, 0.15])
    np.testing.assert_array_equal(boxes.pointing_hit(maps, covered), [1, 0])
    np.testing.assert_allclose(boxes.box_jaccard(maps, covered), [1 / 1.5, 0])
    uniform = np.ones((2, 2))
    assert boxes.box_mass(uniform, covered) == pytest.approx(np.mean(covered))
    assert boxes.pointing_hit(uniform, covered) == 0.5  # what chance gives, not a hit of every box


def test_centre_box_has_the_size_and_the_crops_centre() -> None:
    assert boxes.centre_box((0, 0, 10, 20), CROP) == (25, 50, 35, 70)


def test_objects_are_means_of_their_patches_weighed_by_the_rollout() -> None:
    tokens = np.array([[9.0, 9.0], [1, 0], [0, 1], [2, 0], [0, 2]])
    covers = [[[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]]
    np.testing.assert_allclose(boxes.object_vectors(tokens, covers), [[0.5, 0.5], [2, 0]])
    weights = np.array([[0.75, 0.25], [0.5, 0.5]])
    vectors = boxes.object_vectors(tokens, covers, weights)
    np.testing.assert_allclose(vectors, [[0.75, 0.25], [2, 0]])
    cosine = 0.75 / np.hypot(0.75, 0.25)
    np.testing.assert_allclose(boxes.object_similarity(vectors), [[1, cosine], [cosine, 1]])


def test_boxes_that_cannot_be_used_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "coco.json"
    data = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"id": 3, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [5, 6, 10, 20]},
            {"id": 2, "image_id": 1, "category_id": 3, "bbox": [5, 6, 0, 20]},
            {"id": 3, "image_id": 9, "category_id": 3, "bbox": [5, 6, 1, 1]},
        ],
    }
    path.write_text(json.dumps(data))
    found, left_out = boxes.read_coco(path)
    assert found == {"a.jpg": [("dog", (6, 5, 26, 15), None)]}
    assert [line.split(":")[0] for line in left_out] == ["box 2 of a.jpg", "box 3"]
    with pytest.raises(UsageError, match="outside"):
        boxes.cover((0, 0, 5, 5), CROP, (2, 2))
    with pytest.raises(UsageError, match="no area"):
        boxes.cover((5, 5, 5, 9), CROP, (2, 2))


def test_boxes_without_a_category_are_objects_and_no_none_is_shown(tmp_path: Path) -> None:
    """The category left out or null, one that the file does not name, one whose name is null; a box without an id."""
    data = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"id": 4, "name": None}],
        "annotations": [
            {"id": 1, "image_id": 1, "bbox": [0, 0, 1, 1]},
            {"id": 2, "image_id": 1, "category_id": None, "bbox": [0, 0, 1, 1]},
            {"id": 3, "image_id": 1, "category_id": 7, "bbox": [0, 0, 1, 1]},
            {"id": 4, "image_id": 1, "category_id": 4, "bbox": [0, 0, 1, 1]},
            {"image_id": 1, "bbox": [0, 0, 0, 1]},
        ],
    }
    for categories in (data["categories"], None):
        (tmp_path / "coco.json").write_text(json.dumps(data | {"categories": categories}))
        found, left_out = boxes.read_coco(tmp_path / "coco.json")
        assert [one.kind for one in found["a.jpg"]] == ["object", "object", "category 7", "category 4"]
        assert left_out == ["box 5 of a.jpg: has no area (0 x 1)"]


@pytest.mark.parametrize(
    ("size", "same"),
    [
        ((30, 40), True), ((300, 400), True), ((3, 4), True), ((299, 398.6), True), ((1080, 1437), True),
        ((40, 30), False), ((300, 500), False), ((30, 43), False), ((0, 0), False), ((float("nan"), 40), False),
        ((-30, -40), False), ((1e308, 1e308), False),
    ],
)  # fmt: skip
def test_a_copy_of_another_size_has_the_same_shape_to_a_pixel(size: tuple[float, float], same: bool) -> None:
    whole = (0.0, 0.0, *size)
    if same:
        assert boxes.rescaled(whole, size, (30, 40)) == pytest.approx((0, 0, 30, 40))
    else:
        with pytest.raises(UsageError, match="another shape than the store's 40 x 30"):
            boxes.rescaled(whole, size, (30, 40))


def test_boxes_of_larger_copies_of_the_pictures_give_equal_figures(tmp_path: Path) -> None:
    """By the size in the file, one per picture; without one they are pixels of the store's pictures."""
    store = make_store(tmp_path / "s.zarr", images=8)  # pictures of 40 x 30 pixels
    names, file = [str(path) for path in store.read("path")[:2]], tmp_path / "coco.json"

    def find(scales: tuple[float, float], size: Any) -> tuple[Any, list[str]]:
        images = [
            {"id": n, "file_name": name, **size(scale)}
            for n, (name, scale) in enumerate(zip(names, scales, strict=True))
        ]
        marks = [{"image_id": n, "bbox": [5 * k, 3 * k, 20 * k, 12 * k]} for n, k in enumerate(scales)]
        file.write_text(json.dumps({"images": images, "annotations": marks}))
        return objects.find(store, file)

    plain, _ = find((1, 1), lambda _: {})
    uniform = np.ones(store.spec.grid)
    assert plain[0].boxes == ((3, 5, 15, 25),)
    assert boxes.box_mass(uniform, plain[0].covers[0]) == pytest.approx(20 * 12 / (40 * 30))
    for scales in ((1, 1), (10, 10), (0.5, 3)):
        found, left_out = find(scales, lambda k: {"width": 40 * k, "height": 30 * k})
        assert (len(found), left_out) == (2, [])
        np.testing.assert_allclose([one.boxes for one in found], [one.boxes for one in plain])
        np.testing.assert_allclose([one.covers for one in found], [one.covers for one in plain])
    found, left_out = find((1, 1), lambda _: {"width": 400, "height": 600})
    line = "marked in a picture of 400 x 600 pixels, another shape than the store's 40 x 30"
    assert (found, left_out) == ([], [f"object of {name}: {line}" for name in names])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", ""), ("{}", "'images'"), ("no json", ""), ("[" * 200_000, "nested too deeply"),
        *((f'{{"images": [], "annotations": [{{"image_id": 1, "bbox": {box}}}]}}', f"box 1: bbox is {said}, not x, y")
          for box, said in (
              ("1", "1"), ("[1, 2, 3]", r"\[1, 2, 3\]"), ("null", "None"), ('["a", 1, 2, 3]', r"\['a', 1, 2, 3\]"),
              ("[1%s, 1, 2, 3]" % ("0" * 400), r"\[10+\.\.\.0+, 1, 2, 3\]"),
          )),
        ('{"images": [], "annotations": [{"image_id": [], "bbox": [1, 2, 3, 4]}]}', "unhashable"),
        ('{"images": [{"id": 1, "file_name": "a", "width": "x", "height": 3}], "annotations": []}', "'x'"),
        ('{"images": [{"id": 1, "file_name": "a", "width": 1%s, "height": 3}]}' % ("0" * 400), "too large"),
    ],
    ids=range(12),
)  # fmt: skip
def test_what_is_no_coco_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(AttlasError, match=rf"is no COCO file with images and annotations \(.*{said}") as caught:
        boxes.read_coco(tmp_path / "x.json")
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_boxes_of_which_no_store_shows_one_are_refused(tmp_path: Path) -> None:
    """By a judgement and by a report alike; of several stores one is enough."""
    one, other = (make_store(tmp_path / name, images=8) for name in ("a.zarr", "b.zarr"))
    file = coco(tmp_path / "x.json", {"absent.png": [(0, 0, 5, 5)]})
    line = r"x.json: no box lies in a valid image of .*a.zarr \(thing of absent.png: the image is not in the store\)"
    with pytest.raises(AttlasError, match=line):
        objects.required(file, [one])
    with pytest.raises(AttlasError, match=line):
        report(one.path, tmp_path / "r.html", boxes=file)
    with pytest.raises(AttlasError, match=r"a.zarr or .*b.zarr"):
        objects.required(file, [one, other])
    objects.required(coco(file, {str(other.read("path", 1)): [(0, 0, 5, 5)]}), [one, other])
    with pytest.raises(AttlasError, match=r"no box lies in a valid image of .*a.zarr$"):
        objects.required(coco(file, {}), [one])

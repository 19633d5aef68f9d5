"""What the page is told equals what the store holds, and comes from one chunk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_report import BROKEN, IMAGES, UNIT, attention_of, fill_unit, make_store, spec_of

api = pytest.importorskip("attlas.analysis.view.api")
from attlas.analysis import formulas  # noqa: E402
from attlas.analysis.statistics import analyze  # noqa: E402
from attlas.analysis.view import packing, pictures  # noqa: E402
from attlas.engine.store.store import Store  # noqa: E402
from attlas.errors import UsageError  # noqa: E402


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Registers, a grid that is no square, and the run's statistics."""
    return make_store(tmp_path_factory.mktemp("view") / "a.zarr", reduce=True)


def numbers(answer: Any, dtype: Any) -> tuple[dict[str, Any], np.ndarray]:
    header, data = packing.unpack(answer.body)
    return header, np.frombuffer(data, dtype)


def parts_of(answer: Any) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The header, and `Coded` as it is sent: most, scale, prefix, and the codes themselves."""
    header, data = packing.unpack(answer.body)
    heads, rows, prefix = header["heads"], header["rows"], header["prefix"]
    sizes = np.cumsum([4 * rows, 2 * heads * rows, 2 * heads * rows * prefix])
    most, scale, front, codes = (data[a:b] for a, b in zip([0, *sizes], [*sizes, None], strict=True))
    steps = np.frombuffer(codes, np.int8 if header["signed"] else np.uint8).reshape(heads, rows, -1)
    return (
        header, np.frombuffer(most, np.float32), np.frombuffer(scale, np.float16).reshape(heads, rows),
        np.frombuffer(front, np.float16).reshape(heads, rows, prefix), np.cumsum(steps, axis=1, dtype=steps.dtype),
    )  # fmt: skip


def rows_of(answer: Any) -> tuple[dict[str, Any], np.ndarray]:
    """(head, query, key) as the page decodes them."""
    header, _, scale, front, codes = parts_of(answer)
    share = codes.astype(np.float64) / header["levels"]
    patches = scale[..., None].astype(np.float64) * share * np.abs(share)
    return header, np.concatenate([front, patches], axis=-1)


def values_of(atlas: Any, name: str, number: int = 0) -> np.ndarray:
    header, data = packing.unpack(atlas.answer(f"column/{number}/{name}").body)
    if "texts" in header:
        return np.array(header["texts"])[np.frombuffer(data, np.uint32)]
    return np.frombuffer(data, np.float32)


HEADER = {"heads": 2, "rows": 2, "keys": 17, "prefix": 1, "levels": 50, "signed": False}


@pytest.mark.parametrize("levels", [255, 50])
def test_attention_is_the_stores_to_within_a_code(store: Store, levels: int) -> None:
    atlas = api.Atlas([store.path], levels=levels)
    for image, place in ((0, 0), (3, 1), (IMAGES - 1, 1)):
        kept = store.read("attention", (image, place)).astype(np.float64)
        header, found = rows_of(atlas.answer(f"rows/0/{image}/{place}"))
        assert header["rows"] == header["keys"] == store.spec.tokens
        prefix = len(store.spec.prefix)
        assert np.array_equal(found[..., :prefix], kept[..., :prefix])
        kept, found = kept[..., prefix:], found[..., prefix:]
        most = kept.max(axis=-1, keepdims=True)
        assert (np.abs(found - kept) <= np.sqrt(np.maximum(kept, found) * most) / levels + 1e-7).all()
        assert np.array_equal(found.max(axis=-1), most[..., 0])


def test_a_class_token_with_most_of_the_mass_costs_the_patches_nothing() -> None:
    """Codes are as fine as without it, and the largest values that the page prints are exact."""
    patches = np.linspace(0.0002, 0.0034, 16, dtype=np.float32)
    rows = np.float16(np.stack([np.stack([[1 - p.sum(), *p] for p in (patches, patches[::-1])])] * 2))
    rows[1, 0, 1:] /= 2
    header, most, scale, front, codes = parts_of(
        api.Answer("", packing.pack(HEADER, *packing.coded(rows.astype(np.float32), 1, 50)[:4]))
    )
    assert header == HEADER
    assert np.array_equal(front, rows[..., :1])
    assert np.array_equal(scale, rows[..., 1:].max(axis=-1))
    assert codes[0, 0, -1] == codes[1, 1, 0] == 50
    assert all(len(set(row.tolist())) > 12 for row in codes.reshape(4, -1))
    mean = rows[..., 1:].astype(np.float64).mean(axis=0)
    assert most.tolist() == pytest.approx(mean.max(axis=-1), rel=1e-6)


def test_negative_attention_keeps_its_signs() -> None:
    rows = np.array([[[0.5, -0.25, 0.0, 0.75], [-0.5, 0.25, 0.0, -0.75]]], np.float32)
    found = packing.coded(rows, 0, 255)
    assert found.signed
    assert np.cumsum(found.codes, axis=1, dtype=np.int8).tolist() == [[[104, -73, 0, 127], [-104, 73, 0, -127]]]
    assert found.scale.tolist() == [[0.75, 0.75]]
    assert found.most.tolist() == [0.75, 0.25]


def test_codes_are_decoded(tmp_path: Path) -> None:
    store = make_store(tmp_path / "codes.zarr", dtype="uint8", images=4)
    _, found = rows_of(api.Atlas([store.path]).answer("rows/0/1/0"))
    kept = formulas.decode_codes(store.read("attention_code", (1, 0)))
    assert np.abs(found - kept).max() < 0.005


def test_a_page_is_opened_without_reading_any_picture(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    atlas, seen = api.Atlas([store.path]), []
    read, chunk = Store.read, Store.chunk
    monkeypatch.setattr(Store, "read", lambda self, name, *rest: [seen.append(name), read(self, name, *rest)][1])
    monkeypatch.setattr(Store, "chunk", lambda self, name, index: [seen.append(name), chunk(self, name, index)][1])
    found = json.loads(atlas.answer("manifest").body)
    assert found["images"] == IMAGES
    assert found["stores"][0]["grid"] == [3, 5]
    assert not seen


def test_a_click_reads_one_chunk_and_its_neighbour_none(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    atlas, seen = api.Atlas([store.path]), []
    chunk = Store.chunk
    monkeypatch.setattr(Store, "chunk", lambda self, name, index: [seen.append(name), chunk(self, name, index)][1])
    atlas.answer("rows/0/8/1")
    assert seen.count("attention") == 1
    atlas.answer("rows/0/9/1")
    assert seen.count("attention") == 1  # batches are of two images


@pytest.mark.parametrize(
    "path",
    [
        "rows/0/-1/0", "rows/0/22/0", "rows/0/999999999/0", "rows/0/99999999999999999999/0", "rows/0/1/2", "rows/1/0/0",
        "rows/0/1", "rows/0/1/0/", "map/0/1/logits", "map/0/1/..", "map/0/1/%2e%2e%2fzarr.json", "column/0/attention",
        "column/0/no%20such", "column/0/..%2Fx", "picture/0/99999", "../zarr.json", "zarr.json", "", "facts/0/1e3",
        "rows/0/٣/0",
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_in_one_line(store: Store, path: str) -> None:
    with pytest.raises(api.MissingError) as caught:
        api.Atlas([store.path]).answer(path)
    assert "\n" not in str(caught.value)


def test_columns_are_the_stores(store: Store) -> None:
    atlas = api.Atlas([store.path])
    assert values_of(atlas, "path").tolist() == [str(p) for p in store.read("path")]
    state = values_of(atlas, "state")
    assert state[BROKEN] == "unreadable"
    assert (np.delete(state, BROKEN) == "ok").all()
    answers = values_of(atlas, "answer")
    assert answers[0] == "right"  # every logit is largest for class 0, and every other label names it
    assert answers[1] == "wrong"
    assert answers[BROKEN] == ""
    entropy = store.read("entropy").mean(axis=(1, 2))
    found = values_of(atlas, "entropy")
    assert np.isnan(found[BROKEN])
    assert np.allclose(np.delete(found, BROKEN), np.delete(entropy, BROKEN))
    share = np.e / (np.e + 3)
    assert np.allclose(np.delete(values_of(atlas, "probability"), BROKEN), share)
    assert np.allclose(values_of(atlas, "label%20probability")[:2], [share, 1 / (np.e + 3)])


def test_facts_say_what_is_known_of_a_picture(store: Store) -> None:
    atlas = api.Atlas([store.path])
    facts = json.loads(atlas.answer("facts/0/0").body)
    assert facts["label"] == "name 0"
    assert facts["top"][0][0] == "name 0"
    assert facts["top"][0][2] is True
    assert np.allclose(facts["statistics"]["entropy"]["values"], store.read("entropy", 0))
    assert "is no picture" in json.loads(atlas.answer(f"facts/0/{BROKEN}").body)["why"]
    with pytest.raises(api.MissingError, match="could not be read: is no picture"):
        atlas.answer(f"rows/0/{BROKEN}/0")


def test_a_map_that_is_stored_or_made(store: Store, tmp_path: Path) -> None:
    header, found = numbers(api.Atlas([store.path]).answer("map/0/2/rollout"), np.float32)
    assert header["shape"] == [1, 1, 3, 5]
    assert np.array_equal(found.reshape(3, 5), store.read("rollout", 2))
    bare = make_store(tmp_path / "bare.zarr", images=4)
    assert "rollout" not in bare
    _, made = numbers(api.Atlas([bare.path]).answer("map/0/2/rollout"), np.float32)
    layers = list(bare.read("attention", 2).astype(np.float32))
    assert np.allclose(made.reshape(3, 5), formulas.rollout(layers, (3, 5), 0))


@pytest.mark.parametrize("prefix", [("class", "register"), ()])
def test_a_store_that_kept_no_attention_shows_its_prefix_rows_or_says_why(
    tmp_path: Path, prefix: tuple[str, ...]
) -> None:
    store = make_store(tmp_path / "none.zarr", spec_of(prefix=prefix), keep=("none",), reduce=True, images=4)
    atlas = api.Atlas([store.path])
    described = json.loads(atlas.answer("manifest").body)["stores"][0]
    assert described["whole"] == ""
    assert any("--keep none" in note for note in described["notes"])
    assert [one["name"] for one in described["maps"]] == ["rollout"]
    if not prefix:
        with pytest.raises(api.MissingError, match="was not kept"):
            atlas.answer("rows/0/0/1")
        return
    header, found = rows_of(atlas.answer("rows/0/0/1"))
    assert header["rows"] == 2
    assert np.abs(found - store.read("prefix_attention", (0, 1)).astype(np.float64)).max() < 0.005


def test_a_store_that_grows_shows_what_is_done(tmp_path: Path) -> None:
    store = make_store(tmp_path / "grows.zarr", units=[0])
    atlas = api.Atlas([store.path])
    assert values_of(atlas, "state").tolist() == ["ok"] * UNIT + ["not done"] * (IMAGES - UNIT)
    with pytest.raises(api.MissingError, match="not done yet"):
        atlas.answer(f"rows/0/{UNIT}/0")
    fill_unit(store, 1, attention_of(store.spec), None)
    assert values_of(atlas, "state")[UNIT] == "ok"
    kept = store.read("attention", (UNIT, 0)).astype(np.float64)
    assert np.abs(rows_of(atlas.answer(f"rows/0/{UNIT}/0"))[1] - kept).max() < 0.005
    assert json.loads(atlas.answer("manifest").body)["stores"][0]["done"] == 2 * UNIT


def test_an_analysis_made_meanwhile_is_seen(tmp_path: Path) -> None:
    store = make_store(tmp_path / "later.zarr", reduce=True)
    atlas = api.Atlas([store.path])
    (before,) = [one for one in json.loads(atlas.answer("panels/0").body) if one["name"] == "entropy"]
    assert not before["analysed"]
    valid = np.delete(store.read("entropy").astype(np.float64), BROKEN, axis=0)
    assert np.allclose(before["mean"], valid.mean(axis=0))
    analyze(store.path)
    analyze(store.path, ["offset_map_mean"])
    atlas.answer("manifest")
    (after,) = [one for one in json.loads(atlas.answer("panels/0").body) if one["name"] == "entropy"]
    assert after["analysed"]
    assert np.allclose(after["mean"], before["mean"])
    assert np.shape(after["interval"]) == (2, 2, 2)
    assert after["uniform"] == pytest.approx(np.log(store.spec.tokens))
    header, found = numbers(atlas.answer("offsets/0"), np.float32)
    assert np.array_equal(found.reshape(header["shape"]), Store(store.path).read("offset_map_mean").astype(np.float32))


def test_other_stores_pictures_are_found_by_path(store: Store, tmp_path: Path) -> None:
    other = make_store(tmp_path / "b.zarr", spec_of(grid=(4, 4), prefix=()), images=6)
    _, found = numbers(api.Atlas([store.path, other.path]).answer("pairs/1"), np.int32)
    assert found.tolist() == [*range(6), *[-1] * (IMAGES - 6)]


def test_pictures_are_the_sample_or_below_the_folder(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atlas = api.Atlas([store.path])
    reader = atlas.readers[0]
    assert (pictures.crop(reader, 1, None) == 10).all()
    with pytest.raises(api.MissingError, match="--images DIR"):
        atlas.answer("picture/0/0")
    folder = tmp_path / "below"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(pictures.jpeg(np.zeros((30, 40, 3), np.uint8)))
    with pytest.raises(api.MissingError, match="not in the folder"):
        pictures.crop(reader, 0, folder)
    for path in ("../secret.png", "/etc/passwd", "a/../../secret.png", "..\\secret.png", "C:secret.png"):
        monkeypatch.setattr(Store, "read", lambda *_, path=path: path)
        with pytest.raises(api.MissingError, match="leads out of the folder"):
            pictures.crop(reader, 0, folder)


def test_how_many_stores(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name 1 to 8"):
        api.Atlas([])
    with pytest.raises(UsageError, match="no such folder"):
        api.Atlas([store.path], tmp_path / "nowhere")

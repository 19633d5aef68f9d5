"""A run stores what the graph gives, whatever happens on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import pytest
from attlas.engine import Session, Store
from attlas.engine.runner import run
from attlas.errors import AttlasError, Interrupted, UsageError
from support import chunk_files, make_images, make_picture


class NoProvider:
    """A reducer that marks attention as it likes."""

    templates = ()

    def __init__(self, spec: Any) -> None:
        self.spec = spec

    def __call__(self, attention: Any, pool: Any = None) -> dict[str, Any]:
        """No statistics, and everything is finite but the second layer of the first image."""
        finite = np.ones((len(attention[0]), len(attention)), bool)
        finite[0, 1] = False
        return {"_finite": finite}


def paths(store: Store) -> list[str]:
    return list(store.read("path"))


def test_the_store_holds_what_the_session_gives(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Attention in float16, logits, prefix rows, paths, labels and sizes, image by image."""
    result = run(tiny_graph, pictures, tmp_path / "s.zarr")
    store = Store(result.path)
    assert result.finished
    assert (result.done, result.errors, result.labelled) == (50, 0, 50)
    keys = paths(store)
    assert keys == sorted(p.relative_to(pictures).as_posix() for p in pictures.rglob("*.*"))
    arrays = Session(tiny_graph)([pictures / key for key in keys])
    np.testing.assert_array_equal(store.read("attention"), arrays["attention"].astype(np.float16))
    np.testing.assert_array_equal(store.read("prefix_attention"), arrays["attention"][:, :, :, :1].astype(np.float16))
    np.testing.assert_array_equal(store.read("logits"), arrays["logits"])
    assert list(store.read("label")) == [key.split("/")[0] for key in keys]
    assert list(store.read("label_class")) == [int(key[1:9]) for key in keys]
    assert result.top1 == (arrays["logits"].argmax(1) == store.read("label_class")).sum()
    assert store.read("valid").all()
    from PIL import Image

    assert [(h, w) for h, w in zip(store.read("height"), store.read("width"), strict=True)] == [
        Image.open(pictures / key).size[::-1] for key in keys
    ]


def test_an_array_that_a_run_stores_is_one_entry_of_the_schema(
    tiny_graph: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is planned, laid out, filled, and verified, and nothing else names it."""
    from attlas.engine import contents, unit
    from attlas.engine.runtime.outputs import Wanted
    from attlas.engine.store import schema, store, verify

    entry = schema.Entry("mean_twice", schema.MEAN, "as an example", Wanted("attention", head_mean=True), chunk="layer")
    small = schema.Entry("tokens_too", (), "as another", Wanted("tokens"))
    monkeypatch.setattr(contents, "FROM_GRAPH", (*schema.FROM_GRAPH, entry, small))
    layered, large = (*schema.LAYERED, "mean_twice"), (*schema.LARGE, "mean_twice")
    for module in (schema, contents, store, unit, verify):  # what is derived from the entries when they are loaded
        monkeypatch.setattr(module, "LAYERED", layered)
        monkeypatch.setattr(module, "LARGE", large, raising=False)
    made = Store(run(tiny_graph, pictures, tmp_path / "s.zarr", keep=("none",), limit=12, batch_size=4).path)
    assert attlas.verify(made.path).faults == {}
    arrays = Session(tiny_graph)([pictures / key for key in paths(made)])
    assert made.dims("mean_twice") == ("image", "layer", "query", "key")
    np.testing.assert_allclose(made.read("mean_twice"), arrays["attention"].mean(2), atol=1e-6)
    np.testing.assert_array_equal(made.read("tokens_too"), arrays["tokens"])


def test_the_sample_holds_the_crops_the_model_saw(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Exactly the decoder's pixels."""
    from attlas.engine.runtime.decode import decode

    store = Store(run(tiny_graph, pictures, tmp_path / "s.zarr").path)
    keys = paths(store)
    for place, image in enumerate(store.read("sample")):
        expected = decode((pictures / keys[image]).read_bytes(), store.spec.recipe).pixels
        np.testing.assert_array_equal(store.read("pixels", place), expected)


def test_an_image_alone_equals_the_image_in_any_batch(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """At either end of a batch, beside a broken one, in a tail: the same bits."""
    folder = tmp_path / "mixed"
    shutil.copytree(pictures, folder)
    (folder / "n00000000" / "00004a.jpg").write_bytes(b"broken")
    stores = [
        Store(run(tiny_graph, place, tmp_path / f"{n}.zarr", batch_size=batch).path)
        for n, (place, batch) in enumerate([(pictures, 1), (pictures, 7), (folder, 4)])
    ]
    found = [dict(zip(paths(s), s.read("attention"), strict=True)) for s in stores]
    for key, attention in found[0].items():
        np.testing.assert_array_equal(attention, found[1][key])
        np.testing.assert_array_equal(attention, found[2][key])


def test_an_unreadable_image_keeps_its_place_as_fill(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Its rows are NaN, `error` says why, and every other row is as if it were not there."""
    folder = tmp_path / "images"
    shutil.copytree(pictures, folder)
    (folder / "n00000001" / "00000.jpg").write_bytes(b"no picture at all")
    whole = (folder / "n00000002" / "00002.jpg").read_bytes()
    (folder / "n00000002" / "00002.jpg").write_bytes(whole[: len(whole) // 2])
    result = attlas.run(tiny_graph, folder, tmp_path / "s.zarr")
    store = Store(result.path)
    keys, valid, errors = paths(store), store.read("valid"), store.read("error")
    assert result.errors == 2
    bad = [keys.index("n00000001/00000.jpg"), keys.index("n00000002/00002.jpg")]
    assert list(np.flatnonzero(~valid)) == bad
    assert all(errors[i] for i in bad)
    assert not any(errors[i] for i in np.flatnonzero(valid))
    for name in ("attention", "logits", "prefix_attention", "rollout", "distance", "entropy", "prefix_mass"):
        values = store.read(name)
        assert np.isnan(values[bad]).all(), name
        assert np.isfinite(values[valid]).all(), name


def test_a_finished_store_is_left_as_it_is(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """The same command is a no-op."""
    run(tiny_graph, pictures, tmp_path / "s.zarr")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s.zarr").rglob("*") if p.is_file()}
    result = run(tiny_graph, pictures, tmp_path / "s.zarr")
    assert result.done == 0
    assert result.finished
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "s.zarr").rglob("*") if p.is_file()}


def test_a_stopped_run_resumes_to_the_same_bytes(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Every chunk file of every array, statistics included."""
    attlas.run(tiny_graph, pictures, tmp_path / "whole.zarr")
    stop = threading.Event()
    seen = []

    def progress(p: Any) -> None:
        seen.append(p.done)
        if len(seen) == 3:
            stop.set()

    with pytest.raises(Interrupted, match="same command"):
        attlas.run(tiny_graph, pictures, tmp_path / "parts.zarr", progress=progress, stop=stop)
    part = Store(tmp_path / "parts.zarr")
    assert 0 < part.done.sum() < part.plan.units
    result = attlas.run(tiny_graph, pictures, tmp_path / "parts.zarr")
    assert result.finished
    assert result.done < 50
    assert chunk_files(tmp_path / "parts.zarr") == chunk_files(tmp_path / "whole.zarr")


def test_shards_together_equal_one_run(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """1/2 and 2/2 write every unit once."""
    attlas.run(tiny_graph, pictures, tmp_path / "whole.zarr")
    first = attlas.run(tiny_graph, pictures, tmp_path / "parts.zarr", shard=(1, 2))
    assert not first.finished
    second = attlas.run(tiny_graph, pictures, tmp_path / "parts.zarr", shard=(2, 2))
    assert second.finished
    assert first.done + second.done == 50
    assert chunk_files(tmp_path / "parts.zarr") == chunk_files(tmp_path / "whole.zarr")


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_no_byte(tiny_graph: Path, pictures: Path, tmp_path: Path, threads: int) -> None:
    """However the units are divided."""
    attlas.run(tiny_graph, pictures, tmp_path / "a.zarr")
    attlas.run(tiny_graph, pictures, tmp_path / "b.zarr", threads=threads)
    assert chunk_files(tmp_path / "a.zarr") == chunk_files(tmp_path / "b.zarr")


def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(tiny_graph: Path, tmp_path: Path) -> None:
    """Kill -9, again and again, then the same command."""
    folder = make_images(tmp_path / "images", 160)
    attlas.run(tiny_graph, folder, tmp_path / "whole.zarr")
    command = [sys.executable, "-m", "attlas.cli", "run", str(tiny_graph), str(folder), "-o", str(tmp_path / "k.zarr")]
    rng = np.random.default_rng(0)
    kills = 0
    for _ in range(8):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
        marks = tmp_path / "k.zarr" / "run" / "done"
        deadline = time.monotonic() + 60
        had = len(list(marks.glob("c.*")))
        while process.poll() is None and len(list(marks.glob("c.*"))) <= had and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.03))
        if process.poll() is None:
            kills += 1
        process.kill()
        process.wait()
    assert kills >= 2
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert chunk_files(tmp_path / "k.zarr") == chunk_files(tmp_path / "whole.zarr")


def test_an_interrupt_ends_with_130_and_a_hint(tiny_graph: Path, tmp_path: Path) -> None:
    """SIGTERM finishes the units in flight; the same command does the rest."""
    folder = make_images(tmp_path / "images", 400)
    command = [sys.executable, "-m", "attlas.cli", "run", str(tiny_graph), str(folder), "-o", "s.zarr"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    marks = tmp_path / "s.zarr" / "run" / "done"
    while process.poll() is None and not list(marks.glob("c.*")):
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "the same command goes on" in err
    assert "Traceback" not in err
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    assert Store(tmp_path / "s.zarr").done.all()


def test_another_graph_is_refused_with_the_difference(
    tiny_graph: Path, graph_factory: Callable[..., Path], pictures: Path, tmp_path: Path
) -> None:
    """And nothing of the store is touched."""
    run(tiny_graph, pictures, tmp_path / "s.zarr")
    before = chunk_files(tmp_path / "s.zarr")
    with pytest.raises(AttlasError, match=r"another run \(graph .* there, .* now\).*--overwrite"):
        run(graph_factory(seed=5), pictures, tmp_path / "s.zarr")
    with pytest.raises(AttlasError, match="store_dtype float16 there, float32 now"):
        run(tiny_graph, pictures, tmp_path / "s.zarr", store_dtype="float32")
    with pytest.raises(AttlasError, match="images 50 there, 9 now"):
        run(tiny_graph, pictures, tmp_path / "s.zarr", limit=9)
    assert chunk_files(tmp_path / "s.zarr") == before


def test_overwrite_replaces_a_store_of_ours_and_nothing_else(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """A folder that is no store is refused."""
    run(tiny_graph, pictures, tmp_path / "s.zarr", limit=3)
    run(tiny_graph, pictures, tmp_path / "s.zarr", limit=5, overwrite=True)
    assert Store(tmp_path / "s.zarr").plan.images == 5
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(AttlasError, match="is no attention store"):
        run(tiny_graph, pictures, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_limit_takes_images_evenly_spread(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Over the sorted list, and the store says so."""
    store = Store(run(tiny_graph, pictures, tmp_path / "s.zarr", limit=10).path)
    keys = sorted(p.relative_to(pictures).as_posix() for p in pictures.rglob("*.*"))
    assert paths(store) == keys[2::5]
    assert store.attrs["selection"] == "10 of 50 images, evenly spread over the sorted list"


def test_keep_none_leaves_rows_results_and_statistics(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """And the statistics are those of a run that keeps everything."""
    full = Store(attlas.run(tiny_graph, pictures, tmp_path / "full.zarr").path)
    none = Store(attlas.run(tiny_graph, pictures, tmp_path / "none.zarr", keep=("none",)).path)
    assert "attention" not in none
    for name in ("rollout", "distance", "entropy", "prefix_mass", "prefix_attention", "logits"):
        np.testing.assert_array_equal(full.read(name), none.read(name))


def test_only_the_layers_asked_for_are_kept(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """The others read as NaN and cost no bytes; statistics cover all layers."""
    store = Store(attlas.run(tiny_graph, pictures, tmp_path / "s.zarr", layers=[1]).path)
    attention = store.read("attention")
    assert np.isnan(attention[:, 0]).all()
    assert np.isfinite(attention[:, 1]).all()
    assert np.isfinite(store.read("distance")).all()
    assert not list((store.path / "attention").glob("c.*.0.0.0.0"))
    assert attlas.verify(store.path).faults == {}


def test_every_dtype_and_every_array_is_what_the_graph_gives(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """float32 to the bit, codes by their formula, head means and tokens."""
    store = Store(
        run(
            tiny_graph,
            pictures,
            tmp_path / "a.zarr",
            store_dtype="float32",
            keep=("attention", "attention_mean", "tokens"),
        ).path
    )
    arrays = Session(tiny_graph)([pictures / key for key in paths(store)])
    np.testing.assert_array_equal(store.read("attention"), arrays["attention"])
    np.testing.assert_allclose(store.read("attention_mean"), arrays["attention"].mean(axis=2), rtol=1e-6)
    np.testing.assert_array_equal(store.read("tokens"), arrays["tokens"])
    codes = Store(run(tiny_graph, pictures, tmp_path / "b.zarr", store_dtype="uint8").path)
    np.testing.assert_array_equal(
        codes.read("attention_code"), np.round(255 * np.sqrt(arrays["attention"])).astype(np.uint8)
    )
    assert "attention" not in codes


def test_non_finite_attention_ends_the_run_and_names_it(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """The layer and the image, and no unit is marked done with it."""
    with pytest.raises(AttlasError, match=r"\.(jpg|png): attention of layer 1 is not finite"):
        run(tiny_graph, pictures, tmp_path / "s.zarr", reducer=NoProvider)
    assert not Store(tmp_path / "s.zarr").done.any()


def test_a_graph_that_overflows_ends_the_run(
    graph_factory: Callable[..., Path], pictures: Path, tmp_path: Path
) -> None:
    """Found without any statistics."""
    with pytest.raises(AttlasError, match="not finite"):
        run(graph_factory(sharpness=float("inf")), pictures, tmp_path / "s.zarr")


def test_a_file_that_changed_since_the_plan_is_recorded(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Its rows are fill: the plan is what the numbers belong to."""
    from attlas.engine.sources import Folder

    folder = tmp_path / "images"
    shutil.copytree(pictures, folder)
    source = Folder.scan(folder)
    make_picture(77, 50, 50).save(folder / "n00000001" / "00001.jpg")
    store = Store(run(tiny_graph, source, tmp_path / "s.zarr").path)
    errors = dict(zip(paths(store), store.read("error"), strict=True))
    assert {key for key, text in errors.items() if text} == {"n00000001/00001.jpg"}
    assert "changed" in errors["n00000001/00001.jpg"]


def test_a_file_that_vanished_ends_the_run_resumably(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """It may come back, on a network above all; then the same command goes on."""
    from attlas.engine.sources import Folder

    folder = tmp_path / "images"
    shutil.copytree(pictures, folder)
    source = Folder.scan(folder)
    gone = folder / "n00000003" / "00043.jpg"
    gone.rename(tmp_path / "aside.jpg")
    with pytest.raises(AttlasError, match=r"00043\.jpg: cannot be read .* same command"):
        run(tiny_graph, source, tmp_path / "s.zarr")
    (tmp_path / "aside.jpg").rename(gone)
    assert run(tiny_graph, source, tmp_path / "s.zarr").finished


def test_links_and_special_files_are_not_followed(tiny_graph: Path, tmp_path: Path) -> None:
    """They are counted, never read."""
    from attlas.engine.sources import Folder

    folder = make_images(tmp_path / "images", 3)
    (tmp_path / "secret.jpg").write_bytes(b"x")
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "notes.txt").write_text("not an image")
    source = Folder.scan(folder)
    assert len(source.items) == 3
    assert source.others == {
        "symbolic links (not followed)": 2,
        "special files": 1,
        "files without an image suffix": 1,
    }


def test_labels_come_from_folders_or_wordnet_names(tmp_path: Path) -> None:
    """A flat folder of ImageNet's file names has labels, too."""
    from attlas.engine.sources import Folder

    make_images(tmp_path / "a", 2)
    make_picture(0).save(tmp_path / "a" / "n01514859_hen.jpg")
    make_picture(0).save(tmp_path / "a" / "holiday.jpg")
    assert {i.key: i.label for i in Folder.scan(tmp_path / "a").items} == {
        "holiday.jpg": "",
        "n00000000/00000.png": "n00000000",
        "n00000001/00001.jpg": "n00000001",
        "n01514859_hen.jpg": "n01514859",
    }


def test_two_runs_into_one_slice_are_refused(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """The lock of a living process holds, that of a dead one does not."""
    from attlas.engine.store.locks import locked

    store = tmp_path / "s.zarr"
    run(tiny_graph, pictures, store, shard=(1, 2))
    with locked(store, (2, 2)), pytest.raises(AttlasError, match="another run is writing shard 2/2"):
        run(tiny_graph, pictures, store, shard=(2, 2))
    with locked(store, (2, 2)), pytest.raises(AttlasError, match="another run is writing shard 1/1"):
        run(tiny_graph, pictures, store)
    with locked(store, (1, 1)), pytest.raises(AttlasError, match="another run is writing shard 2/2"):
        run(tiny_graph, pictures, store, shard=(2, 2))
    assert run(tiny_graph, pictures, store, shard=(2, 2)).finished


def test_a_store_that_is_being_written_is_not_overwritten(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Its writer keeps it; afterwards it goes."""
    from attlas.engine.store.locks import locked

    store = tmp_path / "s.zarr"
    run(tiny_graph, pictures, store, limit=3)
    with locked(store, (1, 1)), pytest.raises(AttlasError, match="a run is writing it"):
        run(tiny_graph, pictures, store, overwrite=True)
    assert Store(store).plan.images == 3
    run(tiny_graph, pictures, store, overwrite=True)
    assert Store(store).plan.images == 50


def test_the_position_embedding_travels_into_the_store(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """What no image changes stands in the store once, as the graph gives it."""
    run(tiny_graph, pictures, tmp_path / "s.zarr", limit=2, keep=("none",))
    store = Store(tmp_path / "s.zarr")
    assert store.dims("position_embedding") == ("token", "channel")
    expected = attlas.Session(tiny_graph, provider="cpu").constant("position_embedding")
    assert np.array_equal(store.read("position_embedding"), expected)


def test_runs_that_end_at_once_are_all_recorded(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Shards share the record, and none's account is lost."""
    run(tiny_graph, pictures, tmp_path / "s.zarr", limit=2, keep=("none",))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: Store(tmp_path / "s.zarr").record_run({"number": n}), range(64)))
    runs = attlas.inspect(tmp_path / "s.zarr")["runs"]
    assert runs[0]["images"] == 2
    assert {entry["number"] for entry in runs[1:]} == set(range(64))


def test_the_record_has_seconds_of_each_stage_and_batch(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Every stage with its sum, and the mean and the slowest batch; `inspect` shows them."""
    run(tiny_graph, pictures, tmp_path / "s.zarr", batch_size=2)
    (record,) = attlas.inspect(tmp_path / "s.zarr")["runs"]
    assert set(record["stages"]) == {"decode", "inference", "reduce", "write", "commit"}
    assert record["batches"] == 25
    for name, seconds in record["seconds_per_batch"].items():
        assert 0 < seconds["mean"] <= 25 * seconds["max"]
        assert seconds["mean"] * 25 == pytest.approx(record["stages"][name], abs=2e-3)


def test_a_full_disk_ends_the_run_resumably(
    tiny_graph: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whatever write it happens: a clear line, and the same bytes after resuming."""
    run(tiny_graph, pictures, tmp_path / "whole.zarr")
    write = Store.write
    for after in (0, 3, 11, 40):
        count = 0

        def full(self: Store, *values: Any, after: int = after, **named: Any) -> None:
            nonlocal count
            count += 1
            if count > after:
                raise OSError(28, "No space left on device")
            write(self, *values, **named)

        monkeypatch.setattr(Store, "write", full)
        with pytest.raises(AttlasError, match=r"cannot be written \(No space left on device\).*same command"):
            run(tiny_graph, pictures, tmp_path / f"{after}.zarr")
        monkeypatch.setattr(Store, "write", write)
        assert run(tiny_graph, pictures, tmp_path / f"{after}.zarr").finished
        assert chunk_files(tmp_path / f"{after}.zarr") == chunk_files(tmp_path / "whole.zarr")


def test_verify_finds_what_is_damaged_and_repair_reopens_it(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """A flipped bit, a missing chunk, rows that do not sum to 1; the same run then mends it."""
    run(tiny_graph, pictures, tmp_path / "s.zarr", batch_size=2)
    whole = chunk_files(tmp_path / "s.zarr")
    store = Store(tmp_path / "s.zarr", writable=True)
    assert attlas.verify(store.path).faults == {}
    flipped = next(f for f in map(store.path.joinpath, store.unit_keys(3)) if "attention/c." in f.as_posix())
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    next(f for f in map(store.path.joinpath, store.unit_keys(5)) if "logits/c." in f.as_posix()).unlink()
    images = store.plan.unit_range(7)
    store.write(
        "attention",
        images.start,
        store.read("attention", slice(images.start, images.start + 2))[:, :1] * 0.5,
        layer=slice(0, 1),
    )
    found = attlas.verify(store.path)
    assert set(found.faults) == {3, 5, 7}
    assert "does not read" in found.faults[3]
    assert "missing" in found.faults[5]
    assert "does not sum to 1" in found.faults[7]
    assert attlas.verify(store.path, repair=True).repaired
    assert run(tiny_graph, pictures, tmp_path / "s.zarr", batch_size=2).finished
    assert chunk_files(tmp_path / "s.zarr") == whole


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"keep": ("attentoin",)}, "--keep attentoin: choose from"),
        ({"keep": ("gradient",)}, "gives no gradients"),
        ({"keep": ("none", "attention")}, "goes with nothing else"),
        ({"layers": [2]}, "--layers 2: the graph gives layers 0-1"),
        ({"provider": "npu9"}, "--provider npu9: this onnxruntime has"),
        ({"shard": (3, 2)}, "--shard 3/2"),
        ({"limit": 0}, "--limit 0"),
        ({"batch_size": 0}, "--batch-size 0"),
    ],
)
def test_choices_that_do_not_fit_are_refused_before_anything_is_written(
    tiny_graph: Path, pictures: Path, tmp_path: Path, choices: dict[str, Any], message: str
) -> None:
    """With what would fit."""
    with pytest.raises(UsageError, match=message):
        run(tiny_graph, pictures, tmp_path / "s.zarr", **choices)
    assert not (tmp_path / "s.zarr").exists()


def test_uint8_is_refused_for_mixed_attention(
    graph_factory: Callable[..., Path], pictures: Path, tmp_path: Path
) -> None:
    """Codes need rows that are distributions."""
    with pytest.raises(UsageError, match="mixed"):
        run(graph_factory(attention_kind="mixed"), pictures, tmp_path / "s.zarr", store_dtype="uint8")


def test_a_dry_run_writes_nothing(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """It says images, bytes and units."""
    result = run(tiny_graph, pictures, tmp_path / "s.zarr", dry_run=True)
    assert not (tmp_path / "s.zarr").exists()
    assert result.estimate.images == 50
    assert result.estimate.bytes_raw > 50 * 2 * 2 * 7 * 7 * 2
    assert result.estimate.bytes_free > 0


def test_the_store_names_no_path_of_the_machine(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Nothing in its metadata or text leads back to where it was made."""
    attlas.run(tiny_graph, pictures, tmp_path / "s.zarr")
    for file in (tmp_path / "s.zarr").rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert str(tmp_path).encode() not in data
            assert str(pictures).encode() not in data
            assert os.uname().nodename.encode() not in data or file.suffix != ".json"


def test_plain_xarray_reads_the_store_without_attlas(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Dimensions have their names, and a mean over images is right, though the store is float16."""
    pytest.importorskip("xarray")
    folder = make_images(tmp_path / "images", 120)
    store = Store(run(tiny_graph, folder, tmp_path / "s.zarr").path)
    code = (
        "import sys; sys.modules['attlas'] = None\n"
        "import json, xarray\n"
        "ds = xarray.open_zarr('s.zarr')\n"
        "mean = ds['attention'].mean('image')\n"
        "print(json.dumps([list(ds['attention'].dims), mean.values.tolist()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    dims, mean = json.loads(done.stdout)
    assert dims == ["image", "layer", "head", "query", "key"]
    np.testing.assert_allclose(mean, store.read("attention").astype(np.float64).mean(axis=0), rtol=1e-6)


def test_a_session_takes_what_a_notebook_has(tiny_graph: Path, pictures: Path) -> None:
    """Paths, bytes, Pillow images and arrays give the same numbers."""
    from PIL import Image

    path = next(pictures.rglob("*.jpg"))
    session = Session(tiny_graph)
    expected = session(path)["attention"]
    assert expected.shape == (1, 2, 2, 7, 7)
    assert expected.dtype == np.float32
    np.testing.assert_allclose(expected.sum(-1), 1, rtol=1e-5)
    with Image.open(path) as picture:
        np.testing.assert_array_equal(session([picture])["attention"], expected)
    np.testing.assert_array_equal(session(path.read_bytes())["attention"], expected)
    with pytest.raises(UsageError, match="takes uint8 pixels of shape"):
        session(np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(AttlasError, match="cannot be decoded"):
        session(b"nothing")
    with pytest.raises(AttlasError, match="cannot be read"):
        session(pictures / "absent.jpg")


def test_a_provider_that_falls_back_is_an_error(tiny_graph: Path) -> None:
    """Silence would mean a GPU run on the CPU."""
    import onnxruntime
    from attlas.engine.runtime.providers import _has_driver

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers() or _has_driver():
        pytest.skip("needs onnxruntime's CUDA build on a machine without a GPU")
    with pytest.raises(AttlasError, match="CUDAExecutionProvider was asked for, but onnxruntime fell back"):
        Session(tiny_graph, provider="cuda")
    assert Session(tiny_graph, provider="auto").provider == "CPUExecutionProvider"


def test_real_weights_classify_the_real_images(shared: Path, tmp_path: Path) -> None:
    """deit_tiny's store gives PyTorch's own predictions, 132 of 167 right; rows and statistics are within 1e-3."""
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    from attlas.analysis import formulas
    from PIL import Image
    from safetensors.torch import load_file

    weights = shared / "models" / "deit_tiny_patch16_224.safetensors"
    attlas.export("deit_tiny_patch16_224", tmp_path / "deit.onnx", checkpoint=weights)
    result = attlas.run(tmp_path / "deit.onnx", shared / "images", tmp_path / "s.zarr")
    assert (result.labelled, result.top1, result.errors) == (167, 132, 0)
    store = Store(result.path)
    timm.layers.set_fused_attn(False)
    model = timm.create_model("deit_tiny_patch16_224").eval()
    model.load_state_dict(load_file(weights))
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model.pretrained_cfg))
    taps: list[Any] = []
    for block in model.blocks:
        block.attn.attn_drop.register_forward_hook(lambda _m, _i, out: taps.append(out.numpy()))
    worst, same = 0.0, 0
    names = ("distance", "distance_renormalized", "entropy", "entropy_patch")
    errors = dict.fromkeys((*names, "rollout"), 0.0)
    for i, key in enumerate(store.read("path")):
        taps.clear()
        with torch.no_grad():
            logits = model(transform(Image.open(shared / "images" / key).convert("RGB"))[None])
        same += int(logits.argmax()) == int(store.read("logits", i).argmax())
        true = np.concatenate(taps).astype(np.float64)
        expected = {
            "distance": formulas.distance(true, (14, 14), (16, 16)),
            "distance_renormalized": formulas.distance_renormalized(true, (14, 14), (16, 16)),
            "entropy": formulas.entropy(true),
            "entropy_patch": formulas.entropy_patch(true, 1),
            "rollout": formulas.rollout(list(true), (14, 14)),
        }
        for name, value in expected.items():
            error = np.abs(store.read(name, i) - value).max() / np.abs(value).max()
            errors[name] = max(errors[name], float(error))
        variation = np.abs(store.read("attention", i).astype(np.float32) - np.concatenate(taps)).sum(-1) / 2
        worst = max(worst, float(variation.max()))
    assert same == 167
    assert worst <= 1e-3
    assert max(errors.values()) <= 1e-3, errors

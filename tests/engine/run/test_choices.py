"""What can be chosen of a run, and what is refused."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import pytest
from attlas.engine import Session, Store, job
from attlas.engine.runner import run
from attlas.engine.sources import open_source
from attlas.engine.store.schema import CODECS
from attlas.engine.unit import Buffers
from attlas.errors import AttlasError, UsageError
from support import chunk_files, make_images, make_picture
from support_run import paths


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
    with pytest.raises(AttlasError, match="codec lz4 there, none now"):
        run(tiny_graph, pictures, tmp_path / "s.zarr", codec="none")
    theirs = Store(tmp_path / "s.zarr").plan
    ours, items = replace(theirs, identity={**theirs.identity, "precision": "bfloat16"}), open_source(pictures).items
    with pytest.raises(AttlasError, match="precision float32 there, bfloat16 now"):
        job._compare(tmp_path / "s.zarr", theirs, ours, None, items)
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


def test_a_codec_changes_the_bytes_of_large_arrays_alone(tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """In a folder and in a bucket; the values are the same."""
    keep = ("attention", "tokens")
    stores = {
        codec: Store(run(tiny_graph, pictures, tmp_path / f"{codec}.zarr", keep=keep, codec=codec).path)
        for codec in CODECS
    }
    default = chunk_files(stores["lz4"].path)
    assert "codec" not in stores["lz4"].plan.identity  # as in stores of earlier versions
    for codec in ("zstd", "none"):
        store = stores[codec]
        assert store.plan.identity["codec"] == store.attrs["kept"]["codec"] == codec
        files = chunk_files(store.path)
        assert {name.split("/")[0] for name in files if files[name] != default[name]} == set(keep)
        for name in store.names:
            np.testing.assert_array_equal(store.read(name), stores["lz4"].read(name))
    assert len(stores["none"].chunk("attention", (0, 0, 0, 0, 0)) or b"") == stores["none"].plan.batch * 2 * 49 * 2 + 4
    with pytest.raises(UsageError, match="--codec gzip: choose from lz4, zstd, none"):
        run(tiny_graph, pictures, tmp_path / "s.zarr", codec="gzip")


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


@pytest.mark.parametrize("where", ["host", "graph"])
def test_all_statistics_of_a_store_of_codes_are_of_the_codes(
    where: Any, tiny_graph: Path, pictures: Path, tmp_path: Path
) -> None:
    """Those of the run equal those that an analysis makes of what is stored, and say so."""
    formulas = pytest.importorskip("attlas.analysis.formulas")
    if where == "graph":
        pytest.importorskip("ndonnx")
    path = attlas.run(tiny_graph, pictures, tmp_path / "s.zarr", store_dtype="uint8", statistics=where).path
    attlas.analyze(path, ["distance", "distance:unit=patches"])
    store = Store(path)
    valid = store.read("valid")
    a = formulas.decode_codes(store.read("attention_code")[valid], np.float64)
    wanted = formulas.distance(a, store.spec.grid, store.spec.patch_size)
    np.testing.assert_allclose(store.read("distance")[valid], wanted, rtol=1e-5)
    asked = store.read("distance.unit-patches")[valid] * store.spec.patch_size[0]
    np.testing.assert_allclose(store.read("distance")[valid], asked, rtol=1e-5)
    for name in ("distance", "distance_mean", "distance.unit-patches"):
        assert store.array(name).attrs["computed_from"] == "attention_code"
    plain = Store(attlas.run(tiny_graph, pictures, tmp_path / "f.zarr").path)
    assert "computed_from" not in plain.array("distance").attrs


def test_links_to_files_are_followed_and_nothing_else(tmp_path: Path) -> None:
    """A folder of links is a usual subset: each has its own name. Folders may loop, and pipes block: counted."""
    from attlas.engine.sources import Folder

    folder = make_images(tmp_path / "images", 3)
    (tmp_path / "picture").write_bytes(b"bytes")
    os.mkfifo(folder / "pipe.jpg")
    links = {"cats/link.jpg": tmp_path / "picture", "loop": folder, "gone.jpg": tmp_path / "gone", "me.jpg": "me.jpg",
             "queue.jpg": "pipe.jpg", "null.jpg": "/dev/null", "notes.md": tmp_path / "picture"}  # fmt: skip
    (folder / "cats").mkdir()
    for name, target in links.items():
        (folder / name).symlink_to(target)
    (folder / "notes.txt").write_text("not an image")
    source = Folder.scan(folder)
    assert len(source.items) == 4
    link = source.items[0]
    assert (link.key, link.label, link.size, source.read(link)) == ("cats/link.jpg", "cats", 5, b"bytes")
    assert source.others == {
        "links to folders (not followed)": 1,
        "links that lead nowhere": 2,
        "special files": 3,
        "files without an image suffix": 2,
    }


def test_a_link_that_leads_elsewhere_since_is_not_read(tmp_path: Path) -> None:
    """What it leads to is checked when it is opened: a pipe would block, and another file is another image."""
    from attlas.engine.sources import ChangedError, Folder

    one, folder = make_images(tmp_path / "one", 1), tmp_path / "images"
    folder.mkdir()
    link = folder / "a.png"
    link.symlink_to(one / "n00000000" / "00000.png")
    source = Folder.scan(folder)
    (tmp_path / "other").write_bytes(b"other")
    os.mkfifo(tmp_path / "pipe")
    for target, said in (
        ("other", "has changed"),
        ("pipe", "is no regular file"),
        ("images", "is no regular|directory"),
    ):
        link.unlink()
        link.symlink_to(tmp_path / target)
        with pytest.raises((ChangedError, OSError), match=said):
            source.read(source.items[0])


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


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"keep": ("attentoin",)}, "--keep attentoin: choose from"),
        ({"keep": ("gradient",)}, "gives no gradients"),
        ({"keep": ("none", "attention")}, "goes with nothing else"),
        ({"layers": [2]}, "--layers 2: the graph gives layers 0 to 1"),
        ({"provider": "npu9"}, "--provider npu9: there is"),
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


def test_a_batch_of_more_than_all_images_is_all(
    tiny_graph: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended in a traceback. A store that was begun so by an earlier version is finished."""
    run(tiny_graph, pictures, tmp_path / "s.zarr", limit=3, batch_size=10**13)
    plan = Store(tmp_path / "s.zarr").plan
    assert (plan.batch, plan.unit) == (3, 3)
    assert run(tiny_graph, pictures, tmp_path / "s.zarr", limit=3, batch_size=64).done == 0
    make = job.make_plan
    with monkeypatch.context() as patch:
        before: Any = lambda *given, **named: replace(make(*given, **named), batch=64, unit=64, at_once=64)  # noqa: E731
        patch.setattr(job, "make_plan", before)
        assert run(tiny_graph, pictures, tmp_path / "old.zarr", limit=3, batch_size=64).finished
    Store(tmp_path / "old.zarr", writable=True).reopen(0)
    assert run(tiny_graph, pictures, tmp_path / "old.zarr", limit=3, batch_size=64).done == 3
    assert Store(tmp_path / "old.zarr").plan.batch == 64


def test_what_does_not_fit_is_one_line(
    tiny_graph: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks that no codec encodes before there is a store; memory with the amount that numpy names."""
    with monkeypatch.context() as patch:
        patch.setattr(job, "MAX_CHUNK", 600)
        with pytest.raises(UsageError, match=r"--batch-size 4: a chunk of attention would .* choose 3 or fewer"):
            run(tiny_graph, pictures, tmp_path / "s.zarr", limit=4, batch_size=4)
    assert not (tmp_path / "s.zarr").exists()

    def full(*_: Any, **_choices: Any) -> None:
        raise MemoryError("Unable to allocate 5.1 TiB for an array with shape (9,) and data type float32")

    with monkeypatch.context() as patch:
        patch.setattr(Buffers, "__init__", full)
        with pytest.raises(AttlasError, match=r"s\.zarr: needs 5\.1 TiB of memory, .* --batch-size, with --overwrite"):
            run(tiny_graph, pictures, tmp_path / "s.zarr", limit=4)
    assert run(tiny_graph, pictures, tmp_path / "s.zarr", limit=4, batch_size=2, overwrite=True).finished
    Store(tmp_path / "s.zarr", writable=True).reopen(0)
    # What is done is not to be overwritten, and the batch of a store is in its plan.
    monkeypatch.setattr(Buffers, "__init__", full)
    for choices in ({"batch_size": 2}, {"batch_size": 2, "shard": (1, 2)}):
        with pytest.raises(AttlasError, match=r"5\.1 TiB .* free memory .* same command again without --overwrite$"):
            run(tiny_graph, pictures, tmp_path / "s.zarr", limit=4, **choices)
    monkeypatch.setattr(job, "make_plan", full)
    for overwrite, advice in ((False, "free memory"), (True, "smaller --batch-size$")):
        with pytest.raises(AttlasError, match=advice):
            run(tiny_graph, pictures, tmp_path / "s.zarr", limit=4, overwrite=overwrite)
    assert Store(tmp_path / "s.zarr").done.sum() == 1


def test_a_store_of_which_nothing_could_be_read_says_so(tiny_graph: Path, tmp_path: Path) -> None:
    """That `attlas run` goes on with it was wrong: it is finished."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"no picture")
    path = tmp_path / "s.zarr"
    assert run(tiny_graph, tmp_path / "images", path).errors == 1
    commands: list[Callable[[], Any]] = [
        lambda: attlas.report([path], tmp_path / "r.html"),
        lambda: attlas.view(path, output=tmp_path / "v.html"),
        lambda: attlas.show(path, output=tmp_path / "s.png"),
        lambda: attlas.conform(tiny_graph, against=path),
    ]
    for command in commands:
        with pytest.raises(AttlasError, match=r"s\.zarr: none of its 1 images could be read \(the first: a\.png: "):
            command()
    Store(path, writable=True).reopen(0)
    assert "`attlas run` goes on with it" in Store(path).why_none

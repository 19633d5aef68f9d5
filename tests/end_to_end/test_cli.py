"""The command line: options and one library call, one-line errors, documented exit codes."""

import inspect
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attlas
import click
import pytest
from attlas.cli import cli, main
from attlas.errors import AttlasError
from attlas.exporter.spec import Weights
from click.testing import CliRunner
from support import make_graph, make_images, make_picture

Command = Callable[..., subprocess.CompletedProcess[str]]


def process(*arguments: Any, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "attlas.cli", *map(str, arguments)], capture_output=True, text=True, cwd=cwd, check=False
    )


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The error of a command that failed as it should: one line, no traceback."""
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def small_store(tiny_graph: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "s.zarr"
    attlas.run(tiny_graph, pictures, path, limit=4)
    attlas.analyze(path)
    return path


@pytest.mark.parametrize(("name", "rest"), [("analyze", []), ("verify", []), ("report", ["-o", "r.html"])])
def test_an_interrupt_says_that_the_same_command_goes_on(
    name: str, rest: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(attlas, name, interrupted)
    with pytest.raises(SystemExit) as raised:
        main([name, "s.zarr", *rest])
    assert raised.value.code == 130
    assert "attlas: interrupted; the same command goes on" in capsys.readouterr().err


def test_too_little_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise MemoryError("Unable to allocate 5.1 TiB for an array with shape (9,) and data type float32")

    monkeypatch.setattr(attlas, "verify", full)
    with pytest.raises(SystemExit) as raised:
        main(["verify", "s.zarr"])
    said = "attlas: needs 5.1 TiB of memory, which is not there; free some, and run the same command again\n"
    assert (raised.value.code, capsys.readouterr().err) == (1, said)


def test_sigterm_ends_a_command_as_ctrl_c_does(
    command: Command, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch system's signal runs what cleans up, and ends with 130."""
    page = pytest.importorskip("attlas.analysis.report.page")

    def terminated(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(page._Page, "fill", terminated)
    done = command("report", small_store, "-o", "r.html", cwd=tmp_path)
    assert (done.returncode, list(tmp_path.iterdir())) == (130, [])
    assert done.stderr.splitlines()[-1].startswith("attlas: interrupted; the same command goes on")
    monkeypatch.setattr(attlas, "export", terminated)
    done = command("export", "some_model", "-o", "x.onnx", "--random-init", cwd=tmp_path)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "attlas: interrupted; nothing was written")


def test_the_way_through(command: Command, tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """run, inspect, verify, analyze: each says what it did, data on stdout; the first in a process of its own."""
    done = process("run", tiny_graph, pictures, "-o", "s.zarr", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert (data["done"], data["errors"], data["finished"], data["labelled"]) == (50, 0, True, 50)
    assert data["provider"] == "CPUExecutionProvider"
    assert set(data["stages"]) == {"decode", "inference", "reduce", "write", "commit"}
    data = json.loads(command("inspect", "s.zarr", "--json", cwd=tmp_path).stdout)
    assert (data["images"], data["images_done"], data["finished"]) == (50, 50, True)
    assert data["arrays"]["attention"]["dims"] == {"image": 50, "layer": 2, "head": 2, "query": 7, "key": 7}
    assert "attention" in command("inspect", "s.zarr", cwd=tmp_path).stdout
    data = json.loads(command("inspect", tiny_graph, "--json", cwd=tmp_path).stdout)
    assert data["outputs"]["attention.1"] == {"image": None, "head": 2, "query": 7, "key": 7}
    assert command("verify", "s.zarr", cwd=tmp_path).returncode == 0
    done = command("analyze", "s.zarr", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["layer", "0", "1", "uniform"]
    done = command("analyze", "s.zarr", "--json", cwd=tmp_path)
    assert "distance_mean" in json.loads(done.stdout)["summed"]


def test_unreadable_images_end_with_3(command: Command, tiny_graph: Path, tmp_path: Path) -> None:
    """The run finishes, says how many, and the exit code tells a script."""
    folder = make_images(tmp_path / "images", 6)
    (folder / "bad.jpg").write_bytes(b"bad")
    done = command("run", tiny_graph, folder, "-o", "s.zarr", cwd=tmp_path)
    assert done.returncode == 3
    assert "1 image could not be read" in done.stdout


def test_a_dry_run_says_what_it_would_be(command: Command, tiny_graph: Path, pictures: Path, tmp_path: Path) -> None:
    """Images, bytes raw and expected, free space."""
    done = command("run", tiny_graph, pictures, "-o", "s.zarr", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0
    assert "50 images" in done.stdout
    assert "free" in done.stdout
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "absent.onnx", "{images}", "-o", "s"], 1, "there is no such graph"),
        (["run", "{images}/n00000000/00000.png", "{images}", "-o", "s"], 1, "is no ONNX model"),
        (["run", "foreign.onnx", "{images}", "-o", "s"], 1, "without attlas metadata"),
        (["run", "newer.onnx", "{images}", "-o", "s"], 1, "format 99, this attlas reads up to 1"),
        (["run", "{graph}", "absent", "-o", "s"], 1, "there is no such folder"),
        (["run", "{graph}", "{graph}", "-o", "s"], 2, "is a graph, not images"),
        (["run", "{images}", "{graph}", "-o", "s"], 2, "is a folder, not a graph"),
        (["run", "{graph}", "empty", "-o", "s"], 1, "no images found (nothing at all)"),
        (["run", "{graph}", "texts", "-o", "s"], 1, "no images found (files without an image suffix: 1)"),
        (
            ["run", "{graph}", "{images}", "-o", "texts"],
            1,
            "texts: exists, and is a folder that is no attention store; choose",
        ),
        (["run", "{graph}", "{images}", "-o", "texts/notes.txt"], 1, "notes.txt: exists, and is a file that is no"),
        (
            ["run", "{graph}", "{images}", "-o", "texts/notes.txt/s.zarr"],
            1,
            "texts/notes.txt/s.zarr: cannot be written",
        ),
        (["run", "{graph}", "{images}", "-o", "s", "--keep", "x"], 2, "--keep x: choose from"),
        (["run", "{graph}", "{images}", "-o", "s", "--shard", "5"], 2, "--shard 5: write K/N"),
        (["run", "{graph}", "{images}", "-o", "s", "--batch-size", "x"], 2, "--batch-size x"),
        (["run", "{graph}", "{images}", "-o", "s", "--provider", "cdua"], 2, "there is"),
        (["inspect", "absent"], 1, "no such graph or store"),
        (["inspect", "texts"], 1, "is no attention store"),
        (["verify", "absent"], 1, "there is no such store"),
        (["analyze", "absent"], 1, "there is no such store"),
        (["report", "absent", "-o", "r.html"], 1, "there is no such store"),
        (["judge", "s", "g.onnx", "x", "--silence", "mean"], 2, "--silence: is what --heads judges by"),
        (["judge", "s", "g.onnx", "x", "--heads", "--fill", "blur"], 2, "--heads: judges no maps; leave --fill out"),
        (["export", "vit_tiny", "-o", "g.onnx", "--seed", "3"], 2, "--seed: draws the weights of --random-init"),
        (["show", "s", "--seed", "3"], 2, "--seed 3: is of --random N"),
        (["view", "s", "--overwrite"], 2, "--overwrite: is for a file"),
        (["view", "s", "-o", "v.html", "--no-browser"], 2, "--no-browser: is for a page that is served"),
        (["export", "vit_tiny", "-o", "g.onnx", "--pretrained", "--random-init"], 2, "choose one"),
        (["export", "vit_tiny_patch16_224", "-o", "g.onnx", "--img-size", "a"], 2, "--img-size a"),
        (["export", "vit_tiny_patch16_224", "-o", "g.onnx", "--img-size", "1,2,3"], 2, "--img-size 1,2,3"),
        (["export", "vit_tiny_patch16_224"], 2, "Missing option '-o' / '--output' (`attlas export --help`"),
        (["run", "{graph}", "-o", "s"], 2, "Missing argument 'IMAGES' (`attlas run --help` lists"),
        (["run", "{graph}", "{images}", "-o", "s", "--layers", "0,1-0"], 2, "--layers 0,1-0: write layers as"),
        (["run", "{graph}", "{images}", "-o", "s", "--layers", "a-b"], 2, "--layers a-b: write layers as"),
        (["run", "{graph}", "{images}", "-o", "s", "--shard", "a/b"], 2, "--shard a/b: write K/N"),
        (["rum"], 2, "No such command 'rum'"),
        (["report", "{store}", "-o", "x.pdf"], 2, "x.pdf: a report is an HTML page; name it"),
        (["report", "{store}", "-o", "folder.html"], 2, "folder.html: exists"),
        (["report", "{store}", "-o", "texts/notes.txt/x.html"], 1, "notes.txt: cannot be written"),
        (["report", "{store}", "-o", "x.html", "--figures", "texts"], 2, "texts: holds files"),
        (["report", "{store}", "-o", "x.html", "--figures", "texts/notes.txt"], 2, "notes.txt: is a file"),
        (["report", "{store}", "-o", "x.html", "--images", "absent"], 2, "--images absent: there is no such folder"),
        (["report", "{store}", "-o", "x.html", "--boxes", "absent"], 2, "--boxes absent: there is no such file"),
        (["demo", "-o", "texts/notes.txt"], 1, "exists and holds something else"),
        (["demo", "-o", "texts"], 1, "exists and holds something else"),
    ],
)
def test_bad_input_is_one_line(
    command: Command,
    tiny_graph: Path,
    pictures: Path,
    small_store: Path,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    """What was found, where, and what to do; never a traceback."""
    import onnx

    for name in ("empty", "texts", "folder.html"):
        (tmp_path / name).mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("x")
    model = onnx.load(tiny_graph)
    model.metadata_props[0].value = model.metadata_props[0].value.replace('"attlas_format": 1', '"attlas_format": 99')
    onnx.save(model, tmp_path / "newer.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    words = [a.format(graph=tiny_graph, images=pictures, store=small_store) for a in arguments]
    assert message in one_line(command(*words, cwd=tmp_path), code)


def test_help_lists_the_commands_in_the_order_of_the_work(command: Command, tmp_path: Path) -> None:
    """And the exit codes."""
    done = command("--help", cwd=tmp_path)
    listed = [line.split()[0] for line in done.stdout.partition("Commands:")[2].strip().splitlines()]
    work = ["export", "show", "run", "analyze", "view", "report", "judge", "compare", "conform"]
    assert listed == [*work, "inspect", "verify", "models", "doctor", "demo"]
    assert "130" in done.stdout
    assert attlas.__version__ in command("--version", cwd=tmp_path).stdout


def test_doctor_tries_the_providers(command: Command, tmp_path: Path) -> None:
    """The CPU works; what does not says why."""
    done = command("doctor", "--json", cwd=tmp_path)
    data = json.loads(done.stdout)
    assert data["providers"]["CPUExecutionProvider"] == "works"
    assert done.returncode == (1 if data["problems"] else 0)
    assert data["versions"]["attlas"] == attlas.__version__


def test_doctor_says_when_two_wheels_break_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both onnxruntime wheels write the same files."""
    from attlas.engine import doctor as module

    monkeypatch.setattr(module, "_version", lambda name: "1.30.0" if name.startswith("onnxruntime") else None)
    monkeypatch.setattr(module, "_try", lambda provider: ("works", 1.0))
    problems = module.doctor()["problems"]
    assert any("onnxruntime and onnxruntime-gpu" in p and "pip uninstall" in p for p in problems)


def test_layers_are_written_as_ranges(command: Command, graph_factory: Callable[..., Path], tmp_path: Path) -> None:
    """`0,2-3` names three."""
    make_picture(1).save(tmp_path / "a.png")
    graph = graph_factory(layers=5)
    done = command("run", graph, tmp_path, "-o", "s.zarr", "--layers", "0,2-3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert attlas.Store(tmp_path / "s.zarr").attrs["kept"]["layers"] == [0, 2, 3]


COMMANDS = [[], *([name] for name in cli.commands)]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command) or "attlas")
def test_the_help_is_laid_out(command: list[str]) -> None:
    """Examples keep their lines, nothing is wider than a terminal, and every option that is shown says what it is."""
    shown = CliRunner().invoke(cli, [*command, "--help"], terminal_width=80)
    assert shown.exit_code == 0
    assert "\\b" not in shown.output
    assert "\b" not in shown.output
    assert max(map(len, shown.output.splitlines())) <= 80
    group: click.Command = cli.commands[command[0]] if command else cli
    lines = shown.output.splitlines()
    for option in (p for p in group.params if isinstance(p, click.Option)):
        assert any(line.strip().startswith(option.opts[0]) for line in lines) != option.hidden, option.opts
        assert option.hidden or option.help


def test_the_help_keeps_examples_apart() -> None:
    """One a line, as they are typed."""
    lines = [line.strip() for line in CliRunner().invoke(cli, ["--help"]).output.splitlines()]
    examples = [line for line in lines if line.startswith("attlas ")]
    assert [line.split()[1] for line in examples] == ["export", "show", "run", "analyze", "view", "report"]
    text = CliRunner().invoke(cli, ["run", "--help"]).output
    assert "\n    a folder of images, or of .tar or .parquet files\n" in text
    assert "\n    a .parquet with a column of images\n" in text
    assert "--threads" not in text


def test_off_a_terminal_long_commands_say_that_they_begin_and_end(
    command: Command, tiny_graph: Path, pictures: Path, tmp_path: Path
) -> None:
    """On stderr, so that stdout stays data."""
    for arguments in (
        ["run", tiny_graph, pictures, "-o", "s.zarr"],
        ["analyze", "s.zarr"],
        ["verify", "s.zarr"],
        ["report", "s.zarr", "-o", "r.html", "--only", "distance"],
    ):
        done = command(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stderr.splitlines() if line.startswith(f"{arguments[0]}")]
        assert len(lines) >= 2, done.stderr
        assert ": done in " in lines[-1]
        assert "done in" not in done.stdout


def test_the_library_run_names_what_the_engine_takes() -> None:
    """The same parameters, types and defaults, each documented; but for the analysis room's statistics."""
    from attlas.engine import runner

    ours, theirs = inspect.signature(attlas.run).parameters, inspect.signature(runner.run).parameters
    assert list(ours) == [name for name in theirs if name != "reserved"]  # the registry of statistics says it
    assert {n: (p.default, p.kind) for n, p in ours.items() if n != "reducer"} == {
        n: (p.default, p.kind) for n, p in theirs.items() if n not in ("reducer", "reserved")
    }
    assert {n: p.annotation for n, p in ours.items() if n != "reducer"} == {
        n: p.annotation for n, p in theirs.items() if n not in ("reducer", "reserved")
    }
    assert ours["reducer"].default == "auto"

    documented = [line.strip().partition(":")[0] for line in (attlas.run.__doc__ or "").splitlines()]
    assert [name for name in documented if name in ours] == list(ours)


@pytest.mark.parametrize("source", ["pretrained", "checkpoint", "random"])
def test_a_name_has_its_tag_only_with_its_weights(source: Any, pictures: Path, tmp_path: Path) -> None:
    """Whoever reads `.fb_in1k` takes it for those weights, in graphs of earlier versions too."""
    make_graph(tmp_path / "g.onnx", tag="fb_in1k", weights=Weights(source, "0" * 64))
    attlas.run(tmp_path / "g.onnx", pictures, tmp_path / "s", limit=2, keep=["none"])
    expected = "tiny_test.fb_in1k" if source == "pretrained" else "tiny_test"
    assert attlas.inspect(tmp_path / "s")["model"] == expected
    assert attlas.open(tmp_path / "s").attrs["model"] == expected
    assert attlas.inspect(tmp_path / "g.onnx")["tag"] == "fb_in1k"


def test_a_demo_keeps_the_weights_of_an_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the hub does not answer, random weights never take the place of real ones."""
    import attlas as package
    from attlas.engine import photos

    def offline(*_arguments: Any, random_init: bool = False, **_options: Any) -> None:
        assert not random_init
        raise AttlasError("the model hub does not answer; pass --checkpoint FILE, or --random-init")

    monkeypatch.setattr(photos, "write_photos", lambda _folder: [])
    monkeypatch.setattr(package, "_load", lambda _module: type("Module", (), {"export": staticmethod(offline)}))
    (tmp_path / "photographs").mkdir()
    graph = tmp_path / "m.onnx"
    make_graph(graph, weights=Weights("checkpoint", "0" * 64))
    before = graph.read_bytes()
    with pytest.raises(AttlasError, match="is of an earlier demo with real weights"):
        attlas.demo(tmp_path, model="m")
    assert graph.read_bytes() == before

"""Long steps show that they begin and end; libraries are silent until they are asked."""

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attlas
import pytest
from attlas.progress import Display, Step, shows


class Terminal(io.StringIO):
    """What is written to a terminal."""

    def isatty(self) -> bool:
        """It says that it is one."""
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Stderr as a terminal, from here to the end of the test; pytest puts its own back between fixture and test."""
    found = Terminal()
    monkeypatch.setattr(sys, "stderr", found)
    return found


def test_off_a_terminal_a_step_says_that_it_begins_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing in between for a while, however often it is told."""
    with Display("run a.onnx", "images") as display:
        for done in range(0, 2001, 10):
            display(done, 2000)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "run a.onnx: 0/2,000 images"
    assert last.startswith("run a.onnx: done in ")


def test_off_a_terminal_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the rate since the beginning, which is not that of what was done before."""
    now = 0.0
    monkeypatch.setattr("attlas.progress.time.monotonic", lambda: now)
    with Display("run", "images") as display:
        display.note("a resumed run")
        now = 10.0
        display(100, 400)
        for now in (30.0, 50.0, 60.0):
            display(90 + int(now), 400)
    assert capsys.readouterr().err.splitlines() == [
        "run: a resumed run",
        "run: 100/400 images",
        "run: 140/400 images, 1.0 images/s",
        "run: done in 60.0 s",
    ]


def test_named_steps_each_have_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """As they begin, with their place."""
    with Display("export m", "steps") as display:
        display(Step("tracing", 1, 2))
        display("a remark")
        display(Step("writing", 2, 2))
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == ["export m: tracing (1/2)", "export m: a remark", "export m: writing (2/2)"]
    assert lines[3].startswith("export m: done in ")


def test_what_fails_does_not_say_that_it_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    """The error says the rest."""
    display = Display("run", "images")
    display.__enter__()
    display(0, 3)
    display.__exit__(ValueError)
    assert capsys.readouterr().err == "run: 0/3 images\n"


def test_what_has_nothing_to_do_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """No line that it begins, none that it ends."""
    with Display("analyze", "images") as display:
        display(0, 0)
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_one_bar_with_a_total(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines stand above it."""
    terminal = on_terminal(monkeypatch)
    with Display("run a.onnx", "images") as display:
        display.note("50 images")
        for done in range(0, 51, 25):
            display(done, 50)
    text = terminal.getvalue()
    assert text.startswith("run a.onnx: 50 images\n")
    assert "run a.onnx: 100%" in text
    assert "50/50" in text
    assert text.count("\n") == 2


def test_a_bar_of_named_steps_ends_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step begins at three of four."""
    terminal = on_terminal(monkeypatch)
    with Display("export m", "steps") as display:
        for number in range(1, 5):
            display(Step(f"step {number}", number, 4))
    assert "step 4" in terminal.getvalue()
    assert "4/4" in terminal.getvalue().splitlines()[-1].rpartition("\r")[2]


def test_true_is_a_display_and_anything_else_is_handed_on() -> None:
    """The function sees what the caller gave, but for True."""

    @shows("things")
    def work(name: str, *, progress: Any = None) -> Any:
        return progress

    assert isinstance(work("a", progress=True), Display)
    assert work("a", progress=print) is print
    assert work("a", progress=None) is None
    assert work("a", progress=False) is False
    assert work("a") is None


CALLS: dict[str, Callable[[Path, Path, Path, Any], Any]] = {
    "run": lambda graph, pictures, store, progress: attlas.run(
        graph, pictures, store, overwrite=True, progress=progress
    ),
    "analyze": lambda _graph, _pictures, store, progress: attlas.analyze(store, ["score_matrix"], progress=progress),
    "verify": lambda _graph, _pictures, store, progress: attlas.verify(store, progress=progress),
    "report": lambda _graph, _pictures, store, progress: attlas.report(
        store, store.with_suffix(".html"), overwrite=True, only=["distance"], progress=progress
    ),
}


@pytest.fixture(scope="module")
def store(tiny_graph: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "s.zarr"
    attlas.run(tiny_graph, pictures, path)
    return path


@pytest.mark.parametrize("name", CALLS)
def test_every_long_call_takes_true_a_function_or_nothing(
    name: str, tiny_graph: Path, pictures: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """True shows it on stderr, a function gets what it got before, and the rest is silent."""
    told: list[tuple[Any, ...]] = []
    CALLS[name](tiny_graph, pictures, store, None)
    CALLS[name](tiny_graph, pictures, store, lambda *now: told.append(now))
    out, err = capsys.readouterr()
    assert (out, err) == ("", "")
    kinds = {"run": "Progress", "analyze": "Progress", "verify": "int", "report": "str"}
    assert {type(now[0]).__name__ for now in told} <= {kinds[name], "Step"}
    if name != "analyze":
        CALLS[name](tiny_graph, pictures, store, True)
    else:
        attlas.analyze(store, ["score_matrix"], overwrite=True, progress=True)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert len(lines) >= 2
    assert all(line.startswith(name) for line in lines)
    assert lines[-1].startswith(f"{name} {tiny_graph.name}: done" if name == "run" else f"{name} s.zarr: done")


def test_a_run_tells_first_what_it_will_be(
    tiny_graph: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images and bytes, once."""
    attlas.run(tiny_graph, pictures, tmp_path / "s", progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("run tiny.onnx: 50 images, ")
    assert sum(" raw, about " in line for line in lines) == 1


COMMANDING = "a\x1b[31m\r\n\x9b1mb\u202e.jpg"
SHOWN = r"a\u001b[31m\u000d\u000a\u009b1mb\u202e.jpg"


def test_a_name_does_not_command_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of files, classes and models may hold anything; JSON stays what it is, and the path of what was made."""
    from attlas.commands.shared import note, say, say_json

    say(COMMANDING, f"{COMMANDING} größer")
    note(COMMANDING)
    said = capsys.readouterr()
    assert (said.out, said.err) == (f"{SHOWN}\n{SHOWN} größer\n", f"{SHOWN}\n")
    say_json({COMMANDING: [1]})
    said = capsys.readouterr()
    assert json.loads(said.out) == {COMMANDING: [1]}
    assert said.out.isascii()
    say(Path("a\r.jpg"))
    say()
    assert capsys.readouterr().out == "a\r.jpg\n"
    with Display(COMMANDING, "images") as display:
        display.note(COMMANDING)
    assert capsys.readouterr().err.startswith(f"{SHOWN}: {SHOWN}\n")
    stderr = on_terminal(monkeypatch)
    with Display(COMMANDING, "images") as display:
        display(Step(COMMANDING, 1, 2))
        display.note(COMMANDING)
    assert SHOWN in stderr.getvalue()
    assert not [one for one in ("\x1b[31", "\x9b", "\u202e") if one in stderr.getvalue()]


def test_commands_speak_in_one_way() -> None:
    """`say` and `note` make names safe for a terminal, and nothing else writes there."""
    root = Path(attlas.__file__).parent
    modules = [root / "cli.py", *(root / "commands").glob("*.py")]
    assert [p.name for p in modules if re.search(r"click\.s?echo\(|\bprint\(", p.read_text("utf-8"))] == ["shared.py"]

"""What the tests share: small graphs and pictures that they make, and real ones where these are at hand."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import settings
from support import make_graph, make_images

# Examples have no time limit of their own: a machine that does something else, too, is no fault of the code.
settings.register_profile("attlas", deadline=None)
settings.load_profile("attlas")

# Workers of pytest-xdist share the cores: as many threads each as cores would only wait for one another. Before torch
# is imported, which reads it once.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

# A million objects of imported libraries stay until the end, and the collector of garbage would go over them again and
# again: a twentieth of the tests' time. It begins after them (`pytest_collection_finish`).
gc.disable()

# Stores sync every unit to the disk, and hundreds of them would have the tests wait for it: where there is room enough,
# they lie in memory.
MEMORY = Path("/dev/shm")
if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 8 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_xdist_auto_num_workers() -> int:
    """One more than cores: tests wait for processes, servers and browsers, and another can run meanwhile."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_finish() -> None:
    """Collect garbage from now on, but never look at what is there already: tests are imported, none has run."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real weights and images: `models/`, `images/`, `golden/`."""
    place = os.environ.get("ATTLAS_SHARED")
    if not place:
        pytest.skip("real weights and images are needed: set ATTLAS_SHARED to the folder that holds them")
    return Path(place)


@pytest.fixture(scope="session")
def tiny_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph of two layers, two heads, a class token and a grid of 2 x 3 patches."""
    path = tmp_path_factory.mktemp("graph") / "tiny.onnx"
    make_graph(path)
    return path


@pytest.fixture
def graph_factory(tmp_path: Path) -> Callable[..., Path]:
    """Makes further graphs: takes what `make_spec` takes, and `seed`, `sharpness`."""
    count = 0

    def make(**changes: Any) -> Path:
        nonlocal count
        count += 1
        path = tmp_path / f"graph{count}.onnx"
        make_graph(path, **changes)
        return path

    return make


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 50 pictures in four class folders."""
    return make_images(tmp_path_factory.mktemp("pictures"), 50)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], Any]], Path]:
    """Make files once for all workers of pytest-xdist: `once(name, make)` is the folder that `make` filled."""
    own = tmp_path_factory.getbasetemp()
    common = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "once"

    def get(name: str, make: Callable[[Path], Any]) -> Path:
        folder, done = common / name, common / f"{name}.done"
        common.mkdir(exist_ok=True)
        with FileLock(common / f"{name}.lock"):
            if not done.exists():
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return get


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The command line in this process, which spares the second that a new one needs to import everything.

    What is seen is what a process would show: its exit code, and both streams with warnings and tracebacks.
    """
    from attlas.cli import main

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))

    def run(*arguments: Any, cwd: Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(cwd)
        capfd.readouterr()
        code: Any = 0
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.showwarning = show
            try:
                main(list(map(str, arguments)))
            except SystemExit as end:
                code = end.code or 0
            except Exception:
                traceback.print_exc()
                code = 1
        shown = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, code, shown.out, shown.err)

    return run


@pytest.fixture(scope="session")
def deit(shared: Path, once: Callable[[str, Callable[[Path], Any]], Path]) -> Path:
    """The graph of deit_tiny with its trained weights."""
    pytest.importorskip("timm")
    import attlas

    name = "deit_tiny_patch16_224"
    weights = shared / "models" / f"{name}.safetensors"
    return once("deit", lambda folder: attlas.export(name, folder / "deit.onnx", checkpoint=weights)) / "deit.onnx"

"""The limits that the code keeps: which way rooms import, no circles, and how long anything may be."""

from __future__ import annotations

import ast
import functools
import importlib
import itertools
import re
import sys
from collections.abc import Container, Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest
from attlas.errors import AttlasError

ROOT = Path(__file__).parents[2]
ROOMS = ("exporter", "engine", "analysis")  # each imports those before it, and none after it
SHARED = ("arguments", "errors", "files", "progress", "words")  # at the root, for every room; they import none
MODULE_LINES = 450
FUNCTION_LINES = 60  # without the docstring
FORMATS_SKIPPED = 60  # in the package
# What only one place may know: a foreign library and the room, or the module, that speaks to it.
HOMES = {
    "torch": "exporter",
    "timm": "exporter",
    "torchvision": "exporter",
    "transformers": "exporter",
    "open_clip": "exporter",
    "xarray": "analysis",
}


def sources() -> Iterator[Path]:
    """Every module of the tree: the package, tests and benchmarks."""
    yield from MODULES.values()
    for folder in ("tests", "benchmarks"):
        yield from sorted((ROOT / folder).rglob("*.py"))


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Every node of a module's syntax tree."""
    return tuple(ast.walk(ast.parse(path.read_text("utf-8"))))


def package_modules() -> dict[str, Path]:
    """The modules of the package by their names, without `attlas.`; the root itself is the empty name."""
    found = {}
    folders = [place.parent for place in ROOT.glob("*/__init__.py")]
    for path in (*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return dict(sorted(found.items()))


MODULES = package_modules()


def imports_of(name: str) -> Iterator[tuple[str, int]]:
    """(module, line) of what a module imports of the package, wherever it does: in functions and for types, too."""
    path = MODULES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    package = [part for part in package if part]
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((a.name.removeprefix("attlas").lstrip("."), node.lineno)
                        for a in node.names if a.name.split(".")[0] == "attlas")  # fmt: skip
        elif isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            if node.level:
                base = [*package[: len(package) - node.level + 1], *base]
            elif base[0] == "attlas":
                base = base[1:]
            else:
                continue
            for alias in node.names:
                inner = ".".join((*base, alias.name))
                yield (inner if inner in MODULES else ".".join(base)), node.lineno


def foreign_of(path: Path) -> set[str]:
    """The top-level names of the other libraries that a module imports, wherever it does."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_rooms_import_one_way() -> None:
    """Analysis may import the engine, and both the exporter; never the other way, not in a function, not for types."""
    wrong = []
    for name in MODULES:
        room = name.split(".")[0]
        if room not in (*SHARED, *ROOMS):
            continue
        allowed = SHARED if room in SHARED else (*SHARED, *ROOMS[: ROOMS.index(room) + 1])
        wrong += [
            f"{name}:{line} imports {other or 'attlas'}"
            for other, line in imports_of(name) if other.split(".")[0] not in allowed
        ]  # fmt: skip
    assert not wrong, "\n".join(wrong)


def test_modules_import_in_no_circle() -> None:
    """So that each can be read, and tested, without those that stand upon it."""
    graph = {name: {other for other, _ in imports_of(name) if other != name} for name in MODULES if name}
    circles = []
    while True:
        try:
            TopologicalSorter(graph).prepare()
            break
        except CycleError as error:
            circle = error.args[1]
            circles.append(" -> ".join(circle))
            graph[circle[1]].discard(circle[0])
    assert not circles, "\n".join(circles)


def test_a_foreign_library_is_known_to_one_room() -> None:
    """The engine runs where PyTorch is not installed."""
    wrong = [
        f"{name} imports {library}"
        for name, path in MODULES.items() for library in foreign_of(path) & HOMES.keys()
        if name.split(".")[0] != HOMES[library]
    ]  # fmt: skip
    assert not wrong, "\n".join(wrong)


def test_packages_import_in_no_circle() -> None:
    """Of the packages that stand side by side each can be read without those that are built on it."""
    folders = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    graph: dict[str, set[str]] = {}
    for name in MODULES:
        for other, _ in imports_of(name):
            here, there = name.split("."), other.split(".")
            same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(here, there, strict=False)))
            one, two = ".".join(here[: same + 1]), ".".join(there[: same + 1])
            if one != two and {one, two} <= folders:
                graph.setdefault(one, set()).add(two)
    TopologicalSorter(graph).prepare()


def test_no_module_is_long() -> None:
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text("utf-8").splitlines()) for path in sources()}
    long = {name: lines for name, lines in lengths.items() if lines > MODULE_LINES}
    assert not long, f"above {MODULE_LINES} lines: {long}"


def test_no_function_is_long() -> None:
    """Its signature counts, its docstring does not: a public function has a line there for every parameter."""
    long = {}
    for path in sources():
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0]
                told = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(node) else 0
                lines = (node.end_lineno or node.lineno) - node.lineno + 1 - told
                if lines > FUNCTION_LINES:
                    long[f"{path.relative_to(ROOT).as_posix()}:{node.lineno} {node.name}"] = lines
    assert not long, f"above {FUNCTION_LINES} lines: {long}"


def test_the_formatter_is_seldom_switched_off() -> None:
    switch = re.compile(r"#\s*fmt:\s*(skip|off)")
    counts = {
        path.relative_to(ROOT).as_posix(): len(switch.findall(path.read_text("utf-8"))) for path in MODULES.values()
    }
    many = sorted(((count, name) for name, count in counts.items() if count), reverse=True)
    assert sum(counts.values()) <= FORMATS_SKIPPED, f"{sum(counts.values())} of {FORMATS_SKIPPED}: {many}"


# What an extra brings; where it is not installed, its modules' names are not tried.
EXTRAS = {
    "torch": "exporter", "timm": "exporter", "torchvision": "exporter", "onnxscript": "exporter",
    "onnx_ir": "exporter", "safetensors": "exporter", "numba": "analysis", "simplejpeg": "fast", "scipy": "analysis",
    "xarray": "analysis", "matplotlib": "analysis", "dask": "analysis", "distributed": "distributed",
    "ndonnx": "gpu", "pyarrow": "parquet", "fsspec": "remote", "s3fs": "remote", "skimage": "demo",
    "transformers": "transformers",
}  # fmt: skip


@functools.cache
def offered() -> dict[str, list[str]]:
    """The names in `__all__` of every module that has one, read from the source."""
    found: dict[str, list[str]] = {}
    gathered: list[tuple[str, str]] = []
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text("utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            value = getattr(node, "value", None)
            if not any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
                continue
            if isinstance(node, ast.AugAssign) and isinstance(value, ast.Attribute):  # __all__ += part.__all__
                gathered.append((module, f"{module}.{ast.unparse(value.value)}"))
            elif value is not None:
                found[module] = ast.literal_eval(value)
    for module, part in gathered:
        found[module] = [*found[module], *found[part]]
    return found


@pytest.fixture
def unloaded() -> Iterator[None]:
    """As if nothing of the package had been imported: what another test loaded would hide that a name is not there."""
    loaded = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "attlas"}
    for name in loaded:
        del sys.modules[name]
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "attlas"]:
        del sys.modules[name]
    sys.modules.update(loaded)


def check_imports(module: str, names: Sequence[str], at_once: Container[str] | None = None) -> None:
    """`from module import name` of each; skips at the end where an extra's library is missing.

    With `at_once`, what the module held before any name was asked for, a name that came later has to be given by the
    module itself: not by what another name loaded.
    """
    lacking = set()
    for name in names:
        try:
            exec(f"from {module} import {name}", {})
            held = sys.modules[module]
            if at_once is not None and name not in at_once and find_spec(f"{module}.{name}") is None:
                held.__getattr__(name)
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing not in EXTRAS:
                raise
            lacking.add(f"{missing} is not installed: attlas[{EXTRAS[missing]}] brings it")
        except AttlasError as error:
            if "pip install" not in str(error):
                raise
            lacking.add(str(error))
    if lacking:
        pytest.skip("; ".join(sorted(lacking)))


OFFERED = {".".join(filter(None, ("attlas", module))): names for module, names in offered().items()}
# A package may load its names when they are asked for, each from a place of its own.
PACKAGES = [module for module in OFFERED if MODULES[module.removeprefix("attlas").lstrip(".")].name == "__init__.py"]


@pytest.mark.parametrize("module", PACKAGES)
@pytest.mark.usefixtures("unloaded")
def test_every_name_of_a_package_is_there(module: str) -> None:
    """Whatever was imported before, or was not."""
    check_imports(module, OFFERED[module], set(vars(importlib.import_module(module))))


@pytest.mark.parametrize("module", [module for module in OFFERED if module not in PACKAGES])
def test_every_name_of_a_module_is_there(module: str) -> None:
    """`__all__` promises only what is there."""
    check_imports(module, OFFERED[module])


def test_every_module_says_what_it_offers() -> None:
    """One without `__all__` would be left out above; a package may offer nothing, the command line has commands."""
    silent = MODULES.keys() - offered().keys()
    assert sorted(name for name in silent if name.split(".")[0] not in ("cli", "commands")) == []

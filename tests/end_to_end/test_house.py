"""The house stands as it is drawn: folders, packages, what an import brings in."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "torchvision", "timm", "numba", "matplotlib", "xarray", "scipy", "ndonnx"}


def test_the_packages_listed_are_the_folders_present() -> None:
    """A room that is not listed would be missing from the wheel."""
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    rooms = ("commands", "exporter", "engine", "analysis")
    folders = [p.parent.relative_to(ROOT) for room in rooms for p in (ROOT / room).rglob("__init__.py")]
    assert listed == {".".join(("attlas", *folder.parts)) for folder in folders} | {"attlas"}
    assert {p.parent.name for p in ROOT.glob("*/__init__.py")} == set(rooms)


def test_the_root_holds_seven_modules() -> None:
    """The root is the package: any other module there would ship."""
    assert sorted(p.name for p in ROOT.glob("*.py")) == [
        "__init__.py",
        "arguments.py",
        "cli.py",
        "errors.py",
        "files.py",
        "progress.py",
        "words.py",
    ]


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after `code`."""
    code += "\nimport sys; print(' '.join({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import attlas",
        "import attlas.engine",
        "import attlas.engine.runner",
        "import attlas.analysis",
        "import attlas.exporter.spec",
        "import attlas.cli",
        "import attlas.engine.doctor, attlas.engine.inspect, attlas.engine.store.verify",
    ],
)
def test_an_import_brings_in_nothing_that_only_another_room_needs(code: str) -> None:
    """The engine runs where PyTorch is not installed, and starts fast where it is."""
    assert not HEAVY & modules_after(code)


def test_formulas_need_nothing_heavy() -> None:
    """Whoever brings arrays needs no store and no plots."""
    assert not (HEAVY | {"zarr", "onnxruntime", "onnx"}) & modules_after("import attlas.analysis.formulas")


def test_the_help_loads_no_room() -> None:
    """`attlas --help` answers before a person wonders: it imports click and nothing of the rooms' libraries."""
    found = modules_after(
        "from attlas.cli import cli\nimport click.testing\nclick.testing.CliRunner().invoke(cli, ['--help'])"
    )
    assert not (HEAVY | {"numpy", "zarr", "onnx", "onnxruntime", "PIL", "tqdm"}) & found


def test_every_public_name_loads() -> None:
    """`__all__` promises only what is there."""
    import attlas

    for name in attlas.__all__:
        assert getattr(attlas, name) is not None
    with pytest.raises(AttributeError):
        _ = attlas.nothing


def modules() -> list[str]:
    """Every module of the rooms, by its name."""
    paths = [path for room in ("exporter", "engine", "analysis") for path in sorted((ROOT / room).rglob("*.py"))]
    names = [".".join(("attlas", *path.relative_to(ROOT).with_suffix("").parts)) for path in paths]
    return [name.removesuffix(".__init__") for name in names]


@pytest.mark.parametrize("name", modules())
def test_every_name_of_a_module_is_there(name: str) -> None:
    """Names that load on first use, too."""
    module = pytest.importorskip(name)
    assert [public for public in getattr(module, "__all__", ()) if getattr(module, public, None) is None] == []

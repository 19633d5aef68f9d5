"""attlas, the atlas of attention: compute, store and analyse the attention of Vision Transformers over whole datasets.

Three rooms talk through files alone: `attlas.exporter` (timm model -> graph.onnx), `attlas.engine` (graph and images ->
store.zarr) and `attlas.analysis` (store -> statistics, figures, report). The names below load on first use, so that
no room brings in what only another needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "AttlasError", "Session", "Statistic", "Store", "analyze", "demo", "doctor", "export", "inspect", "open", "report",
    "run", "verify",
]  # fmt: skip

if TYPE_CHECKING:
    from .analysis.dataset import open as open
    from .analysis.report.page import report as report
    from .analysis.statistics import analyze as analyze
    from .analysis.statistics.statistic import Statistic as Statistic
    from .engine.doctor import doctor as doctor
    from .engine.inspect import inspect as inspect
    from .engine.session import Session as Session
    from .engine.store import Store as Store
    from .engine.verify import verify as verify
    from .exporter.errors import AttlasError as AttlasError
    from .exporter.graph import export as export

_HOMES = {
    "AttlasError": "exporter.errors",
    "Session": "engine.session",
    "Statistic": "analysis.statistics.statistic",
    "Store": "engine.store",
    "analyze": "analysis.statistics",
    "doctor": "engine.doctor",
    "export": "exporter.graph",
    "inspect": "engine.inspect",
    "open": "analysis.dataset",
    "report": "analysis.report.page",
    "verify": "engine.verify",
}
# What each room needs beyond the core, so that a missing package is named with its extra.
_EXTRAS = {"exporter": "exporter", "analysis": "analysis"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'attlas' has no attribute {name!r}")
    return getattr(_load(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _load(module: str) -> Any:
    try:
        return importlib.import_module(f".{module}", __name__)
    except ModuleNotFoundError as error:
        from .exporter.errors import AttlasError

        extra = _EXTRAS.get(module.split(".")[0])
        if extra is None or (error.name or "").startswith("attlas"):
            raise
        raise AttlasError(
            f"this needs {error.name}, which is not installed: `pip install 'attlas[{extra}]'` brings it"
        ) from None


def run(graph: Any, images: Any, output: Any, **choices: Any) -> Any:
    """Stream images through a graph into an attention store: `attlas.engine.run` with the analysis room's statistics.

    Takes what `attlas.engine.runner.run` takes, and returns its `RunResult`. Where numba is not installed the run
    keeps what it is told to keep, its result says that statistics were left out, and `analyze` makes them later.
    """
    from .engine.runner import run as engine_run

    if "reducer" not in choices:
        try:
            choices["reducer"] = _load("analysis.kernels.fused").Reducer
        except ImportError:
            choices["reducer"] = None
        except Exception as error:
            from .exporter.errors import AttlasError

            if not isinstance(error, AttlasError):
                raise
            choices["reducer"] = None
    return engine_run(graph, images, output, **choices)


def demo(
    folder: Any = "attlas-demo", *, model: str = "deit_tiny_patch16_224", checkpoint: Any = None, progress: Any = None
) -> Any:
    """Everything once, on a few photographs: export, run, analyze, report. Returns the report's path.

    The photographs are public domain or CC0, out of scikit-image's wheel. Weights come from `checkpoint`, else from
    the model hub; where neither can be had they are random, and the report says so.

    Raises:
        AttlasError: `folder` exists and was not made by an earlier demo, or a package is missing.
    """
    from pathlib import Path

    from .engine.photos import write_photos
    from .exporter.errors import AttlasError

    say = progress or (lambda line: None)
    place = Path(folder)
    photos, graph = place / "photographs", place / f"{model}.onnx"
    store, page = place / f"{model}.zarr", place / "report.html"
    if place.exists() and not photos.is_dir() and any(place.iterdir()):
        raise AttlasError(f"{place}: exists and holds something else; name another folder with -o")
    for line in write_photos(photos):
        say(line)
    export = _load("exporter.graph").export
    try:
        result = export(model, graph, checkpoint=checkpoint, overwrite=True, progress=say)
    except AttlasError as error:
        if checkpoint is not None or "--random-init" not in str(error):
            raise
        say(
            "the model hub does not answer: random weights instead, whose maps mean nothing "
            "(--checkpoint FILE for real ones)"
        )
        result = export(model, graph, random_init=True, overwrite=True, progress=say)
    say(f"{graph}: largest row total variation from PyTorch {result.parity.row_max:.1e}")
    run(graph, photos, store, overwrite=True)
    _load("analysis.statistics").analyze(store)
    return _load("analysis.report.page").report([store], page, overwrite=True)

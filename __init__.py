"""attlas, the atlas of attention: compute, store and analyse the attention of Vision Transformers over whole datasets.

Three rooms communicate only through files: `attlas.exporter` (timm model -> graph.onnx), `attlas.engine` (graph and
images -> store.zarr) and `attlas.analysis` (store -> statistics, figures, report). The names below load on first use,
so no room imports a package that only another room needs.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any, Literal

__version__ = "0.1.0"

__all__ = [
    "AttlasError",
    "Session",
    "Statistic",
    "Store",
    "analyze",
    "compare",
    "conform",
    "demo",
    "doctor",
    "export",
    "inspect",
    "judge",
    "open",
    "plot",
    "report",
    "run",
    "show",
    "verify",
    "view",
]

if TYPE_CHECKING:
    import os
    import threading
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from .analysis import plot as plot
    from .analysis.dataset import open as open
    from .analysis.judge import judge as judge
    from .analysis.report.page import report as report
    from .analysis.show.show import show as show
    from .analysis.statistic import Statistic as Statistic
    from .analysis.statistics import analyze as analyze
    from .analysis.statistics.compare import compare as compare
    from .analysis.view.notebook import view as view
    from .engine.conform.comparing import conform as conform
    from .engine.contents import Reducer, Statistics
    from .engine.doctor import doctor as doctor
    from .engine.executors.base import Executor
    from .engine.inspect import inspect as inspect
    from .engine.outcome import RunResult
    from .engine.runner import Progress
    from .engine.runtime.decoders import Decoder
    from .engine.runtime.providers import Precision
    from .engine.runtime.session import Session as Session
    from .engine.sources import Source
    from .engine.store.store import Store as Store
    from .engine.store.verify import verify as verify
    from .errors import AttlasError as AttlasError
    from .exporter.spec import GraphSpec
    from .exporter.trace.export import export as export
    from .progress import Show

_HOMES = {
    "AttlasError": "errors",
    "Session": "engine.runtime.session",
    "Statistic": "analysis.statistic",
    "Store": "engine.store.store",
    "analyze": "analysis.statistics",
    "compare": "analysis.statistics.compare",
    "conform": "engine.conform.comparing",
    "doctor": "engine.doctor",
    "export": "exporter.trace.export",
    "inspect": "engine.inspect",
    "judge": "analysis.judge",
    "open": "analysis.dataset",
    "report": "analysis.report.page",
    "show": "analysis.show.show",
    "verify": "engine.store.verify",
    "view": "analysis.view.notebook",
}
# The extra that installs each room's packages, so that the error for a missing package can name it.
_EXTRAS = {"exporter": "exporter", "analysis": "analysis"}


def __getattr__(name: str) -> Any:
    if name == "plot":
        return _load("analysis.plot")
    if name not in _HOMES:
        raise AttributeError(f"module 'attlas' has no attribute {name!r}")
    if name == "Session":
        _load("engine.runtime.results").Result.draws = _drawn
    return getattr(_load(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]  # the names that are meant for callers, loaded or not


def _drawn(result: Any) -> str | None:
    """A result as HTML, for notebooks; None where the analysis room's packages are not installed."""
    draw = _found("analysis.show.html", "of_result_html")
    return None if draw is None else draw(result)


def _load(module: str) -> Any:
    try:
        return importlib.import_module(f".{module}", __name__)
    except ModuleNotFoundError as error:
        from .errors import AttlasError

        extra = _EXTRAS.get(module.split(".")[0])
        if extra is None or (error.name or "").startswith("attlas"):
            raise
        raise AttlasError(
            f"this needs {error.name}, which is not installed: `pip install 'attlas[{extra}]'` brings it"
        ) from None


def run(
    graph: str | os.PathLike[str],
    images: str | os.PathLike[str] | Source,
    output: str | os.PathLike[str],
    *,
    keep: Sequence[str] | str = ("attention",),
    layers: Sequence[int] | None = None,
    store_dtype: str = "float16",
    codec: str = "lz4",
    batch_size: int | None = None,
    provider: str = "auto",
    precision: Precision = "float32",
    decoder: Decoder = "host",
    target: str | int = "predicted",
    workers: int | None = None,
    scheduler: str | Executor | None = None,
    threads: int | None = None,
    shard: tuple[int, int] = (1, 1),
    limit: int | None = None,
    seed: int = 0,
    dry_run: bool = False,
    overwrite: bool = False,
    reducer: Callable[[GraphSpec], Reducer] | Literal["auto"] | None = "auto",
    statistics: Statistics = "auto",
    progress: Show[Progress] = None,
    stop: threading.Event | None = None,
) -> RunResult:
    """Run images through a graph into an attention store with statistics, or resume an unfinished store.

    Args:
        graph: an ONNX file from `attlas export`.
        images: a folder, a table of paths, tar or Parquet files (path or URL), or any `Source`.
        output: the store. An unfinished store with the same plan is resumed; a finished one is not changed.
        keep: large arrays: attention, attention_mean, tokens, gradient, gradient_mean, gradient_positive; or none.
        layers: the blocks whose attention is kept, by index from 0; all by default.
        store_dtype: dtype of the stored attention: float16, float32, or uint8 codes (for averages only).
        codec: compression of the large arrays: lz4, zstd (smaller by 2 %, slower) or none.
        batch_size: images per batch; one batch is one chunk of the store. Chosen from the model by default.
        provider: `auto`, `cpu`, `cuda`, `openvino` or any name onnxruntime reports.
        precision: `bfloat16` computes in half as many bits, only with `openvino`, on processors that can.
        decoder: `host`, or `cuda` for JPEGs decoded on the card that infers; their pixels differ by a little.
        target: the class whose logit is differentiated: `predicted`, `label` (the image's own) or a class index.
        workers: number of local processes, each with its own cores (or card); by default this process does the work.
        scheduler: address of a Dask scheduler, `tcp://HOST:8786`, whose workers do the work, or any `Executor`.
        threads: units processed at once in this process, or in each of `workers`; by default one per core, and on an
            accelerator three more.
        shard: (k, n): do every n-th unit starting with the k-th, counted from 1, so that n processes share a store.
        limit: take this many images, evenly spread over the sorted list.
        seed: seed for choosing the sample pictures.
        dry_run: plan only; write nothing.
        overwrite: replace an existing store at `output`.
        reducer: computes a batch's statistics; `auto` uses the analysis room's if numba is installed; None for none.
        statistics: where statistics are computed: `card` (by kernels on a CUDA card), `graph`, `host`, or `auto`: the
            card, else the graph on an accelerator, else the host.
        progress: True shows a bar; a function is called with a `Progress`, see `attlas.engine.runner.run`.
        stop: set it to end the run after the units in flight, with `Interrupted`; the same call resumes.
    """
    given = locals()  # every argument by name, as the engine's `run` takes them
    from .engine.runner import run as engine_run

    given["reducer"] = _found("analysis.kernels.fused", "Reducer") if reducer == "auto" else reducer
    if reserved := _found("analysis.catalog", "reserved"):
        given["reserved"] = reserved
    return engine_run(given.pop("graph"), **given)


def _found(home: str, name: str) -> Any:
    """An object of the analysis room, or None if a package that it needs is not installed."""
    from .errors import AttlasError

    with contextlib.suppress(ImportError, AttlasError):
        return getattr(_load(home), name)
    return None


def demo(
    folder: str | os.PathLike[str] = "attlas-demo",
    *,
    model: str = "deit_tiny_patch16_224",
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Show[str] = None,
) -> Path:
    """Run export, run, analyze and report once on a few photographs. Returns the report's path.

    The photographs are public domain or CC0 and come with scikit-image. Weights come from `checkpoint`, else from the
    model hub; if the hub cannot be reached they are random, and the report says so.

    Args:
        folder: output folder; the folder of an earlier demo is overwritten.
        model: timm's name of the model.
        checkpoint: a file with weights.
        progress: True shows bars and lines; a function is called with one line as each step begins.

    Raises:
        AttlasError: `folder` exists and was not made by an earlier demo, random weights would replace the real
            weights of an earlier demo, or a package is missing.
    """
    from pathlib import Path

    from .arguments import path
    from .engine.photos import write_photos
    from .errors import AttlasError

    say = progress if callable(progress) else _say if progress else (lambda _line: None)
    bars = progress is True
    root = Path(path(folder, "folder"))
    photos, graph = root / "photographs", root / f"{model}.onnx"
    store, page = root / f"{model}.zarr", root / "report.html"
    if root.exists() and not photos.is_dir() and (not root.is_dir() or any(root.iterdir())):
        raise AttlasError(f"{root}: exists and holds something else; name another folder with -o")
    for line in write_photos(photos):
        say(line)
    export = _load("exporter.trace.export").export
    try:
        result = export(model, graph, checkpoint=checkpoint, overwrite=True, progress=progress)
    except AttlasError as error:
        if checkpoint is not None or "--random-init" not in str(error):
            raise
        _refuse_random(graph)
        say(
            "the model hub does not answer: random weights instead, whose maps mean nothing "
            "(--checkpoint FILE for real ones)"
        )
        result = export(model, graph, random_init=True, overwrite=True, progress=progress)
    say(f"{graph}: largest row total variation from PyTorch {result.parity.row_max:.1e}")
    run(graph, photos, store, overwrite=True, progress=bars)
    _load("analysis.statistics").analyze(store, progress=bars)
    made: Path = _load("analysis.report.page").report([store], page, overwrite=True, progress=progress)
    return made


def _say(line: str) -> None:
    """Write a line to stderr."""
    import sys

    from .words import printable

    sys.stderr.write(f"{printable(line)}\n")


def _refuse_random(graph: Path) -> None:
    """Refuse to replace real weights of an earlier demo with random ones."""
    from .engine.runtime.graph import read_spec
    from .errors import AttlasError

    if graph.exists() and read_spec(graph).weights.source != "random":
        raise AttlasError(
            f"{graph}: is of an earlier demo with real weights, and the model hub does not answer; pass the same "
            "--checkpoint again, or another folder with -o"
        )

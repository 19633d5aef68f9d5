"""A graph in every runtime at hand: the table of differences, and what attention costs.

    python benchmarks/runtimes.py table GRAPH.onnx IMAGES [--openvino PYTHON] [--node FOLDER] [--cuda] [--trt]
    python benchmarks/runtimes.py speed [MODEL...] [--rounds N] [--threads N]

`table` runs the programs of docs/deployment.md and docs/conform.md as they are printed there, and judges what each
gives as `attlas conform --import` does. `--openvino` names an interpreter that has OpenVINO, `--node` a folder with
node_modules. `speed` times onnxruntime on one picture: the plain classifier, as `torch.onnx.export` makes it from
timm's model, against the graphs of `attlas export`, interleaved.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attlas
import numpy as np
from attlas.engine.conform import Conformity, write_cases
from attlas.errors import AttlasError

DOCS = Path(__file__).parent.parent / "docs"
FOUR = ["deit_tiny_patch16_224", "vit_base_patch32_224", "vit_base_patch16_224", "vit_large_patch16_224"]
MAPS = ("attention", "class_attention", "pool_attention")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    many = commands.add_parser("table")
    many.add_argument("graph", type=Path)
    many.add_argument("images", type=Path)
    many.add_argument("--count", type=int, default=8, help="images, evenly spread over the folder")
    many.add_argument("--openvino", type=Path, help="an interpreter that has OpenVINO")
    many.add_argument("--node", type=Path, help="a folder with node_modules/onnxruntime-web and onnxruntime-node")
    many.add_argument("--cuda", action="store_true")
    many.add_argument("--trt", action="store_true", help="TensorRT")
    fast = commands.add_parser("speed")
    fast.add_argument("models", nargs="*", default=FOUR)
    fast.add_argument("--rounds", type=int, default=7)
    fast.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    try:
        if asked.command == "speed":
            for line in speed(asked.models, asked.rounds, asked.threads):
                print(line, flush=True)
        else:
            print(table(asked))
    except AttlasError as error:
        raise SystemExit(f"{error}") from None


# The programs --------------------------------------------------------------------------------------------------------


def programs() -> dict[str, str]:
    """The programs of the documentation by file name, with the module that those in JavaScript share."""
    text = "".join((DOCS / page).read_text(encoding="utf-8") for page in ("deployment.md", "conform.md"))
    blocks = re.findall(r"```(?:python|javascript)\n((?:#|//) (\S+\.(?:py|mjs))\b[^\n]*\n.*?)```", text, re.S)
    found = {name: code for code, name in blocks}
    web = found["web.mjs"]
    for there, here in (('"onnxruntime-web"', '"onnxruntime-node"'), ('"wasm"', '"cpu"'), (", externalData }", " }")):
        web = web.replace(there, here)
    return found | {"node.mjs": web}


def commands(asked: argparse.Namespace) -> dict[str, list[str]]:
    """What starts each program that was asked for; its file comes behind."""
    found = {"cpu.py": [sys.executable]}
    found |= {f"{name}.py": [sys.executable] for name in ("cuda", "trt") if getattr(asked, name)}
    if asked.openvino:
        found["ov.py"] = [str(asked.openvino)]
    if asked.node:
        found |= {"web.mjs": ["node"], "node.mjs": ["node"]}
    return found


def run(command: list[str], file: Path, graph: Path, cases: Path) -> Conformity:
    """How far one program's outputs lie from those expected."""
    results = file.with_suffix(".npz")
    done = subprocess.run([*command, str(file), str(graph), str(cases), str(results)], capture_output=True, text=True)
    if done.returncode:
        raise AttlasError(f"{file.name}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return attlas.conform(graph, cases, results=results)


# The table -----------------------------------------------------------------------------------------------------------


def table(asked: argparse.Namespace) -> str:
    """Markdown: per runtime the differences of each kind of output from onnxruntime on the CPU."""
    lines = [
        "| runtime | logits | rows of attention, total variation: mean / largest | tokens | gradients "
        "| first class agrees | conforms |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        # Packages of node are looked for from the program's own folder upwards.
        folder = Path(temporary)
        if asked.node:
            (folder / "node_modules").symlink_to((asked.node / "node_modules").resolve())
        for name, text in programs().items():
            (folder / name).write_text(text, encoding="utf-8")
        graph, cases = asked.graph.resolve(), folder / "cases.npz"
        count = write_cases(graph, cases, asked.images, limit=asked.count)
        for name, command in commands(asked).items():
            found = run(command, folder / name, graph, cases)
            lines.append(f"| {name} | {cells(found)} |")
    return f"{found.model}, {count} pictures\n\n" + "\n".join(lines)


def cells(found: Conformity) -> str:
    """The cells of one row."""
    kinds: dict[str, list[Any]] = {}
    for line in found.lines:
        kinds.setdefault(line.output.partition(".")[0], []).append(line)
    rows = [line for kind in MAPS for line in kinds.get(kind, ())]

    def largest(*names: str) -> str:
        values = [line.largest for name in names for line in kinds.get(name, ())]
        return f"{max(values):.1e}" if values else ""

    return " | ".join(
        [
            largest("logits", "features"),
            f"{np.mean([line.mean for line in rows]):.1e} / {max(line.largest for line in rows):.1e}",
            largest("tokens"),
            largest("gradient"),
            "" if found.same_top1 is None else f"{found.same_top1 / found.pictures:.0%}",
            "yes" if found.conforms else f"no, from {found.first.output if found.first else 'the first class'}",
        ]
    )


# What attention costs ------------------------------------------------------------------------------------------------


def speed(models: list[str], rounds: int, threads: int) -> Iterator[str]:
    """Markdown: per model the milliseconds of one picture, by what is asked for; medians and spread of the rounds."""
    kinds = ("plain classifier", "logits of the graph", "logits and all maps", "with norms", "with gradients")
    yield f"| model | {' | '.join(kinds)} | all maps against plain |"
    yield f"|---|{'---|' * (len(kinds) + 1)}"
    for model in models:
        with tempfile.TemporaryDirectory() as temporary:
            sessions = _sessions(model, Path(temporary), threads)
            times: dict[str, list[float]] = {kind: [] for kind in kinds}
            for turn in range(rounds + 1):
                for kind, (session, names, feeds) in zip(kinds, sessions, strict=True):
                    started = time.perf_counter()
                    runs = 0
                    while runs < 3 or time.perf_counter() - started < 0.5:
                        session.run(names, feeds)
                        runs += 1
                    if turn:  # the first round warms up
                        times[kind].append((time.perf_counter() - started) / runs * 1e3)
        cells = [f"{statistics.median(t):.1f} ({min(t):.1f}-{max(t):.1f})" for t in times.values()]
        ratio = statistics.median(times[kinds[2]]) / statistics.median(times[kinds[0]])
        yield f"| {model} | {' | '.join(cells)} | {ratio:.2f} |"


def _sessions(model: str, folder: Path, threads: int) -> list[tuple[Any, list[str], dict[str, Any]]]:
    """What `speed` compares: sessions, the outputs to ask for, and the feeds."""
    import onnxruntime
    import timm
    import torch
    from attlas.exporter.taps.pictures import pictures
    from attlas.exporter.trace.export import export

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads

    def load(path: Path) -> Any:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    plain = folder / "plain.onnx"
    module = timm.create_model(model).eval()
    shape = tuple(module.pretrained_cfg["input_size"])
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(module, (torch.zeros(1, *shape),), plain, dynamo=True, input_names=["pixels"])
    session = load(plain)
    names = [output.name for output in session.get_outputs()]
    found = [(session, names, {"pixels": np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)})]
    image = {"image": pictures(1, shape[1:])}
    kinds: tuple[dict[str, Any], ...] = ({}, {"norms": True}, {"gradients": True})
    for kind in kinds:
        result = export(model, folder / f"{len(found)}.onnx", random_init=True, **kind)
        session = load(result.path)
        every = [output.name for output in result.spec.outputs if output.shape[0] is None]
        feeds = image | ({"target": np.array([-1])} if result.spec.gradients else {})
        if not kind:
            found.append((session, every[:1], feeds))
        found.append((session, every, feeds))
    return found


if __name__ == "__main__":
    main()

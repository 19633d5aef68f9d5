"""A graph in every runtime at hand: the conformance vector, the table of differences, and what attention costs.

    python benchmarks/runtimes.py vector GRAPH.onnx PICTURE -o VECTOR
    python benchmarks/runtimes.py table GRAPH.onnx IMAGES [--openvino PYTHON] [--node FOLDER] [--cuda] [--trt]
    python benchmarks/runtimes.py speed [MODEL...] [--rounds N] [--threads N]

`table` runs the programs of docs/deployment.md as they are printed there, and compares every output in full with
onnxruntime on the CPU, which `attlas export` has compared with PyTorch. `--openvino` names an
interpreter that has OpenVINO, `--node` a folder with node_modules. `speed` times onnxruntime on one picture: the plain
classifier, as `torch.onnx.export` makes it from timm's model, against the graphs of `attlas export`, interleaved.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from attlas.engine.plan import spread
from attlas.engine.runtime.decode import decode
from attlas.engine.runtime.graph import read_spec
from attlas.errors import AttlasError, UsageError
from attlas.exporter.spec import GraphSpec
from PIL import Image

DOCS = Path(__file__).parent.parent / "docs" / "deployment.md"
FOUR = ["deit_tiny_patch16_224", "vit_base_patch32_224", "vit_base_patch16_224", "vit_large_patch16_224"]
Arrays = dict[str, npt.NDArray[np.float32]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("vector")
    one.add_argument("graph", type=Path)
    one.add_argument("picture", type=Path)
    one.add_argument("-o", "--output", type=Path, required=True)
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
        if asked.command == "vector":
            write_vector(asked.graph, asked.picture, asked.output)
        elif asked.command == "speed":
            for line in speed(asked.models, asked.rounds, asked.threads):
                print(line, flush=True)
        else:
            print(table(asked))
    except AttlasError as error:
        raise SystemExit(f"{error}") from None


# The programs --------------------------------------------------------------------------------------------------------


def programs() -> dict[str, str]:
    """The programs of docs/deployment.md by file name."""
    blocks = re.findall(r"```(?:python|javascript)\n((?:#|//) (\S+) GRAPH VECTOR OUT\n.*?)```", DOCS.read_text(), re.S)
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


def run(command: list[str], file: Path, graph: Path, vector: Path, out: Path, spec: GraphSpec) -> tuple[Arrays, float]:
    """One program's outputs by name, and the seconds it took, its start included."""
    started = time.perf_counter()
    done = subprocess.run([*command, str(file), str(graph), str(vector), str(out)], capture_output=True, text=True)
    if done.returncode:
        raise AttlasError(f"{file.name}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    seconds = time.perf_counter() - started
    found = {}
    for output in spec.outputs:
        shape = [-1 if size is None else size for size in output.shape]
        found[output.name] = np.fromfile(out / f"{output.name}.bin", np.float32).reshape(shape)
    return found, seconds


# The table -----------------------------------------------------------------------------------------------------------


def table(asked: argparse.Namespace) -> str:
    """Markdown: per runtime the differences of each kind of output from onnxruntime on the CPU."""
    spec = read_spec(asked.graph)
    lines = [
        "| runtime | logits | rows of attention, total variation: mean / largest | tokens | gradients "
        "| first class agrees | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        # Packages of node are looked for from the program's own folder upwards.
        folder = Path(temporary)
        if asked.node:
            (folder / "node_modules").symlink_to((asked.node / "node_modules").resolve())
        files = sorted(p for p in asked.images.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        chosen = [files[i] for i in spread(len(files), asked.count)]
        pixels(chosen, spec).tofile(folder / "pixels.bin")
        texts = programs()
        reference: Arrays = {}
        for name, command in commands(asked).items():
            (folder / name).write_text(texts[name])
            found, seconds = run(command, folder / name, asked.graph.resolve(), folder, folder / f"out-{name}", spec)
            reference = reference or found
            lines.append(f"| {name} | {differences(found, reference, spec)} | {seconds:.1f} |")
    return f"{spec.name}, {len(chosen)} pictures\n\n" + "\n".join(lines)


def differences(found: Arrays, reference: Arrays, spec: GraphSpec) -> str:
    """The cells of one row."""
    head = spec.outputs[0].name
    rows = [
        np.abs(found[o.name].astype(np.float64) - reference[o.name]).sum(-1).ravel() / 2
        for o in spec.outputs
        if o.name.partition(".")[0] in ("attention", "class_attention", "pool_attention")
    ]
    variation = np.concatenate(rows)
    gradients = [_relative(found[o.name], reference[o.name]) for o in spec.outputs if o.name.startswith("gradient.")]
    first = np.mean(found[head].argmax(-1) == reference[head].argmax(-1))
    cells = [
        f"{_relative(found[head], reference[head]):.1e}",
        f"{variation.mean():.1e} / {variation.max():.1e}",
        f"{_relative(found['tokens'], reference['tokens']):.1e}",
        f"{max(gradients):.1e}" if gradients else "",
        f"{first:.0%}",
    ]
    return " | ".join(cells)


def _relative(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Largest difference of an image over its largest number, the largest of the images."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (a, b))
    return float((np.abs(a - b).max(1) / np.abs(b).max(1).clip(1e-30)).max())


def pixels(files: list[Path], spec: GraphSpec) -> npt.NDArray[np.uint8]:
    """The crops of some pictures: (image, row, column, 3) uint8."""
    if not files:
        raise UsageError("no pictures there")
    return np.stack([decode(file.read_bytes(), spec.recipe)[0] for file in files])


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
    for kind in ({}, {"norms": True}, {"gradients": True}):
        result = export(model, folder / f"{len(found)}.onnx", random_init=True, **kind)
        session = load(result.path)
        every = [output.name for output in result.spec.outputs if output.shape[0] is None]
        feeds = image | ({"target": np.array([-1])} if result.spec.gradients else {})
        if not kind:
            found.append((session, every[:1], feeds))
        found.append((session, every, feeds))
    return found


# The conformance vector ----------------------------------------------------------------------------------------------


def write_vector(graph: Path, picture: Path, output: Path) -> None:
    """A picture, its pixels, and what the graph gives for it; see docs/deployment.md."""
    spec = read_spec(graph)
    output.mkdir(parents=True, exist_ok=False)
    with Image.open(picture) as image:
        image.convert("RGB").save(output / "picture.png")
    crop = pixels([output / "picture.png"], spec)
    crop.tofile(output / "pixels.bin")
    with tempfile.TemporaryDirectory() as temporary:
        program = Path(temporary) / "cpu.py"
        program.write_text(programs()["cpu.py"])
        found, _ = run([sys.executable], program, graph.resolve(), output, Path(temporary) / "out", spec)
    head = spec.outputs[0].name
    expected = {
        "graph": hashlib.sha256(graph.read_bytes()).hexdigest(),
        "pixels": hashlib.sha256(crop.tobytes()).hexdigest(),
        "shape": list(crop.shape),
        "model": spec.name,
        "recipe": str(spec.recipe),
        head: _rounded(found[head][0]),
        # Sums over keys are 1 whatever is wrong; sums over queries are not.
        "received": {f"{layer}": _rounded(found[f"attention.{layer}"][0].sum(-2)) for layer in spec.layers},
    }
    (output / "expected.json").write_text(json.dumps(expected) + "\n")
    print(output)


def _rounded(values: npt.NDArray[np.float32]) -> Any:
    """Plain numbers of six digits: no runtime agrees on more."""
    return json.loads(json.dumps(values.tolist()), parse_float=lambda text: float(f"{float(text):.6g}"))


if __name__ == "__main__":
    main()

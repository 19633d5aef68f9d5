"""Every figure that is asked of a machine without a card, beside what was asked, in one table.

    python benchmarks/cpu.py CHECKPOINT IMAGES [--graph deit_tiny.onnx] [--rounds 3] [--count 400]

About seven minutes on two free cores with `attlas[all,openvino,dev]`. In every round the code before (a commit of this
repository), this one with onnxruntime and with OpenVINO, and the plain script run in turn over the same photographs
into full float16 stores, each a process of its own. Ratios are of one round; the table has their medians with the
spread, by the clock and by the cores' seconds, which other work on the machine disturbs less.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import attlas
import numpy as np
import simplejpeg
from attlas.engine.keep import Keep
from attlas.engine.runtime.decode import PILLOW, decode
from attlas.engine.runtime.fast import load
from attlas.engine.runtime.graph import read_spec
from attlas.engine.runtime.providers import cores
from attlas.engine.sources import Folder
from attlas.engine.store.store import Store
from decode import RECIPES, equal, made, seconds, stubbed_run
from gpu import pictures

import engine
from engine import decode_alone, inference_alone, reduce_alone, repeat, spread, write_alone

ROOT = Path(__file__).resolve().parent.parent
BEFORE = "9485db8"  # the last code before the faster ways to decode and OpenVINO
MANY = 2000  # images of a run without inference: what comes once must not count
RUNTIMES = {"cpu": "onnxruntime", "openvino": "OpenVINO float32"}
KERNEL = "tests/analysis/test_card.py::test_the_cards_statistics_equal_the_formulas"


class Table:
    """Values of each row, over rounds, and what was asked."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[str, list[float]]] = {}

    def add(self, row: str, asked: str, value: float) -> None:
        self.rows.setdefault(row, (asked, []))[1].append(value)

    def say(self, row: str, asked: str, text: str) -> None:
        print(f"| {row} | {asked} | {text} |", flush=True)

    def print(self) -> None:
        for row, (asked, values) in self.rows.items():
            self.say(row, asked, spread(values))


def earlier(commit: str, folder: Path) -> dict[str, str]:
    """The environment in which `attlas` is the code of a commit."""
    packed = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        tar.extractall(folder / "attlas", filter="data")
    return os.environ | {"PYTHONPATH": str(folder)}


def whole(command: list[str], place: Path, environment: dict[str, str] | None = None) -> tuple[float, float]:
    """Wall and CPU seconds of a whole process and of those that it started."""
    wall, before = time.perf_counter(), os.times()
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    after = os.times()
    if done.returncode:
        sys.exit(f"{command[:4]} failed: {done.stderr[-2000:]}")
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - wall, spent


def decoding(table: Table, datas: list[bytes], what: str) -> None:
    """One round of decoding: against Pillow, against libjpeg alone, and on two threads."""
    fast = load()
    start = time.process_time()
    for data in datas:
        simplejpeg.decode_jpeg(data, "RGBX")
    libjpeg = (time.process_time() - start) / len(datas)
    (pillow, _), (one, wall), (_, both) = seconds(datas, PILLOW, 1), seconds(datas, fast, 1), seconds(datas, fast, 2)
    table.add(f"decode, {what}: core ms", "", one * 1e3)
    table.add(f"libjpeg alone, {what}: core ms", "", libjpeg * 1e3)
    table.add(f"decode / Pillow's, {what}", "<= 0.6", one / pillow)
    table.add(f"decode / libjpeg alone, {what}", "", one / libjpeg)
    table.add(f"decode, {what}, two threads against one", ">= 1.9", wall / both)


def limits(table: Table, graph: Path, source: Folder, stores: dict[str, Path], place: Path) -> None:
    """Each run against what its parts do alone, in this round."""
    spec, store = read_spec(graph), Store(stores["cpu"])
    keep = Keep.choose(spec, ("attention",), None, "float16")
    pixels = np.stack([decode(source.read(item), spec.recipe)[0] for item in source.items[:16]])
    host = decode_alone(source, spec) + write_alone(store, place / "copy.zarr")
    reduced = reduce_alone(store)
    for provider, path in stores.items():
        record = json.loads((path / "run" / "zarr.json").read_text())["attributes"]["runs"][-1]
        each = cores() * record["seconds"] / len(source.items)
        alone = host + inference_alone(graph, pixels, keep, provider)[0]
        name = RUNTIMES[provider]
        table.add(f"{name}: run / limit", ">= 0.92", alone / each)
        table.add(f"{name}: run / limit with statistics", "", (alone + reduced) / each)


def runs(table: Table, options: argparse.Namespace, graph: Path, folder: Path, place: Path) -> dict[str, Path]:
    """One round of whole runs; returns the stores of this code by provider."""
    stores = {provider: place / f"{provider}.zarr" for provider in RUNTIMES}
    run = [sys.executable, "-m", "attlas.cli", "run", str(graph), str(folder), "--overwrite", "-o"]
    plain = [sys.executable, str(Path(__file__).with_name("plain.py")), str(options.checkpoint), str(folder)]
    found = {"before": whole([*run, str(place / "before.zarr")], place, options.environment)}
    for provider, store in stores.items():
        found[provider] = whole([*run, str(store), "--provider", provider], place)
    for size in (16, 1) if not options.skip_plain else ():
        found[f"{size}"] = whole([*plain, str(place / "plain"), "--batch", str(size)], place)
        shutil.rmtree(place / "plain")
    count = options.count
    for name, (wall, spent) in found.items():
        title = {"before": "the code before", **RUNTIMES}.get(name, f"plain script, batch {name}")
        table.add(f"{title}: core ms an image, whole process", "", spent / count * 1e3)
        table.add(f"{title}: images/s, whole process", "", count / wall)
    asked = [
        ("before", "cpu", "1.10"),
        ("before", "openvino", "1.30"),
        ("16", "openvino", "2.8"),
        ("1", "openvino", "2.4"),
    ]
    for slow, quick, at_least in asked:
        if slow in found:
            other = "the code before" if slow == "before" else f"the plain script, batch {slow}"
            for i, measure in enumerate(("clock", "core time")):
                ratio = found[slow][i] / found[quick][i]
                table.add(f"full run, {RUNTIMES[quick]} against {other}, by {measure}", f">= {at_least}", ratio)
    return stores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--graph", type=Path, help="an exported deit_tiny; by default it is exported first")
    parser.add_argument("--count", type=int, default=400, help="photographs of a run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--made", type=int, default=2000, help="pictures of any kind, for equality")
    parser.add_argument("--before", default=BEFORE, help="the commit to compare with")
    parser.add_argument("--skip-plain", action="store_true")
    options = parser.parse_args()
    options.checkpoint, options.images = options.checkpoint.resolve(), options.images.resolve()
    engine.ALONE = 96
    os.environ.pop("OMP_NUM_THREADS", None)  # the plain script is to use every core
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="attlas-bench-") as temporary:
        bench(Path(temporary), options)
    print(
        f"\n{cores()} cores, {options.count} photographs, {options.rounds} rounds, {time.perf_counter() - start:.0f} s"
    )


def bench(place: Path, options: argparse.Namespace) -> None:
    graph = (options.graph or place / "deit_tiny.onnx").resolve()
    if options.graph is None:
        attlas.export("deit_tiny_patch16_224", graph, checkpoint=options.checkpoint)
    options.environment = earlier(options.before, place / "earlier")
    table, fast, recipes = Table(), load(), list(RECIPES.values())
    photographs = Folder.scan(options.images)
    datas = [photographs.read(item) for item in photographs.items]
    noisy = pictures(100)
    print("| check | asked | median (min-max) |\n|---|---|---|")
    given = [(data, recipe) for data in datas for recipe in recipes]
    table.say("pixels, the photographs by ten recipes", "equal", equal(given, fast))
    mixed = [(made(i), recipes[i % len(recipes)]) for i in range(options.made)]
    table.say("pixels, pictures of any kind", "equal", equal(mixed, fast))
    kernel = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / KERNEL)]
    done = subprocess.run(kernel, cwd=ROOT, capture_output=True, text=True)
    table.say("kernel in the simulator against float64", "<= 1e-6", done.stdout.strip().splitlines()[-1])
    folder = repeat(options.images, place / "images", options.count)
    (place / "noisy").mkdir()
    for number, data in enumerate(noisy):
        (place / "noisy" / f"{number:06d}.jpg").write_bytes(data)
    many = {
        "photographs": repeat(options.images, place / "many", MANY),
        "made": repeat(place / "noisy", place / "many made", MANY),
    }
    # What is compiled and cached once.
    few = [sys.executable, "-m", "attlas.cli", "run", str(graph), str(folder), "--overwrite", "--limit", "8", "-o"]
    whole([*few, str(place / "few.zarr")], place, options.environment)
    whole([*few, str(place / "few.zarr"), "--provider", "openvino"], place)
    source = Folder.scan(folder)
    for number in range(options.rounds):
        for what, encoded in (("photographs", datas), ("made", noisy)):
            decoding(table, encoded, what)
            cost = stubbed_run(graph, many[what], place / "none.zarr", fast, "graph")
            table.add(f"`--keep none`, session stubbed, {what}: host core ms", "<= 2.0", cost * 1e3)
        limits(table, graph, source, runs(table, options, graph, folder, place), place)
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    table.print()


if __name__ == "__main__":
    main()

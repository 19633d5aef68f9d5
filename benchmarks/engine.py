"""The engine against its own limit and against the plain script, in interleaved rounds.

    python benchmarks/engine.py CHECKPOINT IMAGES --count 2000 --rounds 5

The limit is cores / (decode + inference + write): decode and write as CPU seconds per image alone on one thread,
inference as cores times wall seconds alone at its best thread setting, each measured in the same round as the run.
A full run makes the default statistics, too, which that limit leaves out; the row "with statistics" has them, as that
of `--keep none` does. Images are the given ones under repeated names. Prints a Markdown table of medians with their
spread.

    python benchmarks/engine.py CHECKPOINT IMAGES --count 2000 --rounds 5 --against openvino

compares whole runs alone: onnxruntime, another provider, and the plain script, in wall time and in core milliseconds,
which other work on the machine disturbs less.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attlas
import numpy as np
from attlas.analysis.kernels.fused import Reducer
from attlas.engine.contents import Choices, Contents
from attlas.engine.keep import Keep
from attlas.engine.runtime.decode import decode, decode_into
from attlas.engine.runtime.fast import load
from attlas.engine.runtime.graph import read_spec
from attlas.engine.runtime.providers import cores
from attlas.engine.runtime.session import Session
from attlas.engine.sources import Folder
from attlas.engine.store.store import Store

ALONE = 256  # images of each part measured alone, from all over the dataset
TIMES = 3  # that each is measured in a round; the median counts, since the machine is noisy


def repeat(images: Path, folder: Path, count: int) -> Path:
    """`count` hard links (or copies) to the images, under names of their own."""
    folder.mkdir(parents=True)
    files = sorted(p for p in images.rglob("*") if p.is_file())
    for i in range(count):
        source = files[i % len(files)]
        target = folder / f"{source.stem}_{i:06d}{source.suffix}"
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
    return folder


def cpu() -> float:
    times = os.times()
    return times.user + times.system


def decode_alone(source: Folder, spec) -> float:
    """CPU seconds per image: read, decode, resize, crop, on one thread, in the fastest way that is installed."""
    fast, out = load(), np.empty((*spec.recipe.crop, 3), np.uint8)
    found = []
    for turn in range(TIMES):
        items = list(source.items)[turn :: max(1, len(source.items) // ALONE)]
        start = time.thread_time()
        for item in items:
            decode_into(out, source.read(item), spec.recipe, fast)
        found.append((time.thread_time() - start) / len(items))
    return statistics.median(found)


def inference_alone(graph: Path, pixels: np.ndarray, keep: Keep, provider: str = "cpu") -> tuple[float, str]:
    """Wall seconds per image times cores, at the better of two thread settings, and which that was."""
    found = {}
    wanted = Contents.derive(read_spec(graph), Choices(keep)).wanted()
    for streams in (1, cores()):
        session = Session(graph, provider=provider, wanted=wanted, threads=cores() // streams)
        buffers = [session.buffers(len(pixels)) for _ in range(streams)]
        rounds = ALONE // len(pixels) // streams

        def work(own, session=session, rounds=rounds):
            for _ in range(rounds):
                session.run_into(pixels, own, len(pixels))

        with ThreadPoolExecutor(streams) as pool:
            list(pool.map(lambda own, s=session: s.run_into(pixels, own, len(pixels)), buffers))
            walls = []
            for _ in range(TIMES):
                start = time.perf_counter()
                list(pool.map(work, buffers))
                walls.append(time.perf_counter() - start)
        found[streams] = statistics.median(walls) / (rounds * streams * len(pixels))
    best = min(found, key=lambda s: found[s])
    return found[best] * cores(), f"{best} x {cores() // best} threads"


def write_alone(store: Store, folder: Path) -> float:
    """CPU seconds per image of writing what the store holds, from one thread, done-marks and all."""
    plan = store.plan
    units = range(0, plan.units, max(1, plan.images // ALONE))
    held: dict[str, np.ndarray] = {}
    for name, dim in store.unit_arrays():
        if dim == "image" and name != "attention":
            held[name] = store.read(name)
    # Contiguous, as a run has them: one array per batch and layer.
    blocks = {}
    for k in units:
        for batch in plan.batches(k):
            attention = store.read("attention", slice(batch.start, batch.stop))
            for layer in range(attention.shape[1]):
                blocks[batch.start, layer] = np.ascontiguousarray(attention[:, layer : layer + 1])
    found = []
    for _ in range(TIMES):
        copy = emptied(store, folder, (*held, "attention", "done"))
        start = cpu()
        images = 0
        for k in units:
            for batch in plan.batches(k):
                for layer in range(len(copy.spec.layers)):
                    block = blocks[batch.start, layer]
                    copy.write("attention", batch.start, block, layer=slice(layer, layer + 1), later=True)
            unit = plan.unit_range(k)
            for name, values in held.items():
                copy.write(name, unit.start, values[unit.start : unit.stop], later=True)
            copy.mark_done(k)
            images += len(unit)
        found.append((cpu() - start) / images)
    shutil.rmtree(folder)
    return statistics.median(found)


def emptied(store: Store, folder: Path, arrays: Iterable[str]) -> Store:
    """A copy without the chunks of `arrays`, in place of what is there."""
    shutil.rmtree(folder, ignore_errors=True)
    left_out = set(arrays)
    shutil.copytree(
        store.path,
        folder,
        ignore=lambda where, names: [name for name in names if name.startswith("c.") and Path(where).name in left_out],
    )
    return Store(folder, writable=True)


def reduce_alone(store: Store) -> float:
    """CPU seconds per image of the fused kernel on one thread."""
    reducer = Reducer(store.spec)
    attention = store.read("attention", slice(0, 32))  # the time does not depend on the values
    layers = [np.ascontiguousarray(attention[:, layer]) for layer in range(attention.shape[1])]
    reducer(layers)
    start = time.thread_time()
    for _ in range(4):
        reducer(layers)
    return (time.thread_time() - start) / (4 * len(attention))


def whole(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak MiB of a whole process."""
    start = time.perf_counter()
    peak = 0
    with tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err)
        while process.poll() is None:
            # The child's own high-water mark: what wait4 reports may be that of the parent it was forked from.
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                peak = max([peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))])
            time.sleep(0.05)
        if process.returncode:
            err.seek(0)
            sys.exit(f"{command[:4]} failed: {err.read().decode()[-2000:]}")
    return time.perf_counter() - start, peak / 1024


def spread(values: list[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip-plain", action="store_true")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--against", metavar="PROVIDER", help="compare whole runs of onnxruntime and this provider")
    parser.add_argument("--graph", type=Path, help="an exported deit_tiny; by default it is exported first")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="attlas-bench-") as place:
        (versus if options.against else bench)(Path(place), options)


def versus(place: Path, options: argparse.Namespace) -> None:
    """Whole processes in turn: `cpu`, another provider, and the plain script at two batch sizes."""
    graph = options.graph or place / "deit_tiny.onnx"
    if options.graph is None:
        attlas.export("deit_tiny_patch16_224", graph, checkpoint=options.checkpoint)
    folder, out = repeat(options.images, place / "images", options.count), place / "out"
    run = [sys.executable, "-m", "attlas.cli", "run", str(graph), str(folder), "-o", str(out)]
    script = [sys.executable, str(Path(__file__).with_name("plain.py")), str(options.checkpoint), str(folder), str(out)]
    commands = {name: [*run, "--provider", name] for name in ("cpu", options.against)}
    if not options.skip_plain:
        commands |= {f"plain, batch {size}": [*script, "--batch", str(size)] for size in (16, 1)}
    walls: dict[str, list[float]] = {name: [] for name in commands}
    spent: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(options.rounds):
        for name, command in commands.items():
            before = os.times()
            wall, _ = whole(command)
            after = os.times()
            shutil.rmtree(out)
            walls[name].append(wall)
            children = (after.children_user + after.children_system) - (before.children_user + before.children_system)
            spent[name].append(children)
        print(f"round {number + 1}: { ({name: round(v[-1], 1) for name, v in spent.items()}) }", file=sys.stderr)
    print("| what | images/s | core ms an image | wall / that of it | core time / that of it |\n|---|---|---|---|---|")
    for name in commands:
        rates = [options.count / wall for wall in walls[name]]
        costs = [1e3 * seconds / options.count for seconds in spent[name]]
        ratios = [
            spread([one / other for one, other in zip(of[name], of[options.against], strict=True)])
            for of in (walls, spent)
        ]
        print(f"| {name} | {spread(rates, 1)} | {spread(costs, 1)} | {' | '.join(ratios)} |")


def plain_script(
    options: argparse.Namespace, folder: Path, out: Path, seconds: float, add: Callable[[str, float], None]
) -> None:
    """The plain script at two batch sizes, against attlas's `seconds`."""
    for size in (16, 1):
        shutil.rmtree(out, ignore_errors=True)
        script = [sys.executable, str(Path(__file__).with_name("plain.py"))]
        plain, peak = whole([*script, str(options.checkpoint), str(folder), str(out), "--batch", str(size)])
        add(f"plain script, batch {size} (images/s)", options.count / plain)
        add(f"plain script, batch {size}, peak MiB", peak)
        add(f"whole process against plain, batch {size}", plain / seconds)
        shutil.rmtree(out)


def bench(place: Path, options: argparse.Namespace) -> None:
    graph = options.graph or place / "deit_tiny.onnx"
    if options.graph is None:
        attlas.export("deit_tiny_patch16_224", graph, checkpoint=options.checkpoint)
    folder = repeat(options.images, place / "images", options.count)
    source = Folder.scan(folder)
    spec = read_spec(graph)
    keep = Keep.choose(spec, ("attention",), None, "float16")
    batch = 16
    pixels = np.stack([decode(source.read(i), spec.recipe)[0] for i in source.items[:batch]])
    store_path = place / "full.zarr"
    rows: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        rows.setdefault(name, []).append(value)

    threads = ["--threads", str(options.threads)] if options.threads else []
    run = [sys.executable, "-m", "attlas.cli", "run", str(graph), str(folder)]
    setting = ""
    for number in range(options.rounds):
        shutil.rmtree(store_path, ignore_errors=True)
        seconds, peak = whole([*run, "-o", str(store_path), *threads])
        add("full, whole process (images/s)", options.count / seconds)
        add("full, peak MiB", peak)
        record = json.loads((store_path / "run" / "zarr.json").read_text())["attributes"]["runs"][-1]
        rate = options.count / record["seconds"]
        add("full, the run itself (images/s)", rate)
        none_path = place / "none.zarr"
        shutil.rmtree(none_path, ignore_errors=True)
        _, none_peak = whole([*run, "-o", str(none_path), "--keep", "none", *threads])
        none = json.loads((none_path / "run" / "zarr.json").read_text())["attributes"]["runs"][-1]
        none_rate = options.count / none["seconds"]
        add("keep none, the run itself (images/s)", none_rate)
        add("keep none, peak MiB", none_peak)
        store = Store(store_path)
        decoded = decode_alone(source, spec)
        inferred, setting = inference_alone(graph, pixels, keep)
        written = write_alone(store, place / "copy.zarr")
        reduced = reduce_alone(store)
        add("decode alone (core ms)", decoded * 1e3)
        add("inference alone (core ms)", inferred * 1e3)
        add("write alone (core ms)", written * 1e3)
        add("reduce alone (core ms)", reduced * 1e3)
        limit = cores() / (decoded + inferred + written)
        none_limit = cores() / (decoded + inferred + reduced)
        add("full, limit (images/s)", limit)
        add("full, run / limit", rate / limit)
        # A run makes the default statistics, too, which that limit leaves out.
        add("full, run / limit with statistics", rate * (decoded + inferred + written + reduced) / cores())
        add("keep none, run / limit", none_rate / none_limit)
        if not options.skip_plain:
            plain_script(options, folder, place / "plain", seconds, add)
        print(f"round {number + 1}: {rate:.1f} images/s, {rate / limit:.2f} of the limit", file=sys.stderr, flush=True)
    print(
        f"{options.count} images, {cores()} cores ({platform.machine()}), {options.rounds} rounds, "
        f"inference best at {setting}\n\n| what | median (min-max) |\n|---|---|"
    )
    for name, values in rows.items():
        digits = 0 if "peak" in name else 1 if "images/s" in name else 2
        print(f"| {name} | {spread(values, digits)} |")


if __name__ == "__main__":
    main()

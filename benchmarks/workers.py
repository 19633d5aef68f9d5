"""The executors against each other, in interleaved rounds: this process, local processes, a Dask cluster of one worker.

    python benchmarks/workers.py CHECKPOINT IMAGES --count 2000 --rounds 3

Each run is a process of its own over the same images (the given ones under repeated names) into a new store. The Dask
worker has as many threads as this machine has cores, and stays from round to round, as clusters do. "Hands at work" is
the part of the time that units are worked on, of as many as may be at once: what is missing to 1 is what handing out
units costs, whoever else uses the machine. Prints a Markdown table of medians with their spread. With `--results FILE`
every run is kept there as a line of JSON, and the table is of all that the file holds, so that rounds may be done one
at a time.
"""

import argparse
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import attlas
from attlas.engine.runtime.providers import cores

from engine import repeat, spread, whole


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """The address of a scheduler with one worker."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = f"tcp://127.0.0.1:{port}"
    dask = [sys.executable, "-m", "dask"]
    worker = ["worker", address, "--nthreads", str(cores()), "--no-nanny", "--local-directory", str(folder)]
    started = [
        subprocess.Popen([*dask, *options, "--no-dashboard"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for options in (["scheduler", "--host", "127.0.0.1", "--port", port], worker)
    ]
    try:
        yield address
    finally:
        for process in started:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--graph", type=Path, help="an exported deit_tiny; by default it is exported first")
    parser.add_argument("--keep", default="attention")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="attlas-bench-") as place:
        rows = bench(Path(place), options)
    print(f"{options.count} images, --keep {options.keep}, {cores()} cores, {len(next(iter(rows.values())))} rounds\n")
    print("| who | the run itself, images/s | whole process, images/s | against this process | threads at work |")
    print("|---|---|---|---|---|")
    base = rows["this process"]
    for name, runs in rows.items():
        against = [run["rate"] / one["rate"] for run, one in zip(runs, base, strict=True)]
        rates = spread([run["rate"] for run in runs], 1)
        print(
            f"| {name} | {rates} | {spread([run['whole'] for run in runs], 1)} | {spread(against)} | "
            f"{spread([run['busy'] for run in runs])} |"
        )


def bench(place: Path, options: argparse.Namespace) -> dict[str, list[dict]]:
    graph = options.graph or place / "deit_tiny.onnx"
    if options.graph is None:
        attlas.export("deit_tiny_patch16_224", graph, checkpoint=options.checkpoint)
    images = repeat(options.images, place / "images", options.count)
    run = [sys.executable, "-m", "attlas.cli", "run", str(graph), str(images), "--keep", options.keep]
    rows: dict[str, list[dict]] = {}
    if options.results and options.results.exists():
        for line in options.results.read_text().splitlines():
            entry = json.loads(line)
            if (entry["count"], entry["keep"]) == (options.count, options.keep):
                rows.setdefault(entry["who"], []).append(entry)
    with cluster(place / "dask") as address:
        whos = {
            "this process": [],
            f"{cores()} local processes": ["--workers", str(cores())],
            f"Dask, one worker of {cores()} threads": ["--scheduler", address],
        }
        for number in range(options.rounds):
            for who, choices in whos.items():
                store = place / "s.zarr"
                time.sleep(2)  # what was deleted settles
                taken, _ = whole([*run, "-o", str(store), *choices])
                record = attlas.inspect(store)["runs"][-1]
                worked = sum(seconds for name, seconds in record["stages"].items() if name != "commit")
                entry = {
                    "who": who,
                    "count": options.count,
                    "keep": options.keep,
                    "whole": options.count / taken,
                    "rate": options.count / record["seconds"],
                    "busy": worked / (record["seconds"] * record["units_at_once"]),
                }
                rows.setdefault(who, []).append(entry)
                shutil.rmtree(store)
                if options.results:
                    with options.results.open("a") as file:
                        file.write(json.dumps(entry) + "\n")
                print(f"round {number + 1}, {who}: {entry['rate']:.1f} images/s", file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    main()

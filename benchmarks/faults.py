"""What a run survives, tried for real: kill -9, damaged images, a full disk.

    python benchmarks/faults.py kills GRAPH.onnx IMAGES --count 400 --kills 100
    python benchmarks/faults.py images GRAPH.onnx IMAGES --count 1000
    python benchmarks/faults.py disk GRAPH.onnx IMAGES --count 60 --points 20      (as root: mounts a small tmpfs)

Each prints one line and exits 1 where a promise was broken.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from attlas.engine import Session, Store
from attlas.engine.runtime.decode import prepare
from attlas.engine.runtime.graph import read_spec
from attlas.engine.store.storage import storage_at
from PIL import Image

from engine import repeat


def command(graph: Path, folder: Path, store: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "attlas.cli", "run", str(graph), str(folder), "-o", str(store), *more]


def run(*arguments: object, codes: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)  # type: ignore[arg-type]
    if done.returncode not in codes or "Traceback" in done.stderr:
        sys.exit(f"exit {done.returncode}: {done.stderr[-2000:]}")
    return done


def chunk_files(store: Path) -> dict[str, bytes]:
    place = storage_at(store)
    return {key: place.read(key) for key, _ in place.listing() if "/c." in key}


def same(a: Path, b: Path) -> bool:
    return chunk_files(a) == chunk_files(b)


def kills(place: Path, options: argparse.Namespace) -> str:
    """Kill a run at random moments and start it again, until it has finished; start over until enough were killed."""
    folder = repeat(options.images, place / "images", options.count)
    whole, victim = place / "whole.zarr", place / "victim.zarr"
    start = time.monotonic()
    run(options.graph, folder, whole)
    length = time.monotonic() - start
    rng = np.random.default_rng(options.seed)
    killed = finished = 0
    while killed < options.kills:
        process = subprocess.Popen(
            command(options.graph, folder, victim), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            # Half of them soon after the work begins, half anywhere in what an uninterrupted run takes.
            process.wait(rng.uniform(0, length if rng.random() < 0.5 else length / 4))
            finished += 1
            if process.returncode:
                sys.exit(f"after {killed} kills a run ended with exit {process.returncode}")
            if not same(whole, victim):
                a, b = chunk_files(whole), chunk_files(victim)
                different = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
                sys.exit(f"after {killed} kills a finished store differs: {different[:5]}")
            shutil.rmtree(victim)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    run(options.graph, folder, victim)
    if not same(whole, victim):
        sys.exit(f"after {killed} kills the store differs")
    return f"{killed} kills over {finished + 1} runs of {options.count} images: every chunk file equal each time"


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Truncate, flip bits, or replace by something else."""
    kind = rng.integers(3)
    if kind == 0:
        return data[: int(rng.integers(0, len(data)))]
    if kind == 1:
        flipped = bytearray(data)
        for _ in range(int(rng.integers(1, 40))):
            flipped[int(rng.integers(len(flipped)))] ^= 1 << int(rng.integers(8))
        return bytes(flipped)
    return [b"", b"GIF89a", b"%PDF-1.4 not an image", rng.bytes(5000), b"\x00" * 1000][int(rng.integers(5))]


def images(place: Path, options: argparse.Namespace) -> str:
    """As many damaged images as good ones: named where Pillow raises, and Pillow's pixels everywhere else."""
    folder = repeat(options.images, place / "images", options.count)
    rng = np.random.default_rng(options.seed)
    for i, path in enumerate(sorted(folder.iterdir())):
        data = mutate(path.read_bytes(), rng)
        (folder / f"m{i:06d}{path.suffix}").write_bytes(data)
    run(options.graph, folder, place / "s.zarr", codes=(3,))
    store, spec = Store(place / "s.zarr"), read_spec(options.graph)
    keys, valid, errors = store.read("path"), store.read("valid"), store.read("error")
    session = Session(options.graph)
    raised = wrong = 0
    worst = 0.0
    for i, key in enumerate(keys):
        try:
            with Image.open(io.BytesIO((folder / str(key)).read_bytes())) as picture:
                pixels = np.asarray(prepare(picture.convert("RGB"), spec.recipe))
        except Exception:
            raised += 1
            wrong += bool(valid[i]) or not errors[i]
            continue
        if not valid[i]:
            wrong += 1
            print(f"{key}: Pillow reads it, the store says {errors[i]}", file=sys.stderr)
            continue
        logits = session(pixels)["logits"][0]
        worst = max(worst, float(np.abs(logits - store.read("logits", i)).max()))
    if wrong or worst > 1e-5:
        sys.exit(f"{wrong} images told wrongly, logits off by {worst:.1e}")
    return f"{len(keys)} images, {raised} unreadable and all named, the others' logits within {worst:.1e}"


def disk(place: Path, options: argparse.Namespace) -> str:
    """Fill a small file system up to a random point, run into it, make room, go on."""
    folder = repeat(options.images, place / "images", options.count)
    whole, small = place / "whole.zarr", place / "small"
    run(options.graph, folder, whole)
    size = sum(f.stat().st_size for f in whole.rglob("*") if f.is_file())
    rng = np.random.default_rng(options.seed)
    small.mkdir()
    for _ in range(options.points):
        capacity = 2 * size + (64 << 20)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={capacity}", "tmpfs", str(small)], check=True)
        try:
            room = int(rng.uniform(0.02, 0.98) * size)
            with (small / "ballast").open("wb") as ballast:
                os.posix_fallocate(ballast.fileno(), 0, capacity - room)
            stopped = run(options.graph, folder, small / "s.zarr", codes=(1,))
            if "No space left" not in stopped.stderr:
                sys.exit(f"not a clear line: {stopped.stderr}")
            (small / "ballast").unlink()
            run(options.graph, folder, small / "s.zarr")
            if not same(whole, small / "s.zarr"):
                sys.exit("the resumed store differs")
        finally:
            subprocess.run(["umount", str(small)], check=True)
    return f"{options.points} times a full disk: a clear line each time, and the same bytes after resuming"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["kills", "images", "disk"])
    parser.add_argument("graph", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="attlas-faults-") as place:
        print({"kills": kills, "images": images, "disk": disk}[options.what](Path(place), options))


if __name__ == "__main__":
    main()

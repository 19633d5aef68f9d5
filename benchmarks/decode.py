"""The faster ways to decode against Pillow: equal bytes, time on one thread and on two, and a run without inference.

    python benchmarks/decode.py IMAGES --graph deit_tiny.onnx

Pictures are made and damaged at random; a picture that Pillow refuses must be refused in the same words. Times are
taken in interleaved rounds; the table has medians with their spread. The run keeps nothing, and its session answers at
once.
"""

import argparse
import io
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import attlas
import numpy as np
from attlas.engine.runtime import decoders
from attlas.engine.runtime.decode import PILLOW, DecodeError, Fast, decode_into
from attlas.engine.runtime.fast import load, ways
from attlas.engine.runtime.session import Session
from attlas.engine.sources import Folder
from attlas.exporter.spec import Recipe
from PIL import Image

from engine import repeat, spread

GREY = ((0.5, 0.4, 0.3), (0.5, 0.5, 0.5))
RECIPES = {
    "center bicubic 248/224": Recipe((248, 248), (224, 224), "center", "bicubic", *GREY),
    "center bilinear 256/224": Recipe((256, 256), (224, 224), "center", "bilinear", *GREY),
    "center lanczos 224": Recipe((224, 224), (224, 224), "center", "lanczos", *GREY),
    "center box 110/96": Recipe((110, 110), (96, 96), "center", "box", *GREY),
    "center nearest 128/112": Recipe((128, 128), (112, 112), "center", "nearest", *GREY),
    "center hamming 110x55/96x48": Recipe((110, 55), (96, 48), "center", "hamming", *GREY),
    "squash bicubic 384": Recipe((384, 384), (384, 384), "squash", "bicubic", *GREY),
    "squash bilinear 64x80": Recipe((64, 80), (64, 80), "squash", "bilinear", *GREY),
    "border bicubic 96": Recipe((96, 96), (96, 96), "border", "bicubic", *GREY),
    "border lanczos 224": Recipe((224, 224), (224, 224), "border", "lanczos", *GREY),
}
USUAL = RECIPES["center bicubic 248/224"]


def made(number: int) -> bytes:
    """An encoded picture: any size, mode and format, one in six damaged."""
    rng = np.random.default_rng(number)
    height, width = (int(v) for v in np.exp(rng.uniform(0, np.log(900), 2)))
    small = rng.integers(0, 256, (int(rng.integers(1, 40)), int(rng.integers(1, 40)), 3), np.uint8)
    picture = Image.fromarray(small).resize((width, height), Image.Resampling(int(rng.integers(0, 4))))
    kind = str(rng.choice(["JPEG"] * 7 + ["PNG", "WEBP", "BMP"]))
    modes = {"JPEG": ["RGB"] * 4 + ["L", "CMYK"], "PNG": ["RGB", "L", "P", "RGBA", "LA", "1"]}.get(kind, ["RGB"])
    picture = picture.convert(str(rng.choice(modes)))
    options = {}
    if kind == "JPEG":
        options = {"quality": int(rng.integers(1, 101)), "progressive": bool(rng.integers(0, 6) == 0)}
        options |= {"restart_marker_rows": int(rng.integers(0, 2))}
        options |= {"keep_rgb": True} if rng.integers(0, 5) == 0 else {"subsampling": int(rng.integers(0, 3))}
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    data = bytearray(buffer.getvalue())
    match int(rng.integers(0, 12)):
        case 0:
            del data[int(rng.integers(0, len(data))) :]
        case 1:
            for at in rng.integers(0, len(data), 3):
                data[at] = int(rng.integers(0, 256))
    return bytes(data)


def outcome(data: bytes, recipe: Recipe, fast: Fast) -> tuple[bytes, object]:
    out = np.empty((*recipe.crop, 3), np.uint8)
    try:
        found = decode_into(out, data, recipe, fast)
    except DecodeError as error:
        return b"", str(error)
    return out.tobytes(), found


def equal(pictures: list[tuple[bytes, Recipe]], fast: Fast) -> str:
    """How many are equal, how many Pillow refuses, and how many simplejpeg decoded."""
    taken = 0

    def jpeg(data: bytes, size: tuple[int, int] | None) -> Any:
        nonlocal taken
        assert fast.jpeg is not None
        pixels = fast.jpeg(data, size)
        taken += pixels is not None
        return pixels

    same = refused = 0
    watched = fast._replace(jpeg=jpeg if fast.jpeg is not None else None)
    for data, recipe in pictures:
        theirs = outcome(data, recipe, PILLOW)
        same += outcome(data, recipe, watched) == theirs
        refused += not theirs[0]
    return f"{same:,} of {len(pictures):,}, {refused:,} of them refused alike; simplejpeg decoded {taken:,}"


def seconds(datas: list[bytes], fast: Fast, threads: int) -> tuple[float, float]:
    """(CPU, wall) seconds per image of decoding on so many threads."""

    def work(part: list[bytes]) -> None:
        out = np.empty((*USUAL.crop, 3), np.uint8)
        for data in part:
            decode_into(out, data, USUAL, fast)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, [datas[:1]] * threads))
        cpu, wall = time.process_time(), time.perf_counter()
        list(pool.map(work, [datas[i::threads] for i in range(threads)]))
        return (time.process_time() - cpu) / len(datas), (time.perf_counter() - wall) / len(datas)


def stubbed_run(graph: Path, folder: Path, store: Path, fast: Fast, statistics: Any = "auto") -> float:
    """CPU seconds per image of a run that keeps nothing, without inference: after the first call it answers at once.

    With `statistics="graph"` they are none of the host's work, as on a card.
    """
    run_into = Session.run_into
    done: Future[Fast] = Future()
    done.set_result(fast)
    known = set()

    def answer(self, pixels, buffers, count, target=None):
        if id(buffers) not in known:
            run_into(self, pixels, buffers, len(pixels), target)
            known.add(id(buffers))
            marks.append((time.process_time(), len(pixels)))

    marks: list[tuple[float, int]] = []
    with patch.object(Session, "run_into", answer), patch.object(decoders, "loading", lambda: done):
        attlas.run(graph, folder, store, keep=("none",), overwrite=True, threads=1, statistics=statistics)
    began, first = marks[-1]
    return (time.process_time() - began) / (sum(1 for _ in folder.iterdir()) - first)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("--graph", type=Path, help="an exported deit_tiny, for the run")
    parser.add_argument("--made", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    fast = load()
    if PILLOW in (fast, fast._replace(jpeg=None)):
        sys.exit(f"the faster ways are not there: {ways()}")
    source = Folder.scan(options.images)
    datas = [source.read(item) for item in source.items]
    recipes = list(RECIPES.values())
    print(f"the {len(datas)} images by {len(recipes)} recipes: {equal([(d, r) for d in datas for r in recipes], fast)}")
    made_ones = [(made(i), recipes[i % len(recipes)]) for i in range(options.made)]
    print(f"made ones: {equal(made_ones, fast)}")
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="attlas-bench-") as place:
        folder = repeat(options.images, Path(place) / "images", 1000) if options.graph else None
        for _ in range(options.rounds):
            old, new = seconds(datas, PILLOW, 1), seconds(datas, fast, 1)
            two = seconds(datas, fast, 2)
            found = {"Pillow, core ms": old[0] * 1e3, "fast, core ms": new[0] * 1e3, "fast / Pillow": new[0] / old[0]}
            found["fast, speed of 2 threads / 1"] = new[1] / two[1]
            if folder is not None:
                for name, way in (("Pillow", PILLOW), ("fast", fast)):
                    cost = stubbed_run(options.graph, folder, Path(place) / "run.zarr", way)
                    found[f"run, `--keep none`, all but inference, {name}, core ms"] = cost * 1e3
            for name, value in found.items():
                rows.setdefault(name, []).append(value)
    print("\n| what | median (min-max) |\n|---|---|")
    for name, values in rows.items():
        print(f"| {name} | {spread(values)} |")


if __name__ == "__main__":
    main()

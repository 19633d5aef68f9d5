"""How fast images come out of every kind of source: bytes alone, and bytes with decoding, on one thread.

    python benchmarks/reading.py GRAPH.onnx IMAGES [--count 1000] [--rounds 5]

The same images, under repeated names, are written as a folder, a manifest, one tar, four WebDataset shards and four
Parquet files; rounds are interleaved. The files have just been written, so that this is what the formats cost and not
what the disk does.
"""

from __future__ import annotations

import argparse
import csv
import io
import statistics
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from attlas.engine.runtime.decode import decode
from attlas.engine.runtime.graph import read_spec
from attlas.engine.sources import Folder, Source, open_source

SHARDS = 4


def write(images: Path, place: Path, count: int) -> dict[str, Any]:
    """The sources by name."""
    source = Folder.scan(images)
    given = [source.items[i % len(source.items)] for i in range(count)]
    files = [(f"{i:06d}{Path(item.key).suffix}", source.read(item)) for i, item in enumerate(given)]
    folder, tables = place / "folder", place / "tables"
    folder.mkdir()
    tables.mkdir()
    for name, data in files:
        (folder / name).write_bytes(data)
    with (place / "list.csv").open("w", newline="") as out:
        csv.writer(out).writerows([["path"], *([f"folder/{name}"] for name, _ in files)])
    archive(place / "one.tar", files)
    step = -(-count // SHARDS)
    for n in range(SHARDS):
        part = files[n * step : (n + 1) * step]
        labels = [(f"{name.split('.')[0]}.cls", b"0") for name, _ in part]
        archive(place / f"shard-{n}.tar", [member for pair in zip(part, labels, strict=True) for member in pair])
        rows = pa.array([{"bytes": data, "path": name} for name, data in part])
        pq.write_table(pa.table({"image": rows}), tables / f"{n}.parquet", row_group_size=100)
    rows = pa.array([data for _, data in files])
    pq.write_table(pa.table({"image": rows}), place / "one.parquet")  # all rows in one group
    return {
        "folder": folder,
        "manifest": place / "list.csv",
        "tar": place / "one.tar",
        "WebDataset, 4 shards": f"{place}/shard-{{0..{SHARDS - 1}}}.tar",
        "Parquet, groups of 100 rows": tables,
        "Parquet, one group": place / "one.parquet",
    }


def archive(path: Path, files: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as out:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))


def rates(source: Source, recipe: Any) -> tuple[float, float]:
    """Images per second: read, and read and decoded."""
    start = time.perf_counter()
    for item in source.items:
        source.read(item)
    middle = time.perf_counter()
    for item in source.items:
        decode(source.read(item), recipe)
    end = time.perf_counter()
    return len(source.items) / (middle - start), len(source.items) / (end - middle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    recipe = read_spec(options.graph).recipe
    with tempfile.TemporaryDirectory() as name:
        sources = {kind: open_source(place) for kind, place in write(options.images, Path(name), options.count).items()}
        found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in sources}
        for _ in range(options.rounds):
            for kind, source in sources.items():
                found[kind].append(rates(source, recipe))
    print("| source | read alone, images/s | read and decoded, images/s |\n|---|---|---|")
    for kind, pairs in found.items():
        cells = [f"{statistics.median(v):,.0f} ({min(v):,.0f}-{max(v):,.0f})" for v in zip(*pairs, strict=True)]
        print(f"| {kind} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()

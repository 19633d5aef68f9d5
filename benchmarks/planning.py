"""How long a manifest of 1.28 million rows takes to plan, and how much memory: whole processes, each measured alone.

    python benchmarks/planning.py GRAPH.onnx [--rows 1281167] [--kinds csv,jsonl,parquet,tar]

`plan` is `attlas run --dry-run`; `layout` makes the job and lays the store out on disk, with every path, label, size,
time and column in it, as a run does before its first image. The images themselves are not there, but for the few that
planning looks for.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

LAYOUT = """
import sys
from pathlib import Path
from attlas.engine.job import Request, make_job, open_store
request = Request(graph=Path(sys.argv[1]), output=Path(sys.argv[3]), keep=("attention",), layers=None,
    store_dtype="float16", codec="lz4", batch_size=None, provider="auto", precision="float32",
    decoder="host", target="predicted", limit=None, seed=0,
    reducer=None, statistics="auto", overwrite=False, dry_run=False)
store = open_store(make_job(request, sys.argv[2]))
assert store.array("path").shape == (store.plan.images,)
"""


def row(i: int) -> tuple[str, str, int, float]:
    """Path, label, and two further columns, as long as ImageNet's."""
    group = f"n{i % 1000 + 1_440_000:08d}"
    return f"train/{group}/{group}_{i}.JPEG", group, i % 7, i / 4


def write(kind: str, path: Path, rows: int) -> Path:
    """A manifest, or the headers of as many images in a tar archive."""
    if kind == "tar":
        with path.open("wb") as file:
            for i in range(rows):
                info = tarfile.TarInfo(row(i)[0])
                info.size = 512
                file.write(info.tobuf(tarfile.USTAR_FORMAT) + bytes(512))
            file.write(bytes(1024))
    elif kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = ("path", "label", "split", "score")
        pq.write_table(pa.table(dict(zip(names, zip(*map(row, range(rows)), strict=True), strict=True))), path)
    else:
        with path.open("w") as file:
            if kind == "csv":
                file.write("path,label,split,score\n")
                file.writelines("{},{},{},{}\n".format(*row(i)) for i in range(rows))
            else:
                file.writelines(
                    json.dumps({"path": p, "label": n, "split": s, "score": x}) + "\n"
                    for p, n, s, x in map(row, range(rows))
                )
    first = path.parent / row(0)[0]
    first.parent.mkdir(parents=True, exist_ok=True)
    first.touch()
    return path


def measure(*command: object) -> tuple[float, float]:
    """Seconds and peak MiB of a process."""
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command}: exit {process.returncode}")
    return time.monotonic() - start, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", type=Path)
    parser.add_argument("--rows", type=int, default=1_281_167)
    parser.add_argument("--kinds", default="csv,jsonl,parquet,tar")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        print(f"| {options.rows:,} rows | plan s | plan MiB | layout s | layout MiB |\n|---|---|---|---|---|")
        for kind in options.kinds.split(","):
            images = write(kind, place / f"list.{kind}", options.rows)
            store = place / f"{kind}.zarr"
            command = ("-m", "attlas.cli", "run", options.graph, images, "-o", store, "--dry-run")
            figures = [*measure(*command), *measure("-c", LAYOUT, options.graph, images, store)]
            print(f"| {kind} | " + " | ".join(f"{figure:,.1f}" for figure in figures) + " |", flush=True)
            images.unlink()


if __name__ == "__main__":
    main()

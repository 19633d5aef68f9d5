"""What a card gives, against its limits: each step in a process of its own, within seconds of its own.

    python benchmarks/gpu.py                       # CUDA; vit_base_patch16_224 and deit_tiny_patch16_224 in float16
    python benchmarks/gpu.py --checkpoints FOLDER  # FOLDER/MODEL.safetensors where it is there, else random and sharp
    python benchmarks/gpu.py --quick               # the same code on a CPU, numba playing the card: to see that it runs

The limits come first: decoding on all cores, a disk of plain files, inference alone by the number of images at once,
and with all maps brought to the host. Then parity, the kernels beside the same statistics as operators in the graph,
whole runs with `--keep none` and with a full float16 store, JPEGs decoded on the card, plain PyTorch with hooks, and
stores of the same run twice, and of one that is killed with -9, byte by byte.
Figures are printed as they come, with their share of the limit; a step that fails or takes too long costs itself alone.
A run goes from JPEGs of about 100 kB in memory to a store on a RAM disk (`--place`). No step is begun after nine
minutes (`--minutes`); one model with all steps takes six to seven, so choose with `--models` and `--only`.

A machine that is lent for minutes, has no network and takes 64 MB at a time needs two calls. Prepare, in a folder that
git ignores: `build/slim` is onnxruntime-gpu's wheel, made small (61 MB); `build/site` is what that machine's Python
lacks, `pip install --no-deps --target build/site zarr numcodecs google-crc32c donfig msgspec simplejpeg ndonnx spox
lazy-importer array-api-compat` (5 MB), and for `--decoder cuda` `nvidia-nvimgcodec-cu13 nvidia-nvjpeg` (20 MB if of
`nvidia/nvimgcodec` only `__init__.py`, `libnvimgcodec.so.0`, the extension for that Python and, in `extensions`,
`libnvjpeg_ext.so.0.9.0` are left); `build/weights` are weights, deit_tiny's at least (22 MB).

    1.  with build/slim, 120 s:
        bash build/slim/unpack.sh /tmp/ort
    2.  with build/site and build/weights, 600 s, on the same machine while it is warm:
        mkdir -p /tmp/p && ln -sfn "$PWD" /tmp/p/attlas && PYTHONPATH=/tmp/ort:$PWD/build/site:/tmp/p python -u \
        benchmarks/gpu.py --checkpoints build/weights 2>&1 | tee "$OUT/gpu.txt"
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import attlas
import numpy as np
import numpy.typing as npt
from attlas.analysis.kernels.fused import Reducer
from attlas.engine.contents import Choices, Contents
from attlas.engine.keep import Keep
from attlas.engine.runtime import providers
from attlas.engine.runtime.decode import decode_into
from attlas.engine.runtime.decoders import Decoder
from attlas.engine.runtime.fast import loading
from attlas.engine.runtime.graph import read_spec
from attlas.engine.runtime.session import Session
from attlas.engine.store.store import Store
from gpu_pictures import Repeated, pictures  # beside this file
from gpu_torch import build, peer

MODELS = ("vit_base_patch16_224", "deit_tiny_patch16_224")
PICTURES = 64  # different ones; a run repeats them
BATCHES = (32, 64, 128, 256)
STORE_BYTES = 32e9  # the most that a run stores, and at most half of what is free
RUN_SECONDS = 24.0  # of a run at the speed of its limits, so that start and end do not decide; less for operators
STORED = (("attention", "card", "lz4"), ("attention", "card", "none"))
ROUNDS = 20  # of the kernels


# -- one process, one step ---------------------------------------------------------------------------------------------


class Bench:
    """What a step needs, and the figures of those before it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.place = options, Path(options.place)
        self.quick: bool = options.quick
        self.seconds = 0.3 if self.quick else 2.0
        self.encoded = pictures(2, 40, 32) if self.quick else pictures(PICTURES)
        if options.images:
            self.encoded = [path.read_bytes() for path in sorted(options.images.iterdir())]
        self._known = self.place / "figures.json"
        self.known: dict[str, float] = json.loads(self._known.read_text()) if self._known.exists() else {}
        if self.quick:  # the processor takes the way of a card, and numba's simulator that of its kernels
            sys.setswitchinterval(1e-5)
            providers.PROVIDERS = (providers.Provider(providers.CPU, device="cpu", cards=True),)

    def say(self, name: str, value: float, unit: str, of: str = "") -> None:
        """Print a figure, as a share of a limit that is known; keep it for the steps to come."""
        share = f"  {value / self.known[of]:.2f} of {of}" if self.known.get(of) else ""
        print(f"| {name} | {value:,.4g} {unit} |{share}", flush=True)
        self.known[name] = value
        self._known.write_text(json.dumps(self.known))

    def graph(self, model: str) -> Path:
        return self.place / f"{model}.onnx"

    def session(
        self, model: str, batch: int, statistics: Any, keep: str = "none", decoder: Decoder = "host"
    ) -> Session:
        """As a run makes it; without statistics for None."""
        spec = read_spec(self.graph(model))
        chosen = Keep.choose(spec, (keep,), None, "float16")
        contents = Contents.derive(spec, Choices(chosen, Reducer, statistics or "host"))
        choices = contents.placed(self.options.provider) if statistics else {"wanted": contents.wanted(appended=True)}
        return Session(self.graph(model), provider=self.options.provider, batch=batch, decoder=decoder, **choices)

    def batches(self) -> tuple[int, ...]:
        return (1, 2) if self.quick else BATCHES


def rate(step: Callable[[], int], seconds: float) -> float:
    """Images (or bytes) per second of a step that returns how many it did, after one to warm up."""
    step()
    done, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        done += step()
    return done / spent


def inferred(session: Session, batch: int, seconds: float) -> float:
    """Images per second of black batches from two threads, with whatever the session brings to the host."""
    sets = [(session.pixels(batch), session.buffers(batch)) for _ in range(2)]
    session.run_into(*sets[0], batch)
    with ThreadPoolExecutor(1 if session.card is not None and sys.getswitchinterval() < 1e-4 else 2) as pool:

        def step() -> int:
            return batch * len(list(pool.map(lambda own: session.run_into(own[0], own[1], batch), sets)))

        return rate(step, seconds)


def limits(bench: Bench, model: str) -> None:
    """Decoding on all cores, and a disk of plain files."""
    from attlas.exporter.spec import Recipe

    recipe = Recipe((224, 224), (248, 248), "center", "bicubic", (0.5,) * 3, (0.5,) * 3)
    fast = loading().result()
    with ThreadPoolExecutor(providers.cores()) as pool:
        room = [np.zeros((224, 224, 3), np.uint8) for _ in bench.encoded]

        def step() -> int:
            return len(list(pool.map(lambda out, data: decode_into(out, data, recipe, fast), room, bench.encoded)))

        bench.say("decode", rate(step, bench.seconds), f"images/s on {providers.cores()} cores")
        # As many new files as a store has: memory that a file has just left costs a RAM disk a fraction of new memory.
        data = np.random.default_rng(0).bytes(2**24)
        count = 2 if bench.quick else int(min(STORE_BYTES / 2, shutil.disk_usage(bench.place).free / 4)) >> 24
        start = time.perf_counter()
        list(pool.map(lambda k: (bench.place / f"block{k}").write_bytes(data), range(count)))
        bench.say("disk", count * len(data) / (time.perf_counter() - start) / 1e9, "GB/s of plain files")
    for k in range(count):
        (bench.place / f"block{k}").unlink()


def exported(bench: Bench, model: str) -> None:
    """The graph in float16."""
    _, weights = build(model, bench.options.checkpoints, bench.place)
    attlas.export(model, bench.graph(model), checkpoint=weights, dtype="float32" if bench.quick else "float16")
    print(f"| {model} | {bench.graph(model).stat().st_size / 1e6:.0f} MB of graph |", flush=True)


def alone(bench: Bench, model: str) -> None:
    """Inference alone: nothing comes to the host but logits."""
    for batch in bench.batches():
        session = bench.session(model, batch, None)
        speed = inferred(session, batch, bench.seconds)
        recorded = "recorded" if session._recorder is not None else "not recorded"
        bench.say(f"{model}: inference, {batch} at once", speed, f"images/s, {recorded}")
        best = f"{model}: inference"
        if speed > bench.known.get(best, 0):
            bench.say(best, speed, "images/s, the best of them so far")
    batch = bench.batches()[0]
    speed = inferred(bench.session(model, batch, None, "attention"), batch, bench.seconds)
    bench.say(f"{model}: maps to the host", speed, "images/s", f"{model}: inference")


def parity(bench: Bench, model: str) -> None:
    """Attention against the CPU's, and the kernels' statistics against the host's of the same attention."""
    spec = read_spec(bench.graph(model))
    count = 1 if bench.quick else 4
    pixels = np.random.default_rng(0).integers(0, 256, (count, *spec.image_size, 3), np.uint8)

    def of(session: Session) -> dict[str, npt.NDArray[Any]]:
        buffers = session.buffers(count)
        session.run_into(pixels, buffers, count)
        return buffers

    got = of(bench.session(model, count, "card", "attention"))
    layers = [got[f"attention.{layer}:float16"] for layer in spec.layers]
    for name, values in Reducer(spec)(layers).items():
        found = got[f"appended:{name}"].astype(np.float64)
        worst = np.nanmax(np.abs(found - values)) / max(np.nanmax(np.abs(values)), 1e-30)
        bench.say(f"{model}: {name}, card against host", float(worst), "of the largest")
    cpu = Session(bench.graph(model), provider="cpu", device="")(list(pixels))["attention"].astype(np.float64)
    variation = np.abs(np.stack(layers, 1) - cpu).sum(-1) / 2
    bench.say(f"{model}: rows, total variation from the CPU, mean", float(variation.mean()), "")
    bench.say(f"{model}: rows, total variation from the CPU, largest", float(variation.max()), "")


def kernels(bench: Bench, model: str) -> None:
    """The two kernels alone, and what statistics cost a batch, by kernels and by operators."""
    spec = read_spec(bench.graph(model))
    each = len(spec.layers) * spec.heads * spec.tokens**2 * 2
    few, *_, many = bench.batches()
    for batch in (few,) if bench.quick else (few, many):
        session = bench.session(model, batch, "card")
        with session._slots(batch).slot() as slot:
            assert slot.reduce is not None
            rounds = 1 if bench.quick else ROUNDS
            start = time.perf_counter()
            for _ in range(rounds):
                slot.reduce()
            spent = (time.perf_counter() - start) / rounds
        read = f"maps read twice at {2 * batch * each / spent / 1e9:.0f} GB/s"
        bench.say(f"{model}: both kernels, {batch} images", 1e3 * spent, f"ms, {read}")
        for way in ("card", "graph") if batch == few else ("card",):
            session = bench.session(model, batch, way) if way == "graph" else session
            speed = inferred(session, batch, bench.seconds)
            best = f"{model}: inference, {batch} at once"
            bench.say(f"{model}: inference and statistics, {way}, {batch} at once", speed, "images/s", best)
        del session


def runs(bench: Bench, model: str) -> None:
    """Whole runs; the batch is what a run finds."""
    for keep, way, codec in (("none", "card", "lz4"), ("none", "graph", "lz4"), *STORED):
        run(bench, model, keep, way, codec=codec)


def run(bench: Bench, model: str, keep: str, way: str, decoder: Decoder = "host", codec: str = "lz4") -> None:
    """One of them."""
    spec = read_spec(bench.graph(model))
    each = len(spec.layers) * spec.heads * spec.tokens**2 * 2
    decoding = "decode" if decoder == "host" else "decode on the card"
    inferring = f"{model}: inference" + (" and statistics, graph, 32 at once" if way == "graph" else "")
    limit = min((bench.known[name] for name in (inferring, decoding) if name in bench.known), default=100.0)
    most = 3 if bench.quick else int(limit * RUN_SECONDS / (1 if way == "card" else 4))
    room = min(STORE_BYTES, shutil.disk_usage(bench.place).free / 2)
    count = most if keep == "none" else max(3, min(most, int(room / each)))
    store, marks = bench.place / "bench.zarr", list[tuple[int, float]]()
    choices: dict[str, Any] = {"threads": 1, "batch_size": 1} if bench.quick else {}
    result = attlas.run(
        bench.graph(model), Repeated(bench.encoded, count), store, keep=(keep,), statistics=way,  # type: ignore[arg-type]
        provider=bench.options.provider, overwrite=True, decoder=decoder, codec=codec, **choices,
        progress=lambda p: marks.append((p.done, time.perf_counter())),
    )  # fmt: skip
    # From the moment that units are handed out: a real run is long against its start, which is shown apart.
    (_, planned), (first, began), (last, ended) = marks[0], marks[1], marks[-1]
    speed = (last - first) / max(ended - began, 1e-9)
    slowest = max(result.stages, key=lambda stage: result.stages[stage])
    plan, threads = result.estimate.plan, Store(store).record["runs"][-1]["units_at_once"]
    how = f"{plan.at_once} at once, {plan.units} units on {threads} threads"
    name = f"{model}: run --keep {keep}, statistics by {way}" + (", --decoder cuda" if decoder == "cuda" else "")
    name += ", --codec none" if codec == "none" else ""
    alone = ", ".join(f"{stage} {spent:.1f}" for stage, spent in result.stages.items())
    bench.say(name, speed, f"images/s of {count}, {how}, most time in {slowest}", f"{model}: inference")
    spent = f"of {threads * (ended - began):.1f}, after {began - planned:.1f} to begin"
    shares = [f"{speed / bench.known[decoding]:.2f} of {decoding}"] if decoding in bench.known else []
    if keep != "none" and "disk" in bench.known:
        shares.append(f"{speed * each / 1e9:.2f} GB/s, {speed * each / 1e9 / bench.known['disk']:.2f} of disk")
    for line in (f"seconds of all threads: {alone}; {spent}", *shares):
        print(f"|   | {line} |", flush=True)
    shutil.rmtree(store)


def decoded(bench: Bench, model: str) -> None:
    """Decoding on the card: alone, how far its results are from the host's, and in a run."""
    if bench.quick:
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        from support_decoder import play  # type: ignore[import-not-found]

        play()
        sys.setswitchinterval(0.005)  # this kernel's threads do not wait for each other
    batch = 1 if bench.quick else 128
    many = [bench.encoded[i % len(bench.encoded)] for i in range(batch)]
    speed = filled(bench.session(model, batch, None, decoder="cuda"), many, bench.seconds)
    bench.say("decode on the card", speed, "images/s", "decode")
    some = bench.encoded[: 1 if bench.quick else 32]
    card, host = (looked(bench.session(model, len(some), None, "attention", way), some) for way in ("cuda", "host"))
    off = np.abs(card[0].astype(np.int16) - host[0])
    bench.say(f"{model}: pixels, card against host, mean", float(off.mean()), "of 255")
    bench.say(f"{model}: pixels, card against host, largest", float(off.max()), "of 255")
    varied = [np.abs(a.astype(np.float32) - b).sum(-1) / 2 for a, b in zip(card[1], host[1], strict=True)]
    bench.say(f"{model}: rows, card's pixels against the host's, mean", float(np.mean(varied)), "total variation")
    bench.say(f"{model}: rows, card's pixels against the host's, largest", float(np.max(varied)), "total variation")
    same = int((card[2].argmax(-1) == host[2].argmax(-1)).sum())
    bench.say(f"{model}: pictures whose top-1 is the host's", same, f"of {len(some)}")
    run(bench, model, "none", "host" if bench.quick else "card", "cuda")


def filled(session: Session, encoded: Sequence[bytes], seconds: float) -> float:
    """Images per second of batches that threads fill."""
    rooms = [session.pixels(len(encoded)) for _ in range(2 if len(encoded) > 1 else 1)]
    with ThreadPoolExecutor(2) as pool:

        def step() -> int:
            return sum(pool.map(lambda room: len(list(session.filler.fill(room, encoded))), rooms))

        return rate(step, seconds)


def looked(session: Session, encoded: Sequence[bytes]) -> tuple[npt.NDArray[Any], list[npt.NDArray[Any]], Any]:
    """The crops of pictures, their attention by layer, and logits."""
    count = len(encoded)
    pixels, buffers = session.pixels(count), session.buffers(count)
    list(session.filler.fill(pixels, encoded))
    session.run_into(pixels, buffers, count)
    crops = np.stack([session.filler.crop(pixels, i) for i in range(count)])
    return crops, [values for name, values in buffers.items() if name.startswith("attention.")], buffers["logits"]


def peers(bench: Bench, model: str) -> None:
    """PyTorch with hooks: alone, with the default statistics by torch, and with float16 maps by `numpy.save`."""
    device = "cpu" if bench.quick else "cuda"
    batch = 1 if bench.quick else 32
    for name, step in peer(model, bench.options.checkpoints, bench.place, device, batch, read_spec(bench.graph(model))):
        bench.say(f"{model}: PyTorch, {name}", rate(step, bench.seconds), "images/s", f"{model}: inference")


def same(bench: Bench, model: str) -> None:
    """Chunk files of a run that differ in the same run again, and in one that is killed three times and resumed."""
    place = bench.place / model  # which the next model has for itself, too
    (images := place / "images").mkdir(parents=True)
    for k in range(4 if bench.quick else 1500):
        (images / f"{k:05d}.jpg").write_bytes(bench.encoded[k % len(bench.encoded)])
    stores = [place / f"{name}.zarr" for name in ("first", "again", "killed")]

    def started(store: Path) -> subprocess.Popen[bytes]:
        choices = ["--provider", bench.options.provider, "--batch-size", "1" if bench.quick else "32"]
        command = [sys.executable, "-m", "attlas.cli", "run", bench.graph(model), images, "-o", store, *choices]
        return subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    running = [started(store) for store in stores[:2]]
    assert [process.wait() for process in running] == [0, 0]
    first, again = (chunks(store) for store in stores[:2])
    whole = f"of {len(first)}"
    bench.say(f"{model}: chunks that differ in the same run again", differing(first, again), whole)
    for share in (0.2, 0.5, 0.8):
        process = started(stores[2])
        while process.poll() is None and len(list(stores[2].rglob("c.*"))) < share * len(first):
            time.sleep(0.02)
        process.kill()
        process.wait()
    assert started(stores[2]).wait() == 0
    resumed = chunks(stores[2])
    bench.say(f"{model}: chunks that differ after three kills", differing(first, resumed), whole)
    shutil.rmtree(place)


def differing(one: Mapping[str, bytes], other: Mapping[str, bytes]) -> int:
    """How many chunks are not in both, with the same bytes."""
    return sum(one.get(key) != other.get(key) for key in {*one, *other})


def chunks(store: Path) -> dict[str, bytes]:
    """The digest of every chunk file."""
    return {str(p.relative_to(store)): sha256(p.read_bytes()).digest() for p in sorted(store.rglob("c.*"))}


# Each step with its seconds; those of a model for each model.
STEPS: dict[str, tuple[Callable[[Bench, str], None], int]] = {
    "limits": (limits, 40),
    "export": (exported, 90),
    "alone": (alone, 75),
    "parity": (parity, 60),
    "kernels": (kernels, 60),
    "runs": (runs, 150),
    "decoded": (decoded, 90),
    "peers": (peers, 90),
    "same": (same, 90),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--provider", default="cuda")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--checkpoints", type=Path, help="a folder of MODEL.safetensors")
    parser.add_argument("--images", type=Path, help="a folder of JPEGs in place of made ones")
    parser.add_argument("--place", default="/dev/shm", help="where stores are written: a RAM disk")
    parser.add_argument("--only", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--minutes", type=float, default=9.0, help="after these no step is begun")
    parser.add_argument("--quick", action="store_true", help="one tiny model on the CPU: to see that all of it works")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.provider, options.models = "cpu", ["test_vit"]
    if options.step:
        STEPS[options.step[0]][0](Bench(options), options.step[1])
        return
    start = time.perf_counter()
    place = options.place if os.access(options.place, os.W_OK) else None
    environment = os.environ | ({"NUMBA_ENABLE_CUDASIM": "1"} if options.quick else {})
    with tempfile.TemporaryDirectory(prefix="attlas-gpu-", dir=place) as folder:
        jobs = [(name, model) for model in options.models for name in options.only if name != "limits"]
        for name, model in [("limits", "all"), *jobs] if "limits" in options.only else jobs:
            left = 60 * options.minutes - (time.perf_counter() - start)
            limit = min(STEPS[name][1] * (4 if options.quick else 1), left)
            if left < 10:
                print(f"| {name} {model} | left out for want of time |", flush=True)
                continue
            command = [sys.executable, __file__, *sys.argv[1:], "--place", folder, "--step", name, model]
            try:
                done = subprocess.run(
                    command, env=environment, timeout=limit, check=False, stderr=subprocess.PIPE, text=True
                )
                if done.returncode:
                    print(
                        f"| {name} {model} | FAILED: {' / '.join(done.stderr.strip().splitlines()[-3:])} |", flush=True
                    )
            except subprocess.TimeoutExpired:
                print(f"| {name} {model} | more than {limit:.0f} s |", flush=True)
    print(f"{time.perf_counter() - start:.0f} s in all", flush=True)


if __name__ == "__main__":
    main()

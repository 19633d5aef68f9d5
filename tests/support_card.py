"""The card's kernels in numba's simulator, which has to be chosen before numba is imported: in a process of its own.

python support_card.py OUT.npz                           # every case's results, as CASE/NAME
python support_card.py GRAPH IMAGES STORE KEEP DTYPE...  # runs whose statistics are on a card, into STORE.KEEP.zarr
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from attlas.exporter.spec import GraphSpec, Output
from support import make_spec

ROOT = Path(__file__).resolve().parents[2]


def pool_spec(keys: int) -> GraphSpec:
    """A model that reads its tokens by attention pooling over the last `keys` of seven tokens."""
    outputs = make_spec(pooling="pool").outputs
    pool = Output("pool_attention", ("image", "head", "pool_query", "key"), (None, 2, 1, keys))
    return make_spec(pooling="pool", outputs=(*outputs, pool))


# The spec, images, and dtype of each case.
CASES: dict[str, tuple[GraphSpec, int, str]] = {
    "class token": (make_spec(), 3, "float16"),
    "float32, heads of two warps": (make_spec(grid=(3, 5), heads=3), 2, "float32"),
    "registers": (make_spec(grid=(3, 3), prefix=("class", "register", "register")), 2, "float16"),
    "distilled": (make_spec(prefix=("class", "distillation"), pooling="distilled"), 1, "float16"),
    "no class token": (make_spec(grid=(4, 4), prefix=()), 2, "float16"),
    "8 x 12": (make_spec(grid=(8, 12), layers=1, heads=1), 1, "float16"),
    "197 tokens": (make_spec(grid=(14, 14), layers=1, heads=1), 1, "float16"),
    "257 tokens": (make_spec(grid=(16, 16), layers=1, heads=1), 1, "float32"),
    "pool": (pool_spec(7), 2, "float16"),
    "pool of patches": (pool_spec(6), 2, "float16"),
    "mixed": (make_spec(attention_kind="mixed"), 1, "float32"),
    "some layers": (make_spec(layers=3, depth=4), 1, "float16"),
    "not finite": (make_spec(), 3, "float16"),
    "nothing on patches": (make_spec(), 3, "float16"),
}


def attention(case: str) -> tuple[list[np.ndarray], np.ndarray | None]:
    """Attention far from uniform, (image, head, query, key) for each layer, and the pool's map."""
    spec, images, dtype = CASES[case]
    rng = np.random.default_rng(len(case))
    shape = (images, spec.heads, spec.tokens, spec.tokens)
    layers = []
    for _ in spec.layers:
        a = np.exp(3 * rng.normal(size=shape))
        layers.append((a / a.sum(-1, keepdims=True)).astype(dtype))
    if case == "mixed":
        layers = [a - np.float32(0.01) for a in layers]
    elif case == "not finite":
        layers[1][2, 1, 4, 5] = np.nan
    elif case == "nothing on patches":
        layers[0][1, 0, 3] = np.eye(7)[0]
        layers[1][2, 1] = np.eye(7)[0]
    given = spec.output("pool_attention")
    pool = None if given is None else rng.dirichlet(np.ones(given.shape[-1]), size=(images, 2, 1)).astype(np.float32)
    return layers, pool


def simulated(script: str, *arguments: str) -> None:
    """Run a script of this folder in a process where numba plays a card."""
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": path}
    command = [sys.executable, str(Path(__file__).parent / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def compute(case: str) -> dict[str, Any]:
    """What the kernels make of a case, its layers side by side with a gap between them."""
    from attlas.analysis.kernels.fused import Reducer
    from attlas.engine.runtime.cuda import Memory

    def memory(array: np.ndarray) -> Memory:
        return Memory(array.ctypes.data, array.shape, array.dtype.name)

    spec, images, dtype = CASES[case]
    layers, pool = attention(case)
    card = Reducer(spec).on_card(dtype)  # type: ignore[arg-type]
    assert card is not None
    assert card.pool == (pool is not None)
    stride = layers[0].size + 5
    block = np.full((len(layers), stride), 7, dtype)
    for row, layer in zip(block, layers, strict=True):
        row[: layer.size] = layer.reshape(-1)
    found = {name: np.full((images, *shape), 7).astype(kind) for name, (shape, kind) in card.outputs.items()}
    block = np.append(block, np.full(card.margin, np.nan, dtype))  # what is there does not matter
    places = {name: memory(array) for name, array in found.items()}
    card.bind(images, memory(block), stride, places, None if pool is None else memory(pool))()
    return found


def run(graph: str, images: str, store: str, keep: str, dtype: str) -> None:
    """A run whose card is the processor; the simulator takes one launch at a time."""
    import attlas
    from attlas.engine.runtime import providers
    from attlas.engine.runtime.providers import CPU, Provider

    providers.PROVIDERS = (Provider(CPU, device="cpu", cards=True),)
    choices: dict[str, Any] = {"keep": (keep,), "store_dtype": dtype, "batch_size": 3, "limit": 2, "threads": 1}
    attlas.run(graph, images, store, statistics="card", **choices)


def hasten() -> None:
    """Let the simulator's threads, which wait for each other all the time, take turns often; and share what they share.

    Its own way to find a shared array may give two threads one each.
    """
    from numba.cuda.simulator.kernelapi import FakeCUDAShared

    def array(self: Any, shape: Any, dtype: Any) -> np.ndarray:
        frame = sys._getframe(1)
        place = frame.f_code.co_filename, frame.f_lineno
        return self._allocations.setdefault(place, np.empty(shape, str(dtype)))  # atomic

    FakeCUDAShared.array = array
    sys.setswitchinterval(1e-5)


def main() -> None:
    """See above."""
    hasten()
    if len(sys.argv) == 2:
        results = {f"{case}/{name}": array for case in CASES for name, array in compute(case).items()}
        np.savez(sys.argv[1], **results)  # type: ignore[arg-type]
        return
    graph, images, store, *kept = sys.argv[1:]
    for keep, dtype in zip(kept[::2], kept[1::2], strict=True):
        run(graph, images, f"{store}.{keep}.zarr", keep, dtype)


if __name__ == "__main__":
    main()

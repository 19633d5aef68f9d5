"""Check what works on this machine: test every provider, list versions, and find conflicting onnxruntime packages."""

from __future__ import annotations

import platform
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from typing import Any

from .runtime.fast import ways
from .runtime.providers import providers

__all__ = ["doctor"]

WHEELS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-silicon")
EXTRAS = {
    "exporter": ("torch", "torchvision", "timm", "onnxscript", "safetensors"),
    "transformers": ("transformers",),
    "open-clip": ("open_clip_torch",),
    "analysis": ("numba", "xarray", "dask", "matplotlib", "scipy"),
    "fast": ("simplejpeg", "numba"),
    "parquet": ("pyarrow",),
    "remote": ("fsspec", "s3fs"),
    "distributed": ("distributed",),
    "demo": ("scikit-image",),
    "openvino": ("openvino",),
}
CORE = ("attlas", "numpy", "onnx", "pillow", "zarr", "click", "tqdm")
SECONDS = 120

# Runs in a separate process, so that a provider that crashes, hangs or prints does no harm. The graph is two blocks of
# a small transformer; the time is that of one core, as in a run.
_TRIAL = """
import sys, time, numpy, onnx
from onnx import TensorProto, helper, numpy_helper
nodes, weights, rng = [], [], numpy.random.default_rng(0)
def add(op, inputs, outputs, **attributes):
    nodes.append(helper.make_node(op, inputs.split(), outputs.split(), **attributes))
def weight(name, *shape):
    values = (rng.normal(size=shape) / shape[0] ** 0.5).astype(numpy.float32)
    weights.append(numpy_helper.from_array(values, name))
    return values
for name, shape in (("split", [1, 197, 3, 3, 64]), ("join", [1, 197, 192])):
    weights.append(numpy_helper.from_array(numpy.array(shape), name))
def linear(given, name, *shape):
    weight(f"{name}w", *shape), weight(f"{name}b", shape[1])
    add("MatMul", f"{given} {name}w", f"{name}m")
    add("Add", f"{name}m {name}b", name)
weight("gain", 192)
for i in range(2):
    add("LayerNormalization", f"x{i} gain", f"n{i}")
    linear(f"n{i}", f"qkv{i}", 192, 576)
    add("Reshape", f"qkv{i} split", f"heads{i}")
    add("Transpose", f"heads{i}", f"parts{i}", perm=[2, 0, 3, 1, 4])
    add("Split", f"parts{i}", f"q{i} k{i} v{i}", axis=0, num_outputs=3)
    add("Transpose", f"k{i}", f"t{i}", perm=[0, 1, 2, 4, 3])
    add("MatMul", f"q{i} t{i}", f"scores{i}")
    add("Softmax", f"scores{i}", f"soft{i}", axis=-1)
    add("Cast", f"soft{i}", f"a{i}", to=TensorProto.FLOAT16)
    add("MatMul", f"soft{i} v{i}", f"mixed{i}")
    add("Transpose", f"mixed{i}", f"merged{i}", perm=[0, 1, 3, 2, 4])
    add("Reshape", f"merged{i} join", f"joined{i}")
    linear(f"joined{i}", f"o{i}", 192, 192)
    add("Add", f"x{i} o{i}", f"y{i}")
    add("LayerNormalization", f"y{i} gain", f"z{i}")
    linear(f"z{i}", f"f{i}", 192, 768)
    add("Gelu", f"f{i}", f"gelu{i}")
    linear(f"gelu{i}", f"g{i}", 768, 192)
    add("Add", f"y{i} g{i}", f"x{i + 1}")
value = lambda name, kind, *shape: helper.make_tensor_value_info(name, kind, shape)
outputs = [value(f"a{i}", TensorProto.FLOAT16, 1, 1, 3, 197, 197) for i in range(2)]
outputs.append(value("x2", TensorProto.FLOAT, 1, 197, 192))
graph = helper.make_graph(nodes, "trial", [value("x0", TensorProto.FLOAT, 1, 197, 192)], outputs, weights)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()
x = rng.normal(size=(1, 197, 192)).astype(numpy.float32)
if sys.argv[1] == "OpenVINO":
    sys.modules["openvino_telemetry"] = None
    import openvino
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}
    compiled = openvino.Core().compile_model(openvino.Core().read_model(model, b""), "CPU", settings)
    request = compiled.create_infer_request()
    used, run = "OpenVINO", lambda: (request.infer({"x0": x}, share_outputs=True), request.output_tensors[0].data)[1:]
else:
    import onnxruntime as ort
    ort.set_default_logger_severity(4)
    if hasattr(ort, "preload_dlls") and sys.argv[1] != "CPUExecutionProvider":
        ort.preload_dlls()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=[sys.argv[1]])
    used, run = session.get_providers()[0], lambda: session.run(None, {"x0": x})[0]
rows = [run() for _ in range(10)][-1][0].astype(numpy.float32).sum(-1)
assert abs(rows - 1).max() < 0.01, "wrong result"
began = time.process_time()
for _ in range(50):
    run()
print(f"used:{used} {(time.process_time() - began) * 20:.3f}")
"""


# Likewise.
_DECODES = """
import sys
from attlas.engine.runtime.nvimgcodec import version
from attlas.engine.runtime.on_card import trial
from attlas.errors import AttlasError
try:
    found = version()  # first, since it says what brings the library
    trial()
    print("nvImageCodec", found)
except AttlasError as error:
    sys.exit(str(error).removeprefix("--decoder cuda: "))
"""


def doctor() -> dict[str, Any]:
    """Test every provider in a subprocess, and list what is installed; every value is plain JSON.

    Returns:
        `providers` (name -> "works" or the reason), `milliseconds` (for those that work: the best time of a small
        transformer on one core), `decoding` (what decodes, `fast.ways`, and on a card), `versions`, `extras`
        (extra -> missing packages), `problems` (one line each; empty if all is well), `python`, `system`.
    """
    tried = {name: _try(name) for name in providers()}
    found = {name: state for name, (state, _) in tried.items()}
    installed = {name: version for name in (*CORE, *WHEELS) if (version := _version(name))}
    extras = {}
    for extra, names in EXTRAS.items():
        extras[extra] = [name for name in names if _version(name) is None]
        installed |= {name: version for name in names if (version := _version(name))}
    problems = []
    wheels = [name for name in WHEELS if name in installed]
    if len(wheels) > 1:
        problems.append(
            f"{' and '.join(wheels)} are installed together and overwrite each other: "
            f"`pip uninstall -y {' '.join(wheels)}`, then install one"
        )
    if found.get("CPUExecutionProvider") != "works":
        problems.append("onnxruntime does not run on the CPU: reinstall it")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "providers": found,
        "decoding": ways() | {"JPEG on a card": _on_card()},
        "milliseconds": {name: best for name, (state, best) in tried.items() if state == "works"},
        "versions": installed,
        "extras": extras,
        "problems": problems,
    }


def _try(provider: str) -> tuple[str, float]:
    """The text "works", or a short reason; and the milliseconds, or 0."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRIAL, provider], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"hangs for more than {SECONDS} s", 0.0
    used = next((line[5:].split() for line in done.stdout.splitlines() if line.startswith("used:")), None)
    if used is None:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return f"fails ({last[:160]})", 0.0
    if used[0] != provider:
        return f"falls back to {used[0]} (no such device, or its libraries are missing)", 0.0
    return "works", float(used[1])


def _on_card() -> str:
    """What decodes on a card with `--decoder cuda`, or why nothing does."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _DECODES], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"nothing (nvImageCodec hangs for more than {SECONDS} s)"
    if not done.returncode:
        return done.stdout.strip().splitlines()[-1]
    return f"nothing ({(done.stderr.strip().splitlines() or ['nvImageCodec crashes'])[-1][:200]})"


def _version(name: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return None

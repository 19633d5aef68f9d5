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
    "analysis": ("numba", "xarray", "dask", "matplotlib", "scipy"),
    "fast": ("simplejpeg", "numba"),
    "parquet": ("pyarrow",),
    "remote": ("fsspec", "s3fs"),
    "distributed": ("distributed",),
    "demo": ("scikit-image",),
}
CORE = ("attlas", "numpy", "onnx", "pillow", "zarr", "click", "tqdm")
SECONDS = 120

# Runs in a separate process, so that a provider that crashes, hangs or prints does no harm.
_TRIAL = """
import sys, numpy, onnx, onnxruntime as ort
from onnx import TensorProto, helper
ort.set_default_logger_severity(4)
value = lambda n: helper.make_tensor_value_info(n, TensorProto.FLOAT, [64, 64])
graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "trial", [value("x")], [value("y")])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
if hasattr(ort, "preload_dlls") and sys.argv[1] != "CPUExecutionProvider":
    ort.preload_dlls()
session = ort.InferenceSession(model.SerializeToString(), providers=[sys.argv[1]])
x = numpy.eye(64, dtype=numpy.float32) * 2
assert (session.run(None, {"x": x})[0] == x @ x).all(), "wrong result"
print("used:" + session.get_providers()[0])
"""


def doctor() -> dict[str, Any]:
    """Test every provider in a subprocess, and list what is installed; every value is plain JSON.

    Returns:
        `providers` (name -> "works" or the reason), `decoding` (what decodes, `fast.ways`), `versions`, `extras` (extra
        -> missing packages), `problems` (one line each; empty if all is well), `python`, `system`.
    """
    found = {name: _try(name) for name in providers()}
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
        "decoding": ways(),
        "versions": installed,
        "extras": extras,
        "problems": problems,
    }


def _try(provider: str) -> str:
    """The text "works", or a short reason."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRIAL, provider], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"hangs for more than {SECONDS} s"
    used = next((line[5:] for line in done.stdout.splitlines() if line.startswith("used:")), None)
    if used == provider:
        return "works"
    if used is not None:
        return f"falls back to {used} (no such device, or its libraries are missing)"
    last = (done.stderr.strip().splitlines() or ["no output"])[-1]
    return f"fails ({last[:160]})"


def _version(name: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return None

"""Choose what computes a graph: an execution provider of onnxruntime, or OpenVINO.

To support another provider of onnxruntime, add an entry to `PROVIDERS`.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import onnxruntime as ort

from ...errors import AttlasError, UsageError, one_line

__all__ = [
    "CPU",
    "CUDA",
    "OPENVINO",
    "TENSORRT",
    "Precision",
    "Provider",
    "accelerates",
    "check_precision",
    "cores",
    "create_session",
    "find",
    "on_cards",
    "preload",
    "providers",
    "resolve_provider",
]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
OPENVINO = "OpenVINO"  # the package itself, which is not a provider of onnxruntime

type Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Provider:
    """The settings for one execution provider.

    Attributes:
        name: onnxruntime's name, or `OPENVINO`.
        options: its options in onnxruntime.
        environment: environment variables for its libraries, unless the user has set them.
        device: onnxruntime's name of the device that keeps outputs; "" if onnxruntime returns them to the host.
        then: the provider for nodes that this one does not support, before the CPU.
        host: whether it computes on this machine's processor, where statistics are faster outside the graph.
        cards: whether it runs on the cards of CUDA_VISIBLE_DEVICES.
        captures: options with which a card records its runs as CUDA graphs, and repeats them.
        half: options for float16 graphs.
        left_out: optimisers of onnxruntime that are disabled for float16 graphs.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    then: str = ""
    host: bool = False
    cards: bool = False
    captures: Mapping[str, str] = field(default_factory=dict)
    half: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


PROVIDERS: tuple[Provider, ...] = (
    # It computes half precision between casts, and drops casts that undo each other. Merging equal casts hides such
    # pairs, so the rounding of a value would depend on its other uses.
    Provider(CPU, host=True, left_out=("CommonSubexpressionElimination",)),
    Provider(
        CUDA,
        # TF32 rounds the scores to 10 bits; the search for convolution algorithms costs seconds per shape.
        {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"},
        device="cuda",
        cards=True,
        captures={"enable_cuda_graph": "1"},
        # There the factors of scores are float16 values, which TF32 holds exactly, and sums are float32 either way.
        half={"use_tf32": "1"},
    ),
    Provider(
        TENSORRT,
        # No extra rounding and no cache files: an engine is built for the run's one batch shape, which takes minutes
        # once per run.
        {"trt_fp16_enable": "0", "trt_int8_enable": "0", "trt_engine_cache_enable": "0"},
        # It multiplies float32 in TF32 unless the driver forbids it; onnxruntime has no option for that.
        {"NVIDIA_TF32_OVERRIDE": "0"},
        device="cuda",
        then=CUDA,
        cards=True,
    ),
    Provider(OPENVINO, host=True),
)

# Set once: onnxruntime reports errors by exceptions here, never by lines on the terminal.
ort.set_default_logger_severity(4)


def find(name: str) -> Provider:
    """The settings of a provider; default settings for one that is not in `PROVIDERS`."""
    return next((one for one in PROVIDERS if one.name == name), Provider(name))


def cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def providers() -> list[str]:
    """The names onnxruntime reports, and `OPENVINO` if it is installed, whether or not they work on this machine."""
    own = [OPENVINO] if importlib.util.find_spec("openvino") is not None else []
    return [*ort.get_available_providers(), *own]


def resolve_provider(provider: str) -> list[str]:
    """The providers to try, best first, for `auto`, `cpu`, `cuda`, `openvino` or any name onnxruntime reports.

    Raises:
        UsageError: there is no such provider here.
    """
    known = {p.removesuffix("ExecutionProvider").lower(): p for p in providers()}
    wanted = provider.lower().removesuffix("executionprovider")
    if wanted == "auto":
        return [CUDA, CPU] if CUDA in known.values() and _has_driver() else [CPU]
    if wanted not in known and wanted == OPENVINO.lower():
        raise UsageError(f"--provider {provider}: is not installed; `pip install 'attlas[openvino]'` brings it")
    if wanted not in known:
        raise UsageError(f"--provider {provider}: there is {', '.join(sorted(known))} here")
    return [known[wanted]]


def check_precision(provider: str, precision: str) -> None:
    """Refuse a precision that does not exist, or that the requested provider does not compute in.

    Raises:
        UsageError: it does not.
    """
    known = get_args(Precision.__value__)
    if precision not in known:
        raise UsageError(f"--precision {precision}: a run computes in {' or '.join(known)}")
    if precision != "float32" and resolve_provider(provider) != [OPENVINO]:
        raise UsageError(f"--precision {precision}: only `--provider openvino` computes in it, not {provider}")


def accelerates(provider: str) -> bool:
    """Whether the requested provider computes on something other than this machine's processor."""
    return not find(resolve_provider(provider)[0]).host


def on_cards(provider: str) -> bool:
    """Whether the requested provider runs on cards, so that each worker can have its own."""
    return find(resolve_provider(provider)[0]).cards


def create_session(
    model: bytes,
    options: Any,
    candidates: Sequence[str],
    path: Path,
    *,
    strict: bool,
    half: bool,
    capture: bool = False,
) -> tuple[Any, bool]:
    """A session on the first candidate that works, and whether it records its runs.

    Args:
        model: the serialised graph.
        options: onnxruntime's session options.
        candidates: names of providers, best first.
        path: path of the graph, for errors.
        strict: whether any provider other than the first candidate is an error.
        half: whether the graph computes in float16.
        capture: record runs where the first candidate can, and all of the graph is on the card.

    Raises:
        AttlasError: onnxruntime cannot load it, or `strict` and it fell back.
    """
    first = find(candidates[0])
    for name, value in first.environment.items():
        os.environ.setdefault(name, value)
    if first.cards:
        preload()  # the check below reports what is missing
    chosen = [find(name) for name in dict.fromkeys([*candidates, *([first.then] if first.then else []), CPU])]
    capture = capture and bool(first.captures)

    def load(those: Sequence[Provider], more: Mapping[str, str]) -> Any:
        def own(one: Provider) -> dict[str, str]:
            return {**one.options, **(one.half if half else {}), **(more if one is first else {})}

        return ort.InferenceSession(
            model,
            options,
            providers=[(one.name, own(one)) for one in those],
            disabled_optimizers=list(first.left_out) if half else [],
            enable_fallback=0,  # it would print what failed
        )

    session = None
    if capture:
        # It refuses a graph of which a node is on the host; an error that has another reason comes again.
        with contextlib.suppress(Exception):
            session = load(chosen, first.captures)
    capture = session is not None and session.get_providers()[0] == first.name
    if session is None:
        # Without the libraries of TensorRT it raises, where without those of CUDA it falls back.
        with contextlib.suppress(Exception):
            session = load(chosen, {})
    try:
        session = session if session is not None else load(chosen[-1:], {})
    except Exception as error:  # onnxruntime's exceptions have no common base except Exception
        raise AttlasError(f"{path}: onnxruntime cannot load it ({one_line(error, 300)})") from None
    if strict and session.get_providers()[0] != first.name:
        raise AttlasError(
            f"{first.name} was asked for, but onnxruntime fell back to {session.get_providers()[0]}: "
            "`attlas doctor` says what is missing (`pip install attlas[gpu]` brings the CUDA libraries)"
        )
    return session, capture


def preload() -> None:
    """Load the CUDA libraries that pip installed, as far as they are there.

    onnxruntime prints what it does not find, into a command's own output; what is missing is the doctor's to say.
    """
    if hasattr(ort, "preload_dlls"):
        with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()


def _has_driver() -> bool:
    """Whether an NVIDIA driver can be loaded: without one, trying CUDA only costs time."""
    names = {"win32": "nvcuda.dll", "linux": "libcuda.so.1"}
    try:
        ctypes.CDLL(names[sys.platform])
    except (KeyError, OSError):
        return False
    return True

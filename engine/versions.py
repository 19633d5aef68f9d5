"""The versions that affect the numbers: recorded in every store, and equal on all workers."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata

from ..errors import AttlasError

__all__ = ["check_versions", "versions"]

NVIMGCODEC = "nvimgcodec"  # nvImageCodec, whose distributions have several names


def versions(provider: str = "", decoder: str = "host") -> dict[str, str]:
    """The installed versions by package name; OpenVINO's only for that provider, nvImageCodec's for that decoder."""
    names = ["attlas", "numpy", "zarr", "pillow", "numba"]
    if provider.lower().partition(",")[0] == "openvino":
        names.append("openvino")
    found = {"python": platform.python_version()}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    import onnxruntime

    if decoder == "cuda":
        from .runtime.nvimgcodec import version

        with suppress(AttlasError):
            found[NVIMGCODEC] = version()
    return found | {"onnxruntime": onnxruntime.__version__}


def check_versions(expected: Mapping[str, str]) -> None:
    """Compare a worker's versions with the expected ones; Python's may differ.

    Raises:
        AttlasError: a version differs or is missing.
    """
    here = versions("openvino" if "openvino" in expected else "", "cuda" if NVIMGCODEC in expected else "host")
    wrong = [
        f"{name} {here.get(name, 'missing')} there, {version} here"
        for name, version in expected.items()
        if name != "python" and here.get(name) != version
    ]
    if wrong:
        raise AttlasError(f"{', '.join(wrong)}; install the same")

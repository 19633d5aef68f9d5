"""The front door: the library that a model's name belongs to, and the model that its adapter builds."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from ...errors import AttlasError, UsageError
from .protocol import Library, Model, Request

__all__ = ["LIBRARIES", "build", "find"]

# The adapters by the prefix of a model's name, `PREFIX:NAME`; each has its `LIBRARY`, and is imported when asked for.
LIBRARIES = {"timm": ".timm.adapter", "transformers": ".transformers.adapter"}

_TIMMS_OWN = ("hf-hub", "hf_hub", "local-dir")  # timm's own prefixes


def find(model: str) -> tuple[Library, str]:
    """The adapter for a model's name, and the name without the library's prefix; timm's names need none.

    Raises:
        UsageError: no library is called so.
        AttlasError: it is not installed.
    """
    prefix, colon, rest = model.partition(":")
    if not colon or prefix in _TIMMS_OWN:
        prefix, rest = "timm", model
    if prefix not in LIBRARIES:
        raise UsageError(
            f"{prefix}: is no library whose models are exported; these are: {', '.join(sorted(LIBRARIES))} "
            "(a name without one is timm's)"
        )
    try:
        module = importlib.import_module(LIBRARIES[prefix], __package__)
    except ModuleNotFoundError as error:
        if error.name != prefix:
            raise
        raise AttlasError(
            f"this needs {prefix}, which is not installed: `pip install 'attlas[{prefix}]'` brings it"
        ) from None
    found: Library = module.LIBRARY
    return found, rest


def build(
    model: str,
    *,
    checkpoint: object = None,
    pretrained: bool = True,
    random_init: bool = False,
    seed: int = 0,
    img_size: object = None,
    preprocess: str | Mapping[str, object] | None = None,
    num_classes: int | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> Model:
    """The model in eval mode with its weights; arguments as in `Request`, errors as in `Library.build`."""
    library, name = find(model)
    request = Request(
        checkpoint, pretrained, random_init, seed, img_size, preprocess, num_classes, dict(model_args or {})
    )
    return library.build(name, request)

"""The front door: the library that a model's name belongs to, and the model that its adapter builds."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ...errors import AttlasError, UsageError
from .protocol import Library, Model, Request

__all__ = ["LIBRARIES", "build", "find"]

# The adapters by the prefix of a model's name, `PREFIX:NAME`; each has its `LIBRARY`, and is imported when asked for.
LIBRARIES = {"open_clip": ".open_clip", "timm": ".timm.adapter", "transformers": ".transformers.adapter"}
_OWN = ".module"  # of modules that belong to no library

_TIMMS_OWN = ("hf-hub", "hf_hub", "local-dir")  # timm's own prefixes


def find(model: str) -> tuple[Library, str]:
    """The adapter for a model's name, and the name without the library's prefix; timm's names need none.

    Raises:
        UsageError: no library is called so.
        AttlasError: it is not installed.
    """
    if not model.strip():
        raise UsageError("MODEL is empty; `attlas models` lists the names")
    prefix, colon, rest = model.partition(":")
    if not colon or prefix in _TIMMS_OWN:
        prefix, rest = "timm", model
    if prefix not in LIBRARIES:
        raise UsageError(
            f"{prefix or repr(model)}: is no library whose models are exported; these are: "
            f"{', '.join(sorted(LIBRARIES))} (a name without one is timm's)"
        )
    try:
        return _adapter(LIBRARIES[prefix]), rest
    except ModuleNotFoundError as error:
        if error.name != prefix:
            raise
        raise AttlasError(
            f"this needs {prefix}, which is not installed: `pip install 'attlas[{prefix}]'` brings it"
        ) from None


def _adapter(home: str) -> Library:
    found: Library = importlib.import_module(home, __package__).LIBRARY
    return found


def _adopt(module: nn.Module, request: Request) -> Model:
    """The model of a copy of a module, by the adapter of the library that one of its classes comes from."""
    if request.checkpoint is not None or request.random_init or request.model_args:
        raise UsageError(
            f"{type(module).__name__}: a module has its weights and its arguments; leave out checkpoint, random_init "
            "and model_args"
        )
    homes = [kind.__module__.partition(".")[0] for kind in type(module).__mro__]
    home = next((LIBRARIES[name] for name in homes if name in LIBRARIES), _OWN)
    library = _adapter(home)
    if request.texts and not library.has_texts:
        raise UsageError(f"texts: {type(module).__name__} has no text tower here; models of open_clip have")
    own = copy.deepcopy(module).eval().requires_grad_(False).float().cpu()
    return library.adopt(own, request)


def build(
    model: str | nn.Module,
    *,
    checkpoint: object = None,
    pretrained: bool = True,
    random_init: bool = False,
    seed: int = 0,
    img_size: object = None,
    preprocess: str | Mapping[str, object] | None = None,
    num_classes: int | None = None,
    model_args: Mapping[str, Any] | None = None,
    texts: Sequence[str] = (),
) -> Model:
    """The model in eval mode with its weights; arguments as in `Request`, errors as in `Library.build`.

    `model` is a name, `LIBRARY:NAME` or timm's, or a module, of which a copy is taken.
    """
    request = Request(
        checkpoint,
        pretrained,
        random_init,
        seed,
        img_size,
        preprocess,
        num_classes,
        dict(model_args or {}),
        tuple(texts),
    )
    if isinstance(model, nn.Module):
        return _adopt(model, request)
    library, name = find(model)
    if request.texts and not library.has_texts:
        raise UsageError(f"--text: {model} has no text tower here; models of open_clip:NAME/TAG have")
    return library.build(name, request)

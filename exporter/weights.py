"""Weights from a file of the user's: read without running anything it may hold, and matched key by key."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import AttlasError, UsageError

__all__ = ["StateDict", "digest", "load_into", "read"]

StateDict = dict[str, Tensor]


def digest(module: nn.Module) -> str:
    """SHA-256 over the state dict's sorted names, dtypes, shapes and bytes: equal weights, equal text."""
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{tuple(tensor.shape)}\0".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def read(path: Path, loader: Callable[[str], Any]) -> StateDict:
    """The tensors of a checkpoint by name.

    Args:
        path: safetensors, or a torch file holding a state dict, bare or under `state_dict` or `model`.
        loader: reads one file with `weights_only=True`.

    Raises:
        UsageError: there is no such file.
        AttlasError: it holds code, is damaged, or holds no named tensors.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file; --checkpoint takes safetensors or a torch state dict")
    try:
        state = loader(str(path))
    except Exception as error:  # whatever a damaged file makes of the readers, the user reads one line
        if "weights_only" in str(error) or "Unpickling" in type(error).__name__:
            raise AttlasError(
                f"{path}: refused, since it holds Python objects besides tensors, and reading them could run code; "
                "save model.state_dict() with safetensors or torch.save and pass that"
            ) from None
        raise AttlasError(
            f"{path}: cannot be read as safetensors or a torch state dict ({_first_line(error)}); is the file complete?"
        ) from None
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise AttlasError(f"{path}: holds no named tensors; save model.state_dict() and pass that")
    return state


def load_into(
    module: nn.Module,
    state: StateDict,
    where: Path,
    *,
    convert: Callable[[StateDict], StateDict],
    classifier: Sequence[str],
    resample: bool,
) -> None:
    """Load every weight, or none.

    Args:
        module: the model that takes them.
        state: the tensors by name, as `read` gives them.
        where: the file, for errors.
        convert: the model family's own renaming of foreign names.
        classifier: the names of the head's modules.
        resample: whether `convert` may have resized position embeddings, because another image size was asked for.

    Raises:
        AttlasError: names or shapes differ: how many, the first three, and what to do.
    """
    try:
        converted = convert(dict(state))
    except Exception:  # a foreign file may lack what the converter looks for; the comparison below then names it
        converted = state
    _refuse_resampled(state, converted, where, resample)
    own = module.state_dict()
    missing = sorted(own.keys() - converted.keys())
    extra = sorted(converted.keys() - own.keys())
    shapes = sorted(k for k in own.keys() & converted.keys() if own[k].shape != converted[k].shape)
    if not (missing or extra or shapes):
        module.load_state_dict(converted, strict=True)
        return
    said = []
    if missing:
        said.append(f"{len(missing)} keys of the model are missing ({_some(missing)})")
    if extra:
        said.append(f"{len(extra)} are unknown to it ({_some(extra)})")
    if shapes:
        each = [f"{k} {_shape(converted[k])} instead of {_shape(own[k])}" for k in shapes]
        said.append(f"{len(shapes)} have another shape ({_some(each)})")
    raise AttlasError(
        f"{where}: these are not the weights of this model: {'; '.join(said)}; "
        + _remedy({*missing, *extra, *shapes}, converted, classifier)
    )


def _remedy(differing: set[str], state: StateDict, classifier: Sequence[str]) -> str:
    """What to do about keys that differ: where only the head does, the class count is what is wrong."""
    if all(key.startswith(tuple(f"{c}." for c in classifier)) for key in differing):
        weight = next((state[f"{c}.weight"] for c in classifier if f"{c}.weight" in state), None)
        return f"only the head differs: pass --num-classes {0 if weight is None else weight.shape[0]}"
    return "name the model that they belong to"


def _refuse_resampled(state: StateDict, converted: StateDict, where: Path, allowed: bool) -> None:
    """Refuse what timm does silently: it resizes embeddings, and another model's weights would load without a word."""
    # The patch first: another patch size changes the positions too.
    for key in sorted(state.keys() & converted.keys(), key=lambda k: ("patch_embed" not in k, k)):
        before, after = state[key], converted[key]
        if before.numel() == after.numel():
            continue
        if "patch_embed" in key:
            raise AttlasError(
                f"{where}: {key} is {_shape(before)}, this model's is {_shape(after)}: the weights belong to a model "
                "of another patch size; name that one"
            )
        if not allowed:
            raise AttlasError(
                f"{where}: {key} is {_shape(before)}, this model's is {_shape(after)}: the weights belong to another "
                "image size; name that model, or pass --img-size to have the positions resampled"
            )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]

"""Load weights from a checkpoint, checked key by key against the model; and the hash of a model's weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...errors import AttlasError
from .checkpoint import Choice, StateDict, foreign, parts

__all__ = ["Undrawn", "digest", "load_into", "refuse_not_finite"]

_NAME_IT = "name the model that they belong to"
_DRAWS = frozenset({Tensor.uniform_, Tensor.normal_, Tensor.erfinv_})


class Undrawn(TorchFunctionMode):
    """A context to build a model in whose weights are then all loaded: the random ones are not drawn.

    They take a second for every hundred million. What else a model computes as it is built is computed.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, unless it fills a tensor with random values."""
        return args[0] if function in _DRAWS else function(*args, **(kwargs or {}))


def digest(module: nn.Module) -> str:
    """SHA-256 over the state dict's sorted names, dtypes, shapes and bytes: equal weights give equal text."""
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{tuple(tensor.shape)}\0".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def load_into(
    module: nn.Module,
    choice: Choice,
    where: Path,
    *,
    classifier: Sequence[str],
    resample: bool,
    resembling: Callable[[Mapping[str, tuple[int, ...]]], Sequence[str]] = lambda shapes: (),
) -> None:
    """Load every weight, or none.

    Args:
        module: the model to load them into.
        choice: the weights, from `checkpoint.choose`.
        where: the file, for errors.
        classifier: the names of the head's modules.
        resembling: names of models that may have weights of these shapes, for errors.
        resample: whether the conversion may resize position embeddings, because the user chose another image size.

    Raises:
        AttlasError: names or shapes differ (the error says how many, the first three, and what to do), or a weight is
            NaN or infinite.
    """
    converted = choice.converted
    _refuse_resampled(choice.state, converted, where, resample)
    own = module.state_dict()
    missing = sorted(own.keys() - converted.keys())
    extra = sorted(converted.keys() - own.keys())
    shapes = sorted(k for k in own.keys() & converted.keys() if own[k].shape != converted[k].shape)
    if not (missing or extra or shapes):
        refuse_not_finite(converted, where)
        module.load_state_dict(converted, strict=True)
        return
    if (known := foreign(choice.state)) and len(missing) > len(own) / 2:
        raise AttlasError(f"{where}: these are not the weights of this model: {known}")
    differences = []
    if missing:
        differences.append(f"{len(missing)} keys of the model are missing ({_some(missing)})")
    if extra:
        differences.append(f"{len(extra)} are unknown to it ({_some(extra)})")
    if shapes:
        each = [f"{k} {_shape(converted[k])} instead of {_shape(own[k])}" for k in shapes]
        differences.append(f"{len(shapes)} have another shape ({_some(each)})")
    part = f" ({choice.key})" if choice.key else ""
    remedy = _remedy({*missing, *extra, *shapes}, converted, classifier)
    near = resembling({n: tuple(t.shape) for n, t in choice.state.items() if t.is_floating_point()})
    if near and remedy == _NAME_IT:
        remedy += f"; of their shapes {'is' if len(near) == 1 else 'are'} {', '.join(near[:6])}"
        remedy += ", ..." if len(near) > 6 else ""
    if len(missing) == len(own):
        remedy += f", or their place in the file as FILE:KEY (it holds {parts(choice.state)})"
    raise AttlasError(f"{where}{part}: these are not the weights of this model: {'; '.join(differences)}; {remedy}")


def refuse_not_finite(state: Mapping[str, Tensor], where: object) -> None:
    """Refuse weights that are NaN or infinite; otherwise only the comparison of the graph would fail."""
    wrong = [k for k, v in state.items() if v.is_floating_point() and not bool(v.isfinite().all())]
    if wrong:
        raise AttlasError(
            f"{where}: {len(wrong)} of its {len(state)} tensors hold NaN or infinity ({_some(wrong)}): the training "
            "diverged or the file is damaged; pass an earlier checkpoint"
        )


def _remedy(differing: set[str], state: StateDict, classifier: Sequence[str]) -> str:
    """What to do about different keys: if only the head differs, the number of classes is wrong."""
    if all(key.startswith(tuple(f"{c}." for c in classifier)) for key in differing):
        weight = next((state[f"{c}.weight"] for c in classifier if f"{c}.weight" in state), None)
        return f"only the head differs: pass --num-classes {0 if weight is None else weight.shape[0]}"
    return _NAME_IT


def _refuse_resampled(state: StateDict, converted: StateDict, where: Path, allowed: bool) -> None:
    """Refuse embeddings of another size: timm resizes them silently, so another model's weights would load."""
    # The patch embedding first: another patch size also changes the positions.
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

"""Read a checkpoint file of the user, and find the model's weights in it.

Frameworks wrap a model's weights in dictionaries (`model`, `model_ema`, `teacher`) and prefixes (`module.`,
`backbone.`). Both are handled in the same way: the file is flattened to dotted names, and `WRAPPERS` lists the leading
parts that may be removed. The set with the most matching names and shapes is used. No code in a file is ever run.
"""

from __future__ import annotations

import argparse
import os
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...errors import AttlasError, UsageError, first_line
from ...files import from_json

__all__ = ["WRAPPERS", "Choice", "StateDict", "choose", "foreign", "locate", "parts", "read", "refuse_quantised"]

StateDict = dict[str, Tensor]

_AVERAGE = "the running average (EMA)"
_TEACHER = "the teacher, which is the student's running average"

# Names that may wrap a model's weights, with their meaning; if several fit, the first of this list is used.
# Running averages come first: timm evaluates them, and DINO, iBOT and MoCo publish them.
WRAPPERS: dict[str, str] = {
    "state_dict_ema": _AVERAGE,
    "model_ema": _AVERAGE,
    "ema_state_dict": _AVERAGE,
    "ema_model": _AVERAGE,
    "ema": _AVERAGE,
    "teacher": _TEACHER,
    "momentum_encoder": "the momentum encoder, a running average",
    "target_encoder": "the target encoder, a running average",
    "state_dict": "",
    "model_state_dict": "",
    "model": "",
    "student": "the student",
    "base_encoder": "",
    "encoder": "",
    "backbone": "",
    "net": "",
    "network": "",
    "module": "",
    "_orig_mod": "",
    "timm_model": "",
    "visual": "",
    "trunk": "",
    "vit": "",
    "image_encoder": "",
    "feature_extractor": "",
}
# What weights are computed in, and what quantised ones are stored in, by safetensors' names.
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_QUANTISED = re.compile(r"[IU][48]$|F[468]_")
_ORDER = {name: rank for rank, name in enumerate(WRAPPERS)}
_DEEPEST = 6

# First bytes of files that are not weights.
_BEGINNINGS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself; `git lfs pull` fetches it"),
    (b"<", "is a web page (HTML or XML), not weights; download the file itself, by its link to the raw file"),
    (b"\x1f\x8b", "is compressed by gzip; unpack it and pass the file inside"),
    (b"7z\xbc\xaf", "is a 7z archive; unpack it and pass the file inside"),
    (b"\x89HDF", "is HDF5 (Keras or TensorFlow), not PyTorch's; save the weights under timm's names as safetensors"),
    (b"{", "is JSON text, not weights; of an index, pass the folder (transformers:FOLDER)"),
    (b"GGUF", "is GGUF (llama.cpp); pass safetensors or a torch state dict"),
    (b"\x93NUMPY", "is a NumPy array; pass safetensors or a torch state dict"),
)

# Names that only other libraries use, with the library and what to do.
_FOREIGN = (
    (r"\.lora_[AB]\.|\.lora_(up|down)\.", "LoRA adapters", "merge them into the model and save its state_dict()"),
    (
        r"(^|\.)(embeddings\.patch_embeddings?\.|encoder\.layers?\.\d+\.(attention|self_attn)\.)",
        "a model of transformers",
        "pass transformers:FOLDER, the folder that has it with its config.json, or timm's file of the same weights",
    ),
    (
        r"(^|\.)(transformer\.resblocks\.\d+\.|text\.transformer\.|token_embedding\.|logit_scale$)",
        "an image-text model of OpenAI CLIP or open_clip",
        "pass open_clip:NAME as the model, or name its image tower in timm (`attlas models 'vit*clip*'` lists them)",
    ),
    (
        r"encoder\.layers\.encoder_layer_\d+\.",
        "a model of torchvision",
        "attlas reads timm's names: pass timm's weights, or rename these",
    ),
)


@dataclass(frozen=True, slots=True)
class Choice:
    """The weights taken from a checkpoint.

    Attributes:
        key: the dotted prefix of the tensors in the file, "" for the whole file; `others`: prefixes that also fit.
        state: the tensors under the file's names, without the prefix.
        converted: the same tensors under the model's names.
    """

    key: str
    others: tuple[str, ...]
    state: StateDict
    converted: StateDict

    def notes(self, path: Path) -> list[str]:
        """One line on which weights were used and how to use the others; empty if there was no choice."""
        if not self.others:
            return []
        meaning = next((WRAPPERS[part] for part in self.key.split(".") if WRAPPERS.get(part)), "")
        taken = f"{self.key}, {meaning}," if meaning else self.key or "the one without a name"
        ways = " or ".join(f"{path.name}:{other}" for other in self.others)
        return [f"{path.name} holds several sets of weights: {taken} was taken; --checkpoint {ways} takes another"]


def locate(checkpoint: str | os.PathLike[str]) -> tuple[Path, str]:
    """The file and the key of `FILE` or `FILE:KEY`; a colon of a Windows drive or in a file's name starts no key.

    Raises:
        UsageError: there is no such file, or it is a URL.
    """
    text = os.path.expanduser(checkpoint)  # noqa: PTH111 - pathlib raises for `~nobody`
    if not text:
        raise UsageError("--checkpoint: is empty; pass a file of weights")
    if re.match(r"[a-z][a-z0-9+-]+:/", text, re.IGNORECASE):
        raise UsageError(f"{text}: is an address; download the file and pass its path with --checkpoint")
    path, key = Path(text), ""
    file, _, end = text.rpartition(":")
    if len(file) > 1 and re.fullmatch(r"[\w.-]+", end) and not path.exists():
        path, key = Path(file), end.strip(".")
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; pass the file in it that holds the weights (.safetensors, .pth, .bin)")
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file; --checkpoint takes safetensors or a torch state dict")
    return path, key


def read(path: Path) -> StateDict:
    """Every tensor of the file by its dotted name.

    Raises:
        AttlasError: it is not a file of weights, contains code, is damaged, or has no named tensors.
    """
    kind = _kind(path)
    try:
        if kind == "safetensors":
            content: Any = load_file(path, device="cpu")
        else:
            # timm's own training checkpoints hold a Namespace of plain values.
            with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # readers raise anything on a damaged file; the user gets one line
        if "weights_only" in str(error) or "Unpickling" in type(error).__name__:
            raise AttlasError(f"{path}: refused, since {_objects(path)}") from None
        raise AttlasError(
            f"{path}: cannot be read as safetensors or a torch state dict ({first_line(error)}); is the file complete?"
        ) from None
    flat: StateDict = {}
    _flatten(content, "", flat)
    if not flat:
        raise AttlasError(f"{path}: holds no named tensors; save model.state_dict() and pass that")
    return flat


def choose(
    flat: StateDict, key: str, own: Mapping[str, Tensor], convert: Callable[[StateDict], StateDict], path: Path
) -> Choice:
    """The weights in the file that fit the model best.

    Args:
        flat: every tensor of the file, from `read`.
        key: the user's choice, a prefix of the names; "" for none.
        own: the model's state dict.
        convert: the model family's own renaming of foreign names.
        path: the file, for errors.

    Raises:
        UsageError: nothing in the file is called `key`.
    """
    start = f"{key}." if key else ""
    if not any(name.startswith(start) for name in flat):
        raise UsageError(f"{path}: holds nothing called {key!r}; it holds {parts(flat)}")
    found: list[tuple[int, str, StateDict, StateDict]] = []
    for prefix in _prefixes(flat, start):
        state = {name.removeprefix(prefix): tensor for name, tensor in flat.items() if name.startswith(prefix)}
        try:
            converted = convert(dict(state))
        except Exception:  # the file may lack names that the converter needs; the comparison of names then reports it
            converted = state
        fit = sum(name in converted and converted[name].shape == tensor.shape for name, tensor in own.items())
        found.append((fit, prefix, state, converted))
    if any(fit for fit, *_ in found):
        found.sort(key=lambda one: (-one[0], _preference(one[1])))
    best, prefix, state, converted = found[0]
    kinds = {t.dtype for n, t in converted.items() if n in own and own[n].is_floating_point()}.difference(_FLOATS)
    if kinds:
        raise _quantised(path, str(kinds.pop()).removeprefix("torch."))
    others = tuple(
        p.rstrip(".")
        for fit, p, _, other in found[1:]
        if fit == best > 0 and p and not all(torch.equal(other[n], converted[n]) for n in own.keys() & converted.keys())
    )
    return Choice(prefix.rstrip("."), others, state, converted)


def refuse_quantised(path: Path) -> None:
    """Refuse a safetensors file with quantised weights, by its header; a library would read them without their scales.

    Raises:
        AttlasError: it has matrices of 8 bits or fewer, or is no file of weights.
    """
    if _kind(path) != "safetensors":
        return
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            header = from_json(file.read(size))
        except ValueError:
            return  # cut off, which its reader says
    for entry in header.values():
        if len(entry.get("shape", ())) > 1 and _QUANTISED.match(entry["dtype"]):
            raise _quantised(path, entry["dtype"])


def _quantised(path: Path, kind: str) -> AttlasError:
    return AttlasError(
        f"{path}: its weights are quantised ({kind}), and their scales are not read; pass those in float32, float16 or "
        "bfloat16"
    )


def foreign(flat: StateDict) -> str:
    """The library that a foreign file comes from, and what to do; "" if the names match no known library."""
    for pattern, what, remedy in _FOREIGN:
        if any(re.search(pattern, name) for name in flat):
            return f"it is {what}: {remedy}"
    return ""


def _prefixes(flat: StateDict, start: str) -> list[str]:
    """`start`, and every longer prefix that consists of wrappers."""
    found = [start]
    for prefix in found:  # grows as it goes
        parts = {name[len(prefix) :].partition(".")[0] for name in flat if name.startswith(prefix)}
        if prefix.count(".") < _DEEPEST:
            found += [f"{prefix}{part}." for part in WRAPPERS if part in parts]
    return found


def _preference(prefix: str) -> tuple[int, int]:
    ranks = [_ORDER.get(part, len(_ORDER)) for part in prefix.split(".")]
    return min(ranks), len(ranks)


def parts(flat: StateDict) -> str:
    """The first parts of the names with their numbers of tensors, the largest first."""
    counts = Counter(name.partition(".")[0] for name in flat)
    listed = [f"{part} ({count} tensors)" if count > 1 else part for part, count in counts.most_common(6)]
    return ", ".join(listed) + (", ..." if len(counts) > 6 else "")


def _flatten(content: Any, prefix: str, flat: StateDict) -> None:
    if not isinstance(content, Mapping) or prefix.count(".") > 8:
        return
    for name, value in content.items():
        if not isinstance(name, str):
            continue
        if isinstance(value, Tensor):
            flat[prefix + name] = value
        else:
            _flatten(value, f"{prefix}{name}.", flat)


def _kind(path: Path) -> str:
    """Whether the file is safetensors or torch's, by its first bytes and not by its name.

    Raises:
        AttlasError: it is neither; the error says what it is.
    """
    with path.open("rb") as file:
        head = file.read(1024)
    if not head:
        raise AttlasError(f"{path}: is empty; the download or copy did not end, fetch it again")
    # safetensors: the length of the header in 8 bytes, then JSON.
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return "safetensors"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for beginning, what in _BEGINNINGS:
        if text.startswith(beginning):
            raise AttlasError(f"{path}: {what}")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        _check_zip(path, names)
    elif not head.startswith(b"\x80"):
        start = head[:20].decode("ascii", "replace").encode("ascii", "replace").decode()
        raise AttlasError(
            f"{path}: is neither safetensors nor a torch file (it begins with {start!r}); pass the file of weights"
        )
    return "torch"


def _check_zip(path: Path, names: list[str]) -> None:
    """Refuse a zip file that torch did not write."""
    if any(name.endswith("/constants.pkl") or name == "constants.pkl" for name in names):
        raise AttlasError(f"{path}: is TorchScript, a program; save the model's state_dict() and pass that")
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return
    if names and all(name.endswith(".npy") for name in names):
        raise AttlasError(
            f"{path}: is a NumPy archive (.npz, of JAX); pass timm's file of the same weights, or save them under "
            "timm's names as safetensors"
        )
    first = f", the first {names[0]}" if names else ""
    raise AttlasError(
        f"{path}: is a zip archive of {len(names)} files{first}, not weights; unpack it and pass the file inside"
    )


def _objects(path: Path) -> str:
    """Why a pickle is not read, what it contains, and what to do."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # an old or damaged pickle cannot be inspected
        names = []
    held = f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
    reason = f"it holds Python objects besides tensors{held}, and reading them could run code"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            pickles = [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]
        if any(b"pytorch-lightning_version" in content for content in pickles):
            return (
                f"this checkpoint of Lightning holds hyper-parameters{held}, and reading them could run code; save "
                "model.state_dict() with safetensors or torch.save and pass that"
            )
    return f"{reason}; save model.state_dict() with safetensors or torch.save and pass that"

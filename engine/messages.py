"""Format results as lines for the user, and parse the text of options."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..words import ranges
from .amounts import amount

if TYPE_CHECKING:
    from ..exporter.models.summary import Summary
    from ..exporter.trace.export import ExportResult

__all__ = [
    "arguments",
    "batch_size",
    "doctor_lines",
    "edges",
    "export_lines",
    "facts_lines",
    "layers",
    "model_lines",
    "shard",
    "texts",
]


def export_lines(result: ExportResult) -> list[str]:
    """The result of an export, as lines, with its difference from PyTorch."""
    parity, spec = result.parity, result.spec
    head = "logits" if spec.output("logits") else "features"
    exact = "" if parity.own is None else f" in float64, whose own float32 is {parity.own:.1e} from it"
    lines = [
        f"largest row total variation from PyTorch{exact} {parity.row_max:.1e} (mean {parity.row_mean:.1e}), "
        f"{head} within {parity.head:.1e}; {len(spec.layers)} layers, {spec.heads} heads, {spec.tokens} tokens; "
        f"{amount(result.bytes)} in {result.seconds:.0f} s"
    ]
    if parity.gradient_max is not None:
        lines.append(f"largest gradient difference {parity.gradient_max:.1e} of the layer's maximum")
    if parity.norm_max is not None:
        lines.append(f"largest difference of a norm {parity.norm_max:.1e} of the layer's maximum")
    if parity.qkv_max is not None:
        lines.append(f"largest difference of a query, key or value {parity.qkv_max:.1e} of the layer's maximum")
    return lines


def facts_lines(data: Mapping[str, Any]) -> list[str]:
    """The result of `inspect`, one fact per line."""
    return [line for key, value in data.items() for line in _fact(key, value)]


def _fact(key: str, value: Any, indent: int = 0) -> list[str]:
    """The lines of one fact, none of an empty one; nested values are indented."""
    pad = "  " * indent
    match value:
        case "" | None:
            return []
        case dict() if key == "arrays":
            lines, longest = [f"{pad}arrays"], max(map(len, value), default=0)
            for name, array in value.items():
                dims = ", ".join(f"{d} {n}" for d, n in array["dims"].items())
                lines.append(f"{pad}  {name:<{longest}}  {array['dtype']:<9} ({dims})  {amount(array['bytes'])}")
            return lines
        case dict() if key == "outputs":
            dims_of = {name: ", ".join(f"{d} {n}" if n else d for d, n in dims.items()) for name, dims in value.items()}
            return [f"{pad}outputs", *(f"{pad}  {name:<26} ({dims})" for name, dims in dims_of.items())]
        case dict():
            return [f"{pad}{key}", *(line for inner, one in value.items() for line in _fact(inner, one, indent + 1))]
        case [dict(), *_]:
            return [line for n, one in enumerate(value, 1) for line in _fact(f"{key} {n}", one, indent)]
    text = ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
    if key == "layers":
        text = ranges(value)
    if key.startswith(("bytes", "attention_bytes")):
        text = amount(value)
    return [f"{pad}{key:<26} {text}"]


def doctor_lines(data: Mapping[str, Any]) -> list[str]:
    """The result of `doctor`, as lines."""
    return [
        f"Python {data['python']} on {data['system']}",
        "providers",
        *(f"  {name:<28} {state}" for name, state in data["providers"].items()),
        *_faster(data["milliseconds"]),
        "  whether one gives what the graph says: `attlas conform GRAPH.onnx --provider NAME`",
        "decoding",
        *(f"  {what:<28} {way}" for what, way in data["decoding"].items()),
        "packages",
        *(f"  {name:<28} {version}" for name, version in data["versions"].items()),
        *(
            f"without {', '.join(missing)}: `pip install 'attlas[{extra}]'` brings what is missing"
            for extra, missing in data["extras"].items()
            if missing
        ),
        *(f"problem: {problem}" for problem in data["problems"]),
    ]


def _faster(milliseconds: Mapping[str, float]) -> list[str]:
    """A line if OpenVINO is at least 15 % faster than onnxruntime on this processor."""
    plain, other = milliseconds.get("CPUExecutionProvider", 0.0), milliseconds.get("OpenVINO", 0.0)
    if not other or plain < 1.15 * other:
        return []
    return [f"OpenVINO infers {plain / other:.1f} times as fast as onnxruntime here: `attlas run --provider openvino`"]


def model_lines(found: Iterable[Summary]) -> Iterator[str]:
    """A table of models, line by line."""
    line = "{:<54} {:<24} {:>9} {:<9} {:>6} {:>5} {:>8} {:>9}"
    for number, one in enumerate(found):
        if number == 0:
            yield line.format("model", "prefix", "grid", "pooling", "layers", "heads", "weights", "maps")
        counts = {kind: one.prefix.count(kind) for kind in one.prefix}
        kinds = [f"{count} {kind}" if count > 1 else kind for kind, count in counts.items()]
        grid, weights = f"{one.grid[0]} x {one.grid[1]}", f"{one.parameters / 1e6:.1f} M"
        texts = (one.name, ", ".join(kinds) or "none", grid, one.pooling, one.depth, one.heads, weights)
        yield line.format(*texts, amount(one.attention_bytes))


def arguments(text: str | None) -> dict[str, Any]:
    """Parse `init_values=1e-5,dynamic_img_size=true` as Python values; what is no number, list or truth value is text.

    Raises:
        UsageError: a part is no KEY=VALUE.
    """
    found: dict[str, Any] = {}
    for part in re.split(r",(?=\s*\w+\s*=)", text or ""):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if text and not (equals and key.isidentifier() and value):
            raise UsageError(f"--model-args: {part!r} is no KEY=VALUE, as in init_values=1e-5,dynamic_img_size=true")
        if text:
            plain = {"true": "True", "false": "False", "none": "None", "null": "None"}.get(value.lower(), value)
            try:
                found[key] = ast.literal_eval(plain)
            except (ValueError, SyntaxError):
                found[key] = value
    return found


def texts(given: Sequence[str]) -> tuple[str, ...]:
    """Texts as they are given, and of `@FILE` its lines that are not empty.

    Raises:
        UsageError: the file cannot be read, a text is empty, or one is given twice.
    """
    from .sources.files import expanded  # brings numpy, which `--help` does without

    found: list[str] = []
    for one in given:
        if not one.startswith("@"):
            found.append(one)
            continue
        try:
            lines = Path(expanded(one[1:])).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--text {one}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
        found += [line.strip() for line in lines if line.strip()]
    if any(not one.strip() for one in found):
        raise UsageError("--text: a text is empty")
    if twice := [one for one in found if found.count(one) > 1]:
        raise UsageError(f"--text: {twice[0]!r} is given twice; a class has one text")
    if given and not found:
        raise UsageError(f"--text {given[0]}: holds no text")
    return tuple(found)


def layers(text: str | None) -> list[int] | None:
    """Parse `0,3-5` as [0, 3, 4, 5].

    Raises:
        UsageError: the text has another form.
    """
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = (end.strip() for end in part.partition("-"))
        if not first.isdecimal() or (dash and not (last.isdecimal() and int(last) >= int(first))):
            raise UsageError(f"--layers {text}: write layers as 0,3,5-7")
        found += range(int(first), int(last or first) + 1)
    return found


def edges(text: str | None) -> int | tuple[int, int] | None:
    """Parse `224` as one edge, `224,336` or `224x336` as (height, width).

    Raises:
        UsageError: the text has another form.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.replace("x", ",").split(",")]
    if len(parts) > 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(f"--img-size {text}: write one edge or height,width in pixels")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


def batch_size(text: str) -> int | None:
    """Parse a number, or `auto` as None.

    Raises:
        UsageError: the text has another form.
    """
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--batch-size {text}: a whole number from 1, or auto")
    return int(text)


def shard(text: str) -> tuple[int, int]:
    """Parse `1/4` as (1, 4).

    Raises:
        UsageError: the text has another form.
    """
    part, slash, whole = text.partition("/")
    if not (slash and part.isdecimal() and whole.isdecimal()):
        raise UsageError(f"--shard {text}: write K/N, for example 1/4")
    return int(part), int(whole)

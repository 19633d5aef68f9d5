"""What a model would give, known before any weight is loaded: built without data, and looked at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .errors import UsageError, first_line
from .models import Pooling, build, describe, list_models
from .taps import Taps

__all__ = ["Summary", "summaries", "summarize"]


@dataclass(frozen=True, slots=True)
class Summary:
    """One model that can be exported; the fields are `GraphSpec`'s.

    `parameters` counts weights, `attention_bytes` is what all maps of one image take as float16.
    """

    name: str
    image_size: tuple[int, int]
    prefix: tuple[str, ...]
    grid: tuple[int, int]
    pooling: Pooling
    depth: int
    heads: int
    tokens: int
    parameters: int
    attention_bytes: int


def summaries(pattern: str = "*") -> Iterator[Summary]:
    """One summary after the other, as each is made: about a quarter of a second a model.

    Args:
        pattern: as for `list_models`; or the exact name of any of timm's models.

    Raises:
        UsageError: the pattern matches nothing, or names one model that cannot be exported, with the reason.
    """
    names = list_models(pattern)
    if not names and any(c in pattern for c in "*?["):
        raise UsageError(f"{pattern}: no model that can be exported has such a name; `attlas models` lists them all")
    return map(summarize, names or [pattern])


def summarize(model: str, *, img_size: object = None) -> Summary:
    """Build timm's model on the meta device and follow two pictures through it; arguments as for `build`.

    Raises:
        UsageError: there is no such model, or it cannot be exported, with the reason.
    """
    with torch.device("meta"), torch.no_grad():
        built = build(model, random_init=True, img_size=img_size)
        taps = Taps(built.module, built.full_name if "." in model else built.name)
        facts = describe(built, taps)
        try:
            with taps.recording() as seen:
                built.module(torch.zeros(2, 3, *built.image_size))
        except (RuntimeError, ValueError, AssertionError, TypeError, AttributeError) as error:
            raise taps.refusal(f"it does not run on a picture of its own size ({first_line(error)})") from error
        taps.check(seen, 2, facts.tokens)
    heads = seen.attention(0).shape[1]
    return Summary(
        name=taps.name,
        image_size=built.image_size,
        prefix=facts.prefix,
        grid=facts.grid,
        pooling=facts.pooling,
        depth=taps.depth,
        heads=heads,
        tokens=facts.tokens,
        parameters=sum(p.numel() for p in built.module.parameters()),
        attention_bytes=2 * taps.depth * heads * facts.tokens**2,
    )

"""Facts about a model's tokens, from its library's adapter, and its summary for lists and estimates."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import first_line
from ..libraries.build import build
from ..libraries.protocol import Facts, Model
from ..models.summary import Summary
from .attention import Taps

__all__ = ["describe", "summarize"]


def describe(model: Model, taps: Taps) -> Facts:
    """Tokens, grid, pooling and positions of a built model; errors as in `Library.facts`."""
    return model.library.facts(model, taps.parts)


def summarize(model: str, *, img_size: object = None, **more: Any) -> Summary:
    """Build the model on the meta device and run two pictures through it; arguments as for `build`.

    Raises:
        UsageError: there is no such model, or it cannot be exported; with the reason.
    """
    with torch.device("meta"), torch.no_grad():
        built = build(model, random_init=True, img_size=img_size, **more)
        taps = Taps(built, built.full_name if "." in model else built.name)
        facts = describe(built, taps)
        try:
            with taps.recording() as seen:
                built.module(torch.zeros(2, 3, *built.image_size))
        except (RuntimeError, ValueError, AssertionError, TypeError, AttributeError) as error:
            raise taps.refusal(f"it does not run on a picture of its own size ({first_line(error)})") from error
        taps.check(seen, 2, facts.tokens)
    return Summary.of(
        taps.name,
        built.image_size,
        facts.prefix,
        facts.grid,
        facts.pooling,
        taps.depth,
        seen.attention(0).shape[1],
        sum(p.numel() for p in built.module.parameters()),
    )

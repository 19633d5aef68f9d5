"""What a model would give, known before any weight is loaded: built without data, and looked at once."""

from __future__ import annotations

import torch

from .errors import first_line
from .facts import describe
from .listing import Summary
from .models import build
from .taps import Taps

__all__ = ["summarize"]


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

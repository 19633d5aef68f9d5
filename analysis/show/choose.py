"""Which images of a store are shown: named, by chance, or in an order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import AttlasError, UsageError

if TYPE_CHECKING:
    from ...engine.store.store import Store

__all__ = ["SORTS", "Selection"]

SORTS = ("entropy", "error", "label")
FEW = 4  # pictures, where nothing says how many


@dataclass(frozen=True, slots=True)
class Selection:
    """Which images.

    Attributes:
        image: a path or an index, or several.
        random: so many by chance, drawn with `seed`.
        sort: the order, one of `SORTS`.
        count: at most so many.
    """

    image: str | int | Sequence[str | int] = ()
    random: int | None = None
    sort: str | None = None
    count: int | None = None
    seed: int = 0

    @property
    def named(self) -> list[str | int]:
        """The images that are asked for by name."""
        return [self.image] if isinstance(self.image, str | int) else list(self.image)

    @property
    def given(self) -> bool:
        """Whether anything is asked for."""
        return bool(self.named) or self.random is not None or self.sort is not None or self.count is not None

    def of(self, store: Store) -> list[int]:
        """The images by index.

        Raises:
            UsageError: there is no such image, number or order.
            AttlasError: an image could not be read, or is not done; or the store lacks what it would be sorted by.
        """
        if self.named:
            found = [_index(store, one) for one in self.named]
            for one in found:
                _need(store, one)
            return found
        for name, value in (("--random", self.random), ("--count", self.count)):
            if value is not None and value < 1:
                raise UsageError(f"{name} {value}: show at least one")
        usable = np.flatnonzero(store.done_images & store.read("valid").astype(bool))
        if not usable.size:
            raise AttlasError(store.why_none)
        if self.random is not None:
            usable = np.random.default_rng(self.seed).permutation(usable)[: self.random]
        if self.sort is not None:
            usable = _sorted(store, usable, self.sort)
        elif self.random is None:  # those whose pictures the store holds come first
            sample = set(store.plan.sample)
            usable = np.array(sorted(usable, key=lambda one: one not in sample))
        return [int(one) for one in usable[: self.count or self.random or FEW]]

    def notes(self, store: Store, images: Sequence[int]) -> list[str]:
        """What these images are sorted by, where nothing else tells it."""
        if self.sort != "entropy":
            return [""] * len(images)
        last = _entropy(store)
        return [f"entropy {last[one]:.2f} nats, layer {store.spec.layers[-1]}" for one in images]


def _need(store: Store, image: int) -> None:
    """Refuse an image that the store does not have, or could not read."""
    if not 0 <= image < store.plan.images:
        raise UsageError(f"--image {image}: {store.path} has images 0 to {store.plan.images - 1}")
    if not store.done_images[image]:
        raise AttlasError(f"{store.path}: image {image} is not done yet; `attlas run` goes on with it")
    if not store.read("valid", image):
        raise AttlasError(f"{store.path}: image {image} could not be read ({store.read('error', image)})")


def _index(store: Store, one: str | int) -> int:
    """An image by its index, its path, or the end of its path."""
    if isinstance(one, int) or str(one).lstrip("-").isdigit():
        return int(one)
    paths = [str(path) for path in store.read("path")]
    if one in paths:
        return paths.index(one)
    ends = [index for index, path in enumerate(paths) if path.endswith(f"/{one}")]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise UsageError(f"--image {one}: {store.path} has {len(ends)} of that name, such as {paths[ends[0]]}")
    raise UsageError(f"--image {one}: {store.path} has no such path; the first is {paths[0]}")


def _entropy(store: Store) -> Any:
    """(image), of the last layer, mean over heads."""
    return store.read("entropy", (slice(None), len(store.spec.layers) - 1)).astype(np.float64).mean(axis=1)


def _sorted(store: Store, usable: Any, key: str) -> Any:
    """Images in order of a key."""
    if key not in SORTS:
        raise UsageError(f"--sort {key}: there is {', '.join(SORTS)}")
    if key == "label":
        return usable[np.argsort(store.read("label")[usable], kind="stable")]
    if key == "entropy":
        if "entropy" not in store:
            raise AttlasError(f"{store.path}: holds no entropy to sort by; `attlas analyze` computes it")
        return usable[np.argsort(_entropy(store)[usable], kind="stable")]
    if "logits" not in store or not (store.read("label_class")[usable] >= 0).any():
        raise UsageError(f"--sort error: {store.path} has no labels that name classes of the model")
    logits, truth = store.read("logits").astype(np.float64)[usable], store.read("label_class")[usable]
    sure = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
    wrong = (logits.argmax(axis=1) != truth) & (truth >= 0)
    return usable[np.lexsort((-sure, ~wrong))]  # the surest mistakes first

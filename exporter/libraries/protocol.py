"""What a library's adapter gives: a built model, the places where its attention passes, and facts about its tokens.

An adapter turns a name of its library into a `Model`, whose module takes normalised pixels and returns one tensor.
Every attention module has a child `attn_drop` that its probabilities pass just before they multiply the values; the
taps hook it. What lies above this file knows no library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...errors import UsageError
from ..models.weights import digest
from ..spec import ClassName, Pooling, Position, Recipe, Weights

__all__ = ["Facts", "Library", "Model", "Parts", "Request", "Source", "edges", "indivisible", "nearest"]

Source = Literal["pretrained", "checkpoint", "random"]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a library for one model.

    Attributes:
        checkpoint: a file with weights (safetensors or a torch state dict), or `FILE:KEY` for a part of it; takes
            precedence over `pretrained`.
        pretrained: use the name's own weights.
        random_init: use the library's random initialisation.
        seed: seed of the random weights.
        img_size: edge or (height, width) in pixels.
        preprocess: replaces parts of the model's recipe, see `recipe.override`.
        num_classes: number of classes of a checkpoint's head; 0 for no head.
        model_args: passed on to the library.
        texts: what the classes are, for a model with a text tower.
    """

    checkpoint: Any = None
    pretrained: bool = True
    random_init: bool = False
    seed: int = 0
    img_size: object = None
    preprocess: str | Mapping[str, object] | None = None
    num_classes: int | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    texts: tuple[str, ...] = ()

    @property
    def source(self) -> Source:
        """Where the weights come from.

        Raises:
            UsageError: the options contradict each other, or no weights were asked for.
        """
        if self.checkpoint is not None and self.random_init:
            raise UsageError("--checkpoint and --random-init exclude each other; pass one of them")
        if self.num_classes is not None and self.num_classes < 0:
            raise UsageError(f"--num-classes {self.num_classes}: pass 0 for no head, or the head's number of classes")
        if self.checkpoint is not None:
            return "checkpoint"
        if self.random_init:
            return "random"
        if not self.pretrained:
            raise UsageError("no weights asked for: pass --checkpoint FILE, --pretrained or --random-init")
        if self.num_classes:
            raise UsageError(
                f"--num-classes {self.num_classes}: pretrained weights would leave a new head random; pass the "
                "checkpoint that has this head with --checkpoint FILE, or 0 for no head"
            )
        return "pretrained"


@dataclass(frozen=True)
class Model:
    """A built model with its recipe and classes.

    `module` takes (image, channel, y, x) float32, normalised, and returns one tensor: logits or features
    (image, value), or the tokens (image, token, channel). `head` names the first output: `logits` if the head gives
    classes, `features` without a head or if it projects to a space shared with text. `resized`: whether the user chose
    another picture size than the model's own. `key` is the part of the checkpoint that was used, see `Weights`; `notes`
    are lines that the user should read; `processor` is what the recipe reproduces, see `GraphSpec`.
    """

    module: nn.Module
    library: Library
    name: str
    tag: str
    source: Source
    image_size: tuple[int, int]
    recipe: Recipe
    classes: tuple[ClassName, ...]
    head: Literal["logits", "features"]
    resized: bool = False
    key: str = ""
    notes: tuple[str, ...] = ()
    processor: str = ""

    @property
    def full_name(self) -> str:
        """The name in its library, with the tag."""
        return f"{self.name}.{self.tag}" if self.tag else self.name

    def weights(self) -> Weights:
        """Source and hash of the current weights."""
        return Weights(self.source, digest(self.module), self.key)


@dataclass(frozen=True)
class Parts:
    """The modules of one model that the taps hook.

    Attributes:
        trunk: the module that holds the blocks.
        blocks: the blocks, in order.
        owners: the attention modules of each block, by its index; each has a child `attn_drop`.
        ends: modules whose output is the sequence of tokens; the one that runs last gives the graph's tokens.
        class_owners: attention modules in which only the class token has a query.
        pool: adds hooks that call their argument with the map of the head's attention pool (image, head, pool_query,
            key); None without such a pool.
        projection: the module after an attention that takes its heads side by side; None if there is none.
        differential: the factor of each pair's second map, in an attention that subtracts pairs of maps; else None.
    """

    trunk: nn.Module
    blocks: Sequence[nn.Module]
    owners: Mapping[int, Sequence[nn.Module]]
    ends: Sequence[nn.Module]
    class_owners: Sequence[nn.Module] = ()
    pool: Callable[[Callable[[Tensor], None]], list[RemovableHandle]] | None = None
    projection: Callable[[nn.Module], nn.Module | None] = lambda owner: getattr(owner, "proj", None)
    differential: Callable[[nn.Module], Tensor | None] = lambda owner: None


@dataclass(frozen=True)
class Facts:
    """Facts about a model's tokens; the fields are those of `GraphSpec`.

    `position_embedding` is the learned absolute embedding as the blocks see it (token or patch, channel), or None.
    """

    prefix: tuple[str, ...]
    grid: tuple[int, int]
    patch_size: tuple[int, int]
    pooling: Pooling
    position: Position
    position_embedding: Tensor | None

    @property
    def tokens(self) -> int:
        """Number of tokens: prefix and patches."""
        return len(self.prefix) + math.prod(self.grid)


class Library(Protocol):
    """One library's adapter."""

    @property
    def name(self) -> str:
        """The library's name, as in `NAME:MODEL` and in the spec."""

    @property
    def has_texts(self) -> bool:
        """Whether texts can be the classes of its models."""

    def versions(self) -> Mapping[str, str]:
        """The versions of the packages that made the model, for the spec."""

    def build(self, name: str, request: Request) -> Model:
        """The model in eval mode with its weights, its recipe and its classes, and with attention that shows its maps.

        Raises:
            UsageError: there is no such model, it cannot be exported, or it does not accept the options.
            AttlasError: the weights cannot be loaded or do not fit.
        """

    def adopt(self, module: nn.Module, request: Request) -> Model:
        """The same of a module of this library that somebody else built; the module may be changed.

        Raises:
            UsageError: it cannot be exported, or the request lacks what the module does not say.
        """

    def parts(self, model: Model) -> Parts:
        """Where the attention passes.

        Raises:
            UsageError: the model has no blocks with attention over patches; with the reason.
        """

    def facts(self, model: Model, parts: Parts) -> Facts:
        """Tokens, grid, pooling and positions, read from the model itself.

        Raises:
            UsageError: the model has prefix tokens of an unknown kind, or no one grid of patches.
        """

    def refusal(self, name: str, reason: str) -> UsageError:
        """The error for a model without maps to export: the reason, and what to do."""


def indivisible(name: str, size: tuple[int, int], token: tuple[int, int]) -> UsageError:
    """The error for a picture size that is no multiple of the token size, with the nearest multiple."""
    return UsageError(
        f"--img-size {size[0]},{size[1]}: {name}'s tokens of {edges(token)} pixels do not divide it; the nearest size "
        f"that they do is {nearest(size, token)}"
    )


def nearest(size: tuple[int, int], token: tuple[int, int]) -> str:
    """The nearest size that is a multiple of the token size, as text for an option."""
    return ",".join(str(max(1, round(edge / unit)) * unit) for edge, unit in zip(size, token, strict=True))


def edges(size: tuple[int, int]) -> str:
    """(height, width) as text, `224x224`."""
    return f"{size[0]}x{size[1]}"

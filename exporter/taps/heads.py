"""Queries, keys and values of every head, as they enter the two products of attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UsageError
from ..spec import QKV
from .attention import Taps
from .following import Following

__all__ = ["Heads"]


class Heads(Following):
    """A context that records the queries, keys and values of every block in a forward pass of the tapped model.

    The last product before `attn_drop` is that of queries and keys, the next one after it that of attention and values.
    """

    def __init__(self, taps: Taps) -> None:
        super().__init__(taps)
        self.of: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}
        self._layer: int | None = None
        self._last: tuple[Any, ...] = ()
        self._asked: tuple[Any, ...] = ()

    def _begin(self) -> None:
        self.of.clear()
        for layer, owners in self.taps.owners.items():
            for owner in owners:
                self._hooks.append(owner.register_forward_pre_hook(self._entering(layer)))
                self._hooks.append(owner.get_submodule("attn_drop").register_forward_hook(self._weighing))
                self._hooks.append(owner.register_forward_hook(self._leaving))

    def _end(self) -> None:
        self._layer = None

    def _entering(self, layer: int) -> Callable[[nn.Module, object], None]:
        def hook(module: nn.Module, given: object) -> None:
            self._layer, self._last, self._asked = layer, (), ()

        return hook

    def _weighing(self, module: nn.Module, given: object, output: Tensor) -> None:
        self._asked = self._last

    def _leaving(self, module: nn.Module, given: object, output: object) -> None:
        self._layer = None

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, and record it if it is one of the two products."""
        result = function(*args, **(kwargs or {}))
        if self._layer is not None and getattr(function, "__name__", "") == "matmul":
            if self._asked:
                query, key = self._asked
                self.of.setdefault(self._layer, []).append((query, key.transpose(-2, -1), args[1]))
                self._asked = ()
            self._last = args[:2]
        return result

    def check(self, heads: int, tokens: int) -> None:
        """Check that every block of the last forward pass showed queries, keys and values of all its heads.

        Raises:
            UsageError: a block has other heads, or other products; with the reason.
        """
        for layer, owners in self.taps.owners.items():
            found = self.of.get(layer, [])
            shapes = {tuple(t.shape[1:3]) for parts in found for t in parts if t.ndim == 4}
            if len(found) != len(owners) or shapes != {(heads // len(owners), tokens)}:
                raise UsageError(
                    f"{self.taps.name}: --qkv: block {layer} does not multiply the queries, keys and values of its "
                    f"{heads} heads of {tokens} tokens in two plain products; export it without"
                )

    def outputs(self, layers: Sequence[int]) -> dict[str, Tensor]:
        """`query.L`, `key.L` and `value.L` (image, head, token, head_channel) of the last forward pass.

        Queries are as they are multiplied, in timm's models already divided by the root of their length; queries and
        keys that are normalised or turned by their position are so here, too. The records are then discarded.
        """
        found = {}
        for at, name in enumerate(QKV):
            for layer in layers:
                parts = [one[at] for one in self.of[layer]]
                # A clone, so that no output of the graph is the view of another.
                found[f"{name}.{layer}"] = parts[0].clone() if len(parts) == 1 else torch.cat(parts, dim=1)
        self.of.clear()
        return found

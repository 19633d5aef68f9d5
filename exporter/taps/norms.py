"""Norms of what a block does with its attention: of the values that it weights, and of what it adds to the stream.

Attention times values is projected and added to the residual stream that entered the block. These steps are the same
in all model families, but the modules differ, so the steps are followed function by function in the block's own
forward pass. A block that does anything else between these steps is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UsageError
from ..spec import NORMS
from .attention import Taps
from .following import Following

__all__ = ["Branches"]


@dataclass
class _Branch:
    """One block's attention branch in one forward pass.

    Per attention of the block: `values` (image, head, key, channel) and `mixed`, their weighted sums (image, head,
    query, channel). `projected`: the input and the weight of its output projection. `added`: what is added to `stream`.
    """

    stream: Tensor
    values: list[Tensor] = field(default_factory=list)
    mixed: list[Tensor] = field(default_factory=list)
    projected: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    weighing: bool = False
    added: Tensor | None = None
    joined: Tensor | None = None
    left: object = None


class Branches(Following):
    """A context that records every block's attention branch in a forward pass of the tapped model."""

    def __init__(self, taps: Taps, option: str = "--norms") -> None:
        """`option`: who needs the branches, for errors."""
        super().__init__(taps)
        self._option = option
        self.of: dict[int, _Branch] = {}
        self._now: _Branch | None = None

    def _begin(self) -> None:
        self.of.clear()
        for layer, owners in self.taps.owners.items():
            block = self.taps.blocks[layer]
            self._hooks.append(block.register_forward_pre_hook(self._entering(layer)))
            self._hooks += [o.get_submodule("attn_drop").register_forward_hook(self._weighing) for o in owners]
            self._hooks.append(block.register_forward_hook(self._leaving))

    def _end(self) -> None:
        self._now = None

    def _entering(self, layer: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, given: tuple[Any, ...]) -> None:
            self._now = self.of[layer] = _Branch(given[0])

        return hook

    def _weighing(self, module: nn.Module, given: object, output: Tensor) -> None:
        if self._now is not None:
            self._now.weighing = True

    def _leaving(self, module: nn.Module, given: object, output: object) -> None:
        if self._now is not None:
            self._now.left, self._now = output, None

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, and record it if it is the next step of a branch."""
        result = function(*args, **(kwargs or {}))
        branch, name = self._now, getattr(function, "__name__", "")
        if branch is None:
            return result
        if name == "matmul" and branch.weighing:
            # The hook has just seen the attention, so this product is attention times values.
            branch.weighing = False
            branch.values.append(args[1])
            branch.mixed.append(result)
        elif name == "linear" and len(branch.projected) < len(branch.values):
            branch.projected.append((args[0], args[1]))
        elif name == "add" and branch.added is None and branch.projected:
            other = [a for a in args[:2] if a is not branch.stream]
            if len(other) == 1 and isinstance(other[0], Tensor):
                branch.added, branch.joined = other[0], result
        return result

    def check(self) -> None:
        """Check that every block of the last forward pass took the expected steps.

        Raises:
            UsageError: a block took other steps; with the reason.
        """
        for layer, owners in self.taps.owners.items():
            branch = self.of[layer]
            if branch.added is None or len(branch.values) != len(owners):
                raise self._refusal(f"block {layer} does not add its attention to the tokens that entered it")
            if branch.joined is branch.left:
                raise self._refusal(f"in block {layer} attention and MLP share one branch and one projection")
            if self._option == "--norms" and not bool(_norm(branch.stream).all()):
                raise self._refusal(
                    f"a token enters block {layer} as zeros, as a class token without training does, so that what is "
                    "added has no ratio to it"
                )
            for mixed, (taken, _) in zip(branch.mixed, branch.projected, strict=True):
                if not torch.equal(mixed.transpose(1, 2).flatten(2), taken):
                    raise self._refusal(
                        f"block {layer} normalises or gates the weighted sum of the values before its output "
                        "projection, so that a single key's contribution has no norm of its own"
                    )

    def _refusal(self, reason: str) -> UsageError:
        return UsageError(f"{self.taps.name}: {self._option}: {reason}; export it without")

    def factor(self, layer: int) -> Tensor:
        """A small matrix R per head with ||R v|| = ||W v||: (head, channel, channel).

        W is the head's slice of the projection, and W = Q R, where Q has orthonormal columns. Usually R needs a
        twelfth of the work of W. Computed in float64 from the weights of the last forward pass, and rounded to their
        dtype.
        """
        found = []
        for values, (_, weight) in zip(self.of[layer].values, self.of[layer].projected, strict=True):
            heads, channels = values.shape[1], values.shape[3]
            by_head = weight.view(-1, heads, channels).transpose(0, 1)
            found.append(torch.linalg.qr(by_head.double(), mode="r").R.transpose(1, 2).to(weight.dtype))
        return torch.cat(found)

    def outputs(self, factors: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """The norms of the last forward pass by name; the recorded branches are then discarded.

        `value_norm.L` (image, head, key): the norm of each key's value vector times its head's slice of the output
        projection, without the bias: ||f(x)|| of Kobayashi et al. 2020 (arXiv 2004.10102). Attention times this norm is
        the norm of a key's contribution. `token_norm.L` (image, token): the norm of the residual stream that enters the
        block. `branch_ratio.L` (image, token): the norm of what the attention branch adds to the stream, divided by
        `token_norm.L`.

        Args:
            factors: `factor` of each requested layer.
        """
        found = {name: dict[int, Tensor]() for name in NORMS}
        for layer, factor in factors.items():
            branch = self.of[layer]
            assert branch.added is not None
            values = branch.values[0] if len(branch.values) == 1 else torch.cat(branch.values, dim=1)
            found["value_norm"][layer] = _norm(values @ factor)
            entered = _norm(branch.stream)
            found["branch_ratio"][layer] = _norm(branch.added) / entered
            found["token_norm"][layer] = entered
        self.of.clear()
        return {f"{name}.{layer}": value for name, each in found.items() for layer, value in each.items()}


def _norm(tokens: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(tokens, dim=-1)
    return norms

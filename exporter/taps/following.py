"""Following a forward pass of the tapped model function by function."""

from __future__ import annotations

from typing import Any, Self

from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from .attention import Taps

__all__ = ["Following"]


class Following(TorchFunctionMode):
    """A context for one forward pass; its hooks are removed at the end."""

    def __init__(self, taps: Taps) -> None:
        super().__init__()
        self.taps = taps
        self._hooks: list[RemovableHandle] = []

    def _begin(self) -> None:
        """Forget the last pass, and fill `_hooks`."""
        raise NotImplementedError

    def _end(self) -> None:
        """Follow nothing any more."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._begin()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        while self._hooks:
            self._hooks.pop().remove()
        self._end()

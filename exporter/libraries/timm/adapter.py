"""timm's adapter."""

from __future__ import annotations

from collections.abc import Mapping

import timm
from torch import nn

from ....errors import UsageError
from ..protocol import Facts, Library, Model, Parts, Request
from . import build, facts, parts

__all__ = ["LIBRARY"]


class _Timm:
    name = "timm"
    has_texts = False

    def versions(self) -> Mapping[str, str]:
        return {"timm": timm.__version__}

    def build(self, name: str, request: Request) -> Model:
        return build.build(self, name, request)

    def adopt(self, module: nn.Module, request: Request) -> Model:
        return build.adopt(self, module, request)

    def parts(self, model: Model) -> Parts:
        return parts.find(model)

    def facts(self, model: Model, found: Parts) -> Facts:
        return facts.describe(model, found)

    def refusal(self, name: str, reason: str) -> UsageError:
        return build.refusal(name, reason)


LIBRARY: Library = _Timm()

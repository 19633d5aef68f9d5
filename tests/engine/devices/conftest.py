"""What the tests of devices start from."""

from __future__ import annotations

import pytest
from attlas.engine.runtime import providers as providers_module
from attlas.engine.runtime.providers import CPU, Provider


@pytest.fixture
def accelerated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions on the CPU take the way of a card."""
    monkeypatch.setattr(providers_module, "PROVIDERS", (Provider(CPU, device="cpu"),))

"""The libraries whose models can be exported, each behind one adapter."""

__all__: list[str] = []

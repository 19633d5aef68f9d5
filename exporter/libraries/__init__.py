"""The libraries whose models can be exported, each behind one adapter.

`protocol` says what an adapter gives, `build` finds the one that a name belongs to. A further library is one more file,
and a line in `build`.
"""

__all__: list[str] = []

"""How statistics are made fast: `fused` in one pass over a batch, `views` of one `layer`, `traced` in a
graph, `cuda` on a card.

Nothing here says what a statistic is; `compiled` and `loops` have the loops.
"""

__all__: list[str] = []

"""How statistics are made fast: `fused` and `views` on processors, `cuda` on a card, `traced` in a graph.

`fused` takes one pass over a batch, `views` are of one `layer`; `compiled` and `loops` have the loops.
Nothing here says what a statistic is.
"""

__all__: list[str] = []

"""timm's models and where their weights come from: names, checkpoints, recipes, and what a model takes.

`build` is the one module that knows timm. It knows nothing of attention.
"""

__all__: list[str] = []

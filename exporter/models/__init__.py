"""timm's models and their weights: names, checkpoints, recipes, and the memory that a model needs.

Only `build` uses timm. Nothing here deals with attention.
"""

__all__: list[str] = []

"""What all libraries' models share: weights from files, recipes from options, and the memory that an export needs.

Nothing here knows a library or deals with attention.
"""

__all__: list[str] = []

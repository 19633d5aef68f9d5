"""timm: names, pretrained tags, weights and conventions of its models."""

__all__: list[str] = []

"""transformers: Vision Transformers and the image towers of its image-text models, from the hub or a local folder."""

__all__: list[str] = []

"""What a report says beside its figures: the definitions of what it shows, and the publications they come from."""

__all__: list[str] = []

"""What is drawn: each function takes plain numbers and gives a matplotlib figure."""

__all__: list[str] = []

"""One graph on this machine: pixels in, arrays out.

`decode` makes pixels, `graph` prepares the ONNX model for what is wanted of it, `providers` says where it can run,
`session` runs it, and `cuda` moves its results off a card.
"""

__all__: list[str] = []

"""From a tapped model to one ONNX file, proved against PyTorch.

`export` traces and writes, `tidy` puts the traced graph in order, `half` makes it float16, and `parity` compares the
file with the model.
"""

__all__: list[str] = []

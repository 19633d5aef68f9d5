"""From a tapped model to one ONNX file, checked against PyTorch.

`export` traces and writes, `tidy` cleans up the traced graph, `half` converts it to float16, and `parity` compares the
file with the model.
"""

__all__: list[str] = []

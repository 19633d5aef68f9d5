"""Run one graph on this machine: pixels in, arrays out.

`decode` makes pixels, `graph` prepares the ONNX model with the requested outputs, `rounded` the same with fewer bits,
`providers` selects what computes, `session` runs the model in onnxruntime (`ort`) or OpenVINO (`openvino`), and `cuda`
copies results from a card.
"""

__all__: list[str] = []

"""The exporter: turns a timm model into one ONNX graph with logits, attention and metadata.

`models` builds the model, `taps` finds the tensor that multiplies the values in every block, `trace` writes the graph
with its spec and checks it against PyTorch. `listing` lists what can be exported. `spec` is the contract with the other
rooms and needs no PyTorch; everything else needs the extra `exporter`.
"""

from typing import Any

__all__ = ["GraphSpec", "export", "list_models"]


def __getattr__(name: str) -> Any:
    if name == "GraphSpec":
        from .spec import GraphSpec

        return GraphSpec
    if name == "export":
        from .trace.export import export

        return export
    if name == "list_models":
        from .listing import list_models

        return list_models
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

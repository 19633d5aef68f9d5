"""The exporter: a timm model becomes one ONNX graph that gives logits and attention, and says what it is.

`models` builds the model, `taps` finds what multiplies the values in every block, `trace` writes the graph with its
spec and proves it against PyTorch. `listing` says what can be exported. `spec` is the contract with the other rooms
and loads without PyTorch; everything else needs the extra `exporter`.
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

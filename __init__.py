"""attlas, the atlas of attention.

Three rooms that talk through files: `attlas.exporter` (timm model -> graph.onnx), `attlas.engine` (graph and images ->
store.zarr) and `attlas.analysis` (store -> statistics, figures, report). Names load on first use.
"""

from __future__ import annotations

__version__ = "0.1.0"

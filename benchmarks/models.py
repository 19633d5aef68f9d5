"""Write the table of models that comes with attlas, for the timm that is installed: `python benchmarks/models.py`."""

from __future__ import annotations

from attlas.exporter.listing import write_table

if __name__ == "__main__":
    print(write_table(print))

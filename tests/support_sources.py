"""What the tests of sources share."""

import csv
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from attlas.engine import Store
from attlas.engine import runner as engine
from hypothesis import strategies as st

pa = pytest.importorskip("pyarrow")

pq = pytest.importorskip("pyarrow.parquet")

Row = tuple[str, str, bytes]  # key, label, encoded image


def run(graph: Path, images: Any, store: Path, **choices: Any) -> Store:
    return Store(engine.run(graph, images, store, **choices).path)


def write_tar(path: Path, files: Sequence[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_700_000_000
            archive.addfile(info, io.BytesIO(data))
    return path


def web(rows: Sequence[Row], **more: Mapping[str, Any]) -> list[tuple[str, bytes]]:
    """The members of a WebDataset: numbered samples with a label beside each image."""
    found = []
    for i, (key, label, data) in enumerate(rows):
        found += [(f"{i:06d}{Path(key).suffix}", data), (f"{i:06d}.cls", label.encode())]
    return found


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def huggingface(rows: Sequence[Row], path: Path, **options: Any) -> Path:
    """As `datasets` writes images: a struct of bytes and path, labels as numbers named in the metadata."""
    names = sorted({label for _, label, _ in rows})
    table = pa.table(
        {
            "image": pa.array([{"bytes": data, "path": key} for key, _, data in rows]),
            "label": pa.array([names.index(label) for _, label, _ in rows], pa.int64()),
        }
    )
    meta = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(meta)}), path, **options)
    return path


# -- items and columns -------------------------------------------------------------------------------------------------

names = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=20)

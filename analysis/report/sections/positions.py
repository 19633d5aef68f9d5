"""What a report shows of a model's position embedding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ... import formulas
from ..numbers import why_empty
from ..plots.mosaic import Mosaic
from .base import Absent, Context, Figure, Part

__all__ = ["positions"]

_REASONS = {
    "rotary": "This model turns queries and keys by their position (rotary embedding): there is no table to compare.",
    "relative": "This model adds a bias by relative position to its scores: no position has an embedding of its own.",
    "none": "This model has no position embedding.",
}


def positions(context: Context) -> Iterator[Part]:
    """How alike the learned embeddings of patches are: a map for each patch, at its place."""
    store, title = context.store, "Similarity of position embeddings"
    spec = store.spec
    if spec.position != "absolute":
        yield Absent(title, _REASONS[spec.position])
        return
    if "position_embedding" not in store:
        yield Absent(title, "This store does not hold the graph's position embedding; a new export and run keep it.")
        return
    table = store.read("position_embedding").astype(np.float64)
    if reason := why_empty(table):
        yield Absent(title, f"In `position_embedding` {reason}.")
        return
    values = formulas.position_similarity(table, spec.grid)
    rows, columns = spec.grid
    flat = values.reshape(spec.patches, spec.patches)
    off = flat[~np.eye(spec.patches, dtype=bool)]
    # With many patches each map is a stamp, and every second or third is enough to see the pattern.
    step = max(1, -(-max(rows, columns) // 16))
    shown = values[::step, ::step]
    every = "" if step == 1 else f", of every {step}. row and column"
    count = table.shape[0] - spec.patches
    left_out = {0: "", 1: " Its prefix token is left out."}.get(count, f" Its {count} prefix tokens are left out.")
    yield Figure(
        name="position_similarity",
        title=title,
        caption="Cosine between the learned position embedding of a patch and those of all others: a map for each "
        f"patch{every}, at the patch's place. Bright rows and columns mean that the model has learned the grid "
        f"([@dosovitskiy2021], fig. 7).{left_out} It belongs to the weights, not to images: n = 1 model.",
        alt=f"{shown.shape[0]} by {shown.shape[1]} maps of {rows} by {columns} patches. Between different patches the "
        f"cosine runs from {off.min():.2f} to {off.max():.2f}, on average {off.mean():.2f}.",
        plots=[
            Mosaic(
                shown,
                "cosine",
                ("patch row", "patch column"),
                (range(0, rows, step), range(0, columns, step)),
                (min(0.0, float(off.min())), 1.0),
            )
        ],
        columns=("y", "x", "other_y", "other_x", "cosine"),
        rows=[(*at, float(value)) for at, value in np.ndenumerate(values)],
        methods=("position_similarity",),
    )

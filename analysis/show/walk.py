"""One picture's way through a model as one tall figure: patches, positions, Q, K and V, attention, prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import UsageError
from .. import formulas
from ..report.numbers import Floats
from .maps import Choice, View, attention, check_codes, query_views, readout_views, rollout_view
from .page import Block, Cell, bars, image, matrix, photograph, sheet
from .subject import Subject
from .views import Request, cell_of, cells_of, facts, legend

__all__ = ["NEEDED", "walk"]

NEEDED = ("position_embedding", "query", "key", "value")  # beyond what any figure shows; left out where it is lacking
SIGNED = "RdBu_r"  # for numbers on both sides of 0
WITHOUT = {
    "rotary": "This model turns queries and keys by their position (rotary embedding): there is no table of positions.",
    "relative": "This model adds a bias by relative position to its scores, so no position has a vector of its own.",
    "none": "This model has no position embedding.",
    "absolute": "The position embedding is not at hand: it is neither in this graph nor in this store.",
}
LAYERS = 12  # at most so many small maps a row of the walk shows


def walk(subjects: Sequence[Subject], request: Request) -> Any:
    """The figure of one picture; the layer, head and patch of the request are followed where there are many.

    Raises:
        UsageError: there are several pictures, or no such layer or head.
    """
    if len(subjects) > 1:
        raise UsageError("--walk: follows one picture; choose it with --image")
    (one,) = subjects
    spec = one.spec
    check_codes(one, (), (0, 0), request.threshold)  # every patch's row is drawn alike
    place = Choice(None if request.choice.layers == "all" else request.choice.layers).places(one)[0]
    head, patch = request.choice.head or 0, request.patch or (spec.grid[0] // 2, spec.grid[1] // 2)
    Choice(None, head).heads(np.zeros((spec.heads, 1)), spec.layers[place])  # refuses a head that there is not
    views = [*query_views(one, patch, Choice("all")), *rollout_view(one)]
    blocks = [
        *([_patches(one, one.pixels, patch)] if one.pixels is not None else []),
        _positions(one, patch),
        _vectors(one, place, head),
        _weights(one, place, head, patch),
        _through(one, "5  What the patch looks at, layer by layer", views[: len(spec.layers)], request),
        *_readout(one, request),
        _prediction(one, request),
    ]
    title = f"{one.title} · from patches to prediction"
    return sheet(title, facts(one), blocks, legend(one, views, request))


def _patches(one: Subject, pixels: npt.NDArray[np.uint8], patch: tuple[int, int]) -> Block:
    spec = one.spec
    (height, width), (rows, columns) = spec.patch_size, spec.grid
    size = spec.image_size
    y, x = patch[0] * height, patch[1] * width
    cells = [
        photograph("the crop and its patches", pixels, spec.grid),
        image("the patches apart", _apart(pixels, spec.grid, spec.patch_size)),
        image(f"the patch in row {patch[0]}, column {patch[1]}", pixels[y : y + height, x : x + width]),
    ]
    before = f", after {len(spec.prefix)} token{'s' * (len(spec.prefix) > 1)} that the model has learned" * bool(
        spec.prefix
    )
    words = (
        f"{size[0]} × {size[1]} pixels are cut into {rows} × {columns} patches of {height} × {width} pixels. Each "
        f"becomes a vector by one learned matrix: the model reads {spec.patches} vectors{before}, {spec.tokens} in all."
    )
    return Block(cells, 3, "1  The picture becomes patches", words)


def _apart(pixels: npt.NDArray[np.uint8], grid: tuple[int, int], patch: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The patches with white gaps between them."""
    gap = max(2, patch[0] // 4)
    (rows, columns), (height, width) = grid, patch
    made = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for row, column in np.ndindex(rows, columns):
        top, left = row * (height + gap), column * (width + gap)
        made[top : top + height, left : left + width] = pixels[
            row * height : (row + 1) * height, column * width : (column + 1) * width
        ]
    return made


def _positions(one: Subject, patch: tuple[int, int]) -> Block:
    """How alike the learned positions are."""
    heading, spec = "2  Each patch is told where it is", one.spec
    if spec.position != "absolute" or "position_embedding" not in one.store:
        return Block([], 1, heading, WITHOUT[spec.position])
    table = one.store.read("position_embedding").astype(np.float64)
    values = np.asarray(formulas.position_similarity(table, spec.grid))
    step = max(1, -(-max(spec.grid) // 16))
    shown = values[::step, ::step]
    own = values[patch]
    limits = (min(0.0, float(values.min())), 1.0)
    shape = spec.grid[0] / spec.grid[1]
    cells = [
        matrix("every patch, a small map each", _tiled(shown), 0, limits, linear=True, aspect=shape),
        matrix(f"row {patch[0]}, column {patch[1]} with all others", own, 0, limits, linear=True, aspect=shape),
        matrix("the vectors themselves", table, 0, _signed(table), SIGNED, linear=True),
    ]
    words = (
        "A learned vector for each place is added to the patch's. Cosines between these vectors show that the model "
        "has learned the grid: each place is like itself, then like its row and column. Red is above 0, blue below."
    )
    return Block(cells, 3, heading, words)


def _tiled(values: Floats) -> Floats:
    """(row, column, y, x) -> one map of maps, with gaps of NaN."""
    rows, columns, height, width = values.shape
    padded = np.full((rows, columns, height + 1, width + 1), np.nan)
    padded[:, :, :height, :width] = values
    return padded.transpose(0, 2, 1, 3).reshape(rows * (height + 1), columns * (width + 1))[:-1, :-1]


def _signed(values: Floats) -> tuple[float, float]:
    """Limits on both sides of 0 that a few large values do not decide."""
    most = float(np.nanquantile(np.abs(values), 0.99)) or 1.0
    return -most, most


def _vectors(one: Subject, place: int, head: int) -> Block:
    """Queries, keys and values of one head."""
    heading = f"3  Each token asks, answers and gives: Q, K, V of layer {one.spec.layers[place]}, head {head}"
    if "query" not in one.store:
        return Block(
            [], 1, heading, "They are no outputs of this graph; `attlas export --qkv` makes one that has them."
        )
    found = {name: one.store.read(name, (one.image, place, head)).astype(np.float64) for name in NEEDED[1:]}
    prefix = len(one.spec.prefix)
    cells = [
        matrix(f"{name}: {v.shape[0]} tokens × {v.shape[1]}", v, -prefix, _signed(v), SIGNED, linear=True)
        for name, v in found.items()
    ]
    words = (
        "Three learned matrices make of every token a query (what it looks for), a key (what it is found by) and a "
        "value (what it hands over). A row is a token, a column one number of its vector; red is above 0, blue below."
    )
    return Block(cells, 3, heading, words)


def _weights(one: Subject, place: int, head: int, patch: tuple[int, int]) -> Block:
    """Scores, attention, and one row of it on the picture."""
    spec, layer = one.spec, one.spec.layers[place]
    whole, prefix = attention(one, place, "the walk")[head].astype(np.float64), len(spec.prefix)
    cells: list[Cell] = []
    if "query" in one.store:
        query, key = (one.store.read(name, (one.image, place, head)).astype(np.float64) for name in ("query", "key"))
        scores = query @ key.T
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        alone = np.allclose(powers / powers.sum(axis=1, keepdims=True), whole, atol=1e-3)
        label = "scores Q · Kᵀ / √d" if alone else "Q · Kᵀ, to which positions are added"
        cells.append(matrix(label, scores, prefix, _signed(scores), SIGNED, linear=True))
    cells.append(matrix("attention: each row's softmax", whole * spec.tokens, prefix))
    row = np.asarray(formulas.query_map(whole, spec.grid, *patch), np.float64) * spec.tokens
    cells.append(cell_of(one, View("the patch's row, on the picture", row, patch=patch), Request()))
    words = (
        f"Where a query and a key point the same way, the score is high. Softmax turns each row of {spec.tokens} "
        "scores into shares that add up to 1: how much of each token's value this token takes in."
    )
    return Block(cells, 3, f"4  Attention of layer {layer}, head {head}", words)


def _through(one: Subject, heading: str, views: list[View], request: Request, words: str = "") -> Block:
    """A small map for each layer, or for every few."""
    step = max(1, -(-len(views) // LAYERS))
    kept = views[:-1:step] + views[-1:] if step > 1 else views
    return Block([cell_of(one, view, request) for view in kept], 6, heading, words or "Mean over heads.")


def _readout(one: Subject, request: Request) -> list[Block]:
    """The row that the head reads, layer by layer, where the model has one."""
    if one.spec.readout == "pool":
        return []
    words = "Mean over heads. What is gathered here in the last layer is what the prediction is made from."
    return [_through(one, "6  What the token that is read looks at", readout_views(one, Choice("all")), request, words)]


def _prediction(one: Subject, request: Request) -> Block:
    size = one.spec.image_size
    cells = [photograph("what the model sees", one.pixels)] if one.pixels is not None else []
    cells += cells_of(one, rollout_view(one), request)
    if shares := one.top():
        cells.append(bars("predicted", shares, size[0] / size[1]))
    return Block(cells, 3, "7  The prediction")

"""The catalog: every statistic that `analyze` can be asked for, with its dimensions, unit, source and what it needs."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine.store import Template
from ..exporter.errors import UsageError
from ..exporter.spec import GraphSpec
from . import formulas
from .gradients import WEIGHTED
from .kernel import score_matrix

__all__ = ["CATALOG", "SCALARS", "Statistic", "find", "sizes"]

# The default statistics, whose numbers come from the fused kernel; those of one number per head are summed up in full.
FUSED = ("distance", "distance_renormalized", "entropy", "entropy_patch", "prefix_mass", "rollout")
SCALARS = ("distance", "distance_renormalized", "entropy", "entropy_patch", "prefix_mass")
RAGHU = "Raghu et al. 2021 (arXiv 2108.08810)"
WALMER = "Walmer et al. 2023 (arXiv 2212.03862)"
SEED = "Hebbar, Okafor & Banerjee, Interpreting Vision Transformers, eq. 3.3"

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Statistic:
    """One statistic beyond the fused ones.

    Attributes:
        name: under which it is asked for and stored.
        dims: of one image's result, "layer" included where there is one per layer.
        function: one layer's attention (image, head, query, key) -> the result without "layer"; with `follows` the
            list of all layers' attention -> the whole result.
        units: of the values; `long_name`: in words; `source`: who published it.
        follows: it follows all layers.
        exact: single values decide, so that uint8 codes will not do.
        probability: rows must be distributions.
        raw: it takes the stored values as they are, and not float32.
        per_image: its rows are kept, one per image; otherwise only the dataset's mean is.
    """

    name: str
    dims: tuple[str, ...]
    function: Callable[[Any, GraphSpec], Array]
    units: str
    long_name: str
    source: str = ""
    follows: bool = False
    exact: bool = False
    probability: bool = False
    raw: bool = False
    per_image: bool = True

    @property
    def scalar(self) -> bool:
        """Whether it is one number per layer or head, which is summed up with deviation, quantiles and interval."""
        return self.per_image and set(self.dims) <= {"layer", "head"}

    @property
    def attrs(self) -> dict[str, str]:
        """The attributes of its array."""
        found = {"units": self.units, "long_name": self.long_name, "source": self.source}
        return {key: value for key, value in found.items() if value}

    def template(self, spec: GraphSpec) -> Template:
        """The array of its rows."""
        known = sizes(spec)
        shape = tuple(known[dim] for dim in self.dims)
        return Template(self.name, ("image", *self.dims), shape, "float32", math.nan, self.attrs)


def sizes(spec: GraphSpec) -> dict[str, int]:
    """How long each dimension of a result is."""
    (rows, columns), n = spec.grid, spec.tokens
    return {
        "layer": len(spec.layers), "head": spec.heads, "other_head": spec.heads, "prefix": len(spec.prefix),
        "y": rows, "x": columns, "offset_y": 2 * rows - 1, "offset_x": 2 * columns - 1, "query": n, "key": n,
    }  # fmt: skip


def _explained(layers: Any, spec: GraphSpec) -> Array:
    return np.asarray(formulas.rollout_vit_explain(layers, spec.grid, _rows(spec)))


def _rows(spec: GraphSpec) -> tuple[int, ...]:
    if spec.readout == "pool":
        raise UsageError("rollout_vit_explain: this model reads its tokens by attention pooling, not from a row")
    return formulas.readout_rows(spec.prefix, spec.grid, spec.readout)


def _grid(name: str, **options: Any) -> Callable[[Any, GraphSpec], Array]:
    function = getattr(formulas, name)
    return lambda a, spec: np.asarray(function(a, spec.grid, **options))


HEADS, MAPS, OFFSETS = ("layer", "head"), ("layer", "y", "x"), ("layer", "head", "offset_y", "offset_x")

CATALOG: dict[str, Statistic] = {
    s.name: s
    for s in (
        Statistic(
            "rollout_vit_explain", ("y", "x"), _explained, "1", "rollout of vit-explain: max over heads, 0.9 discarded",
            "github.com/jacobgil/vit-explain", follows=True, exact=True,
        ),
        Statistic("distance_unit_square", HEADS, _grid("distance_unit_square"), "1",
                  "mean attention distance on a unit square, rows renormalised over patches", WALMER),
        Statistic("effective_tokens", HEADS, lambda a, spec: formulas.effective_tokens(a), "keys",
                  "mean of exp(entropy) over queries", probability=True),
        Statistic("self_mass", HEADS, _grid("self_mass"), "1", "mean attention of a patch on itself"),
        Statistic("neighbour_mass", HEADS, _grid("neighbour_mass"), "1",
                  "mean attention of a patch on its 8 neighbours"),
        Statistic("rest_mass", HEADS, _grid("rest_mass"), "1", "mean attention of a patch on all farther patches"),
        Statistic("sink_share", HEADS, _grid("sink_share"), "1",
                  "share of patches that receive more than 4 times the uniform attention",
                  "Darcet et al. 2024 (arXiv 2309.16588)"),
        Statistic("normalized_mutual_information", HEADS, _grid("normalized_mutual_information"), "1",
                  "mutual information of query and key, normalised", "Park et al. 2023 (arXiv 2305.00729), eq. 2"),
        Statistic("position_deviation", HEADS, _grid("position_deviation"), "1",
                  "standard deviation of attention over queries", WALMER),
        Statistic("head_deviation", ("layer",), _grid("head_deviation"), "1",
                  "standard deviation of attention over heads", WALMER),
        Statistic("head_similarity", (*HEADS, "other_head"), lambda a, spec: formulas.head_similarity(a), "nats",
                  "Jensen-Shannon divergence between heads, mean over queries", "Clark et al. 2019 (arXiv 1906.04341)",
                  probability=True),
        Statistic("score_matrix", MAPS, lambda a, spec: score_matrix(a, spec.grid), "1",
                  "largest attention over queries, mean over heads", SEED, raw=True),
        Statistic("received_attention", (*HEADS, "y", "x"), _grid("received_attention"), "1",
                  "mean attention of the patch queries on each patch"),
        # Of these the dataset's mean alone is kept: their rows would outgrow the rest of the store.
        Statistic("score_matrix_mean", MAPS, lambda a, spec: score_matrix(a, spec.grid), "1",
                  "largest attention over queries, mean over heads and images", SEED, raw=True, per_image=False),
        Statistic("score_matrix_key_mean", MAPS, _grid("score_matrix", reading="key"), "1",
                  "largest attention over keys, mean over heads and images", SEED, per_image=False),
        Statistic("score_matrix_head_mean", MAPS, _grid("score_matrix", reading="head"), "1",
                  "largest attention over heads, mean over queries and images", SEED, per_image=False),
        Statistic("offset_map_mean", OFFSETS, _grid("offset_map"), "1",
                  "attention by offset of the key, mean over queries that have it and over images", per_image=False),
        Statistic("offset_map_pooled_mean", OFFSETS, _grid("offset_map", form="pooled"), "1",
                  "share of the patch mass by offset of the key, mean over images", WALMER, per_image=False),
        Statistic("attention_matrix_mean", (*HEADS, "query", "key"), lambda a, spec: a, "1",
                  "attention, mean over images", per_image=False),
    )
}  # fmt: skip


def find(names: Iterable[str]) -> list[str]:
    """Check the names of statistics.

    Raises:
        UsageError: one is unknown; near names are suggested.
    """
    known, found = [*FUSED, *CATALOG, *WEIGHTED], []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
            raise UsageError(f"there is no statistic {name}; {hint}")
        found.append(name)
    return list(dict.fromkeys(found))

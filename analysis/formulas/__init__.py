"""Every statistic of attention, each once, on plain arrays of any library.

Attention is (..., query, key): rows are queries, leading axes (image, layer, head) stay as they are. A statistic that
joins heads takes (..., head, query, key), one that follows the layers takes a sequence of these, from input to output;
so a store's (image, layer, head, query, key) is passed as it is, or layer by layer. Sums run in float32 or better.
One module a family; all of them are names of this package. `norms`, `histograms`, `baselines` and `boxes` stand beside.
"""

from __future__ import annotations

from .codes import decode_codes
from .distances import (
    distance,
    distance_renormalized,
    distance_unit_square,
    patch_distances,
    rows_without_patch_mass,
    uniform_distance,
)
from .entropies import effective_tokens, entropy, entropy_patch, row_entropy
from .maps import (
    class_token_weight,
    mass_mask,
    offset_map,
    query_map,
    readout_map,
    received_attention,
    score_matrix,
    sink_mask,
    sink_share,
)
from .masses import neighbour_mass, prefix_mass, rest_mass, self_mass
from .rollouts import (
    chefer,
    discard_smallest,
    fuse,
    gradient_mean,
    gradient_positive,
    gradient_rollout,
    head_importance,
    readout_rows,
    rollout,
    rollout_discard,
    rollout_vit_explain,
)
from .variation import (
    head_deviation,
    head_similarity,
    normalized_mutual_information,
    position_deviation,
    position_similarity,
)

__all__ = [
    "chefer", "class_token_weight", "decode_codes", "discard_smallest", "distance", "distance_renormalized",
    "distance_unit_square", "effective_tokens", "entropy", "entropy_patch", "fuse", "gradient_mean",
    "gradient_positive", "gradient_rollout", "head_deviation", "head_importance", "head_similarity", "mass_mask",
    "neighbour_mass", "normalized_mutual_information", "offset_map", "patch_distances", "position_deviation",
    "position_similarity", "prefix_mass", "query_map", "readout_map", "readout_rows", "received_attention",
    "rest_mass", "rollout", "rollout_discard", "rollout_vit_explain", "row_entropy", "rows_without_patch_mass",
    "score_matrix", "self_mass", "sink_mask", "sink_share", "uniform_distance",
]  # fmt: skip

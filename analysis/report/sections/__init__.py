"""What a report shows: each section reads a store and yields its figures with their words.

A new figure is one function of `plots`, one function here that yields it, and its place in `SECTIONS`.
"""

from .base import Section
from .depth import distance, entropy, masses, mean_rollout, prefix_mass
from .distributions import over_images, over_queries
from .examples import (
    examples,
    extremes,
    heads_of_one,
    matrices_of_one,
    mean_scores,
    query_of_one,
    scores_of_one,
)
from .further import further, further_maps
from .groups import groups
from .heads import offsets, received, similarity, sorted_heads
from .judgement import judgement
from .objects import objects
from .positions import positions

__all__ = ["SECTIONS"]

# In the order of the page.
SECTIONS = (
    Section("Attention distance", distance),
    Section("Attention entropy", entropy),
    Section("Distributions over images", over_images),
    Section("Distributions over queries", over_queries),
    Section("Attention on prefix tokens", prefix_mass),
    Section("Mean rollout", mean_rollout),
    Section("Where attention goes", masses),
    Section("Heads sorted by distance", sorted_heads),
    Section("Further statistics", further),
    Section("Where attention arrives", received),
    Section("Attention by offset", offsets),
    Section("How much heads differ", similarity),
    Section("Further mean maps", further_maps),
    Section("Example pictures", examples),
    Section("Heads of the last layer", heads_of_one),
    Section("Score matrix of one picture", scores_of_one),
    Section("Score matrix of the dataset", mean_scores),
    Section("What the central patch looks at", query_of_one),
    Section("Attention matrices", matrices_of_one),
    Section("Extremes of entropy", extremes),
    Section("Differences between groups", groups),
    Section("Position embeddings", positions),
    Section("Objects", objects),
    Section("Which map is better?", judgement),
)

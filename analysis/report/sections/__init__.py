"""What a report shows: each section reads a store and yields its figures with their words.

A new figure is one plot of `plots`, one function here that yields it, and its place in `SECTIONS`.
"""

from .base import Section
from .depth import distance, entropy, masses, mean_rollout, prefix_mass
from .distributions import over_images, over_queries
from .examples import examples, extremes, heads_of_one, matrices_of_one, mean_scores, query_of_one, scores_of_one
from .further import further, further_maps
from .groups import groups
from .heads import offsets, received, similarity, sorted_heads
from .judgement import judgement
from .objects import objects
from .positions import positions
from .tokens import mean_matrices, norms

__all__ = ["SECTIONS"]

LOOKS = "What does it look at?"
FAR = "How far, and how sharply?"
GOES = "Where does attention go?"
DIFFER = "Do heads, images and classes differ?"
ELSE = "What else was computed?"
WEIGHTS = "What do the weights say by themselves?"

# In the order of the page: by question, and of each question the figures in sight before those that are folded away.
SECTIONS = (
    Section("Example pictures", examples, LOOKS),
    Section("What the central patch looks at", query_of_one, LOOKS, more=True),
    Section("Score matrix of one picture", scores_of_one, LOOKS, more=True),
    Section("Attention matrices", matrices_of_one, LOOKS, more=True),
    Section("Extremes of entropy", extremes, LOOKS, more=True),
    Section("Attention distance", distance, FAR),
    Section("Attention entropy", entropy, FAR),
    Section("Heads sorted by distance", sorted_heads, FAR, more=True),
    Section("Distributions over images", over_images, FAR, more=True),
    Section("Distributions over queries", over_queries, FAR, more=True),
    Section("Attention by offset", offsets, FAR, more=True),
    Section("Attention on prefix tokens", prefix_mass, GOES),
    Section("Where attention goes", masses, GOES),
    Section("Mean rollout", mean_rollout, GOES),
    Section("Where attention arrives", received, GOES, more=True),
    Section("Score matrix of the dataset", mean_scores, GOES, more=True),
    Section("Objects", objects, "Are objects found?"),
    Section("Which map is better?", judgement, "Which map is better?"),
    Section("Heads of the last layer", heads_of_one, DIFFER),
    Section("Differences between groups", groups, DIFFER),
    Section("How much heads differ", similarity, DIFFER),
    Section("Norms of tokens", norms, ELSE),
    Section("Further statistics", further, ELSE),
    Section("Further mean maps", further_maps, ELSE, more=True),
    Section("Mean attention matrices", mean_matrices, ELSE, more=True),
    Section("Position embeddings", positions, WEIGHTS, more=True),
)

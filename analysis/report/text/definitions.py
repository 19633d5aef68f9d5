"""The definitions of all that a report shows, in words."""

from __future__ import annotations

__all__ = ["CONCEPTS", "DEFINITIONS", "READING"]

# Of each statistic of the catalog, by its name: rich text.
DEFINITIONS: dict[str, str] = {
    "distance": (
        "Mean attention distance as published: *mean*~i~ Σ~j~ A~ij~ D~ij~ "
        "over patches i and j, D the Euclidean distance of their positions in pixels. Prefix rows and columns are "
        "dropped, and the rest is not renormalised. [@dosovitskiy2021], figs. 7 and 11; [@raghu2021], fig. 3."
    ),
    "distance_renormalized": (
        "As `distance`, each row first divided by its mass on patches. Rows without patch mass are left out "
        "(the store counts them as `rows_without_patch_mass`). [@park2023], section 2."
    ),
    "rows_without_patch_mass": (
        "Rows that have no attention on patches, and are left out where rows are divided by it."
    ),
    "distance_unit_square": (
        "As `distance_renormalized`, positions divided by the number of rows (columns) less one. [@walmer2023]."
    ),
    "entropy": (
        "−Σ~j~ A~ij~ ln A~ij~ of each row over all keys, 0 ln 0 = 0, in nats; averaged over "
        "all queries, one head at a time. The entropy of head-averaged attention is something else and is not shown."
    ),
    "entropy_patch": (
        "The same over patch keys, each row first divided by its mass on patches. With m the mass on prefix tokens, "
        "each row obeys H = H₂(m) + m H~prefix~ + (1 − m) H~patch~."
    ),
    "effective_tokens": (
        "The mean over queries of exp(H), H the entropy of the row in nats: not exp of the mean entropy."
    ),
    "prefix_mass": (
        "The attention that patch queries pay to each prefix token, averaged over these queries; a share of 1. That "
        "tokens serve models as places to store what belongs to no patch is discussed by [@darcet2024]."
    ),
    "self_mass": "Attention of a patch on itself, averaged over patches.",
    "neighbour_mass": "Attention of a patch on its up to 8 neighbours on the grid, averaged over patches.",
    "rest_mass": (
        "Attention of a patch on all patches but itself and its neighbours, averaged over patches; with the masses on "
        "itself, on neighbours and on prefix tokens it adds up to 1."
    ),
    "border_mass": (
        "Share of each row's patch mass that lies on the outer ring of patches, averaged over patches. What is far "
        "from most patches is the border, so that a mean distance far above that of uniform attention needs it."
    ),
    "sink_share": (
        "Share of the patches that receive more than 4 times the uniform attention, averaged over queries. "
        "[@darcet2024] describe such tokens by the norm of their features (`norm_outlier_share`); the cut at 4 times "
        "the uniform attention is ours."
    ),
    "norm_outlier_share": (
        "Share of the patches whose token in the residual stream has more than 3 times the median norm of the image's "
        "patches in that layer. [@darcet2024] cut the norms of one model at 150, between their two modes."
    ),
    "norm_outlier_map": "1 for the patches that `norm_outlier_share` counts, 0 for others. [@darcet2024].",
    "received_attention": (
        "Attention that each patch receives, averaged over the patch queries; with the mass on prefix tokens it adds "
        "up to 1 over the grid."
    ),
    "readout_map": (
        "The attention row that the model's head reads, on the patch grid, of every head: the class token's, as in "
        "[@caron2021]; the mean of the patch rows where the head averages patches; the mean of class and distillation "
        "row in distilled models."
    ),
    "class_token_weight": "The largest over heads of `readout_map`, one map a layer. [@caron2021].",
    "mass_mask": (
        "1 for the fewest patches that together hold 60 % of the patch mass in `readout_map`, 0 for all others. "
        "[@caron2021]."
    ),
    "entropy_histogram": "How many queries have which entropy over all keys, of all images together, edges fixed.",
    "distance_histogram": (
        "How many patch queries have which attention distance, rows not renormalised, of all images together, edges "
        "fixed. The distance is that of [@raghu2021]."
    ),
    "distance_renormalized_histogram": (
        "How many patch queries have which attention distance, rows renormalised over patches, of all images together, "
        "edges fixed."
    ),
    "norm_weighted_entropy": (
        "As `entropy`, of attention times the norm of the key's value behind the output projection, rows "
        "divided by their sums: what reaches the residual stream, and not only what is weighed. [@kobayashi2020]."
    ),
    "norm_weighted_distance": (
        "As `distance_renormalized`, of attention times the norm of the key's value behind the output "
        "projection. [@kobayashi2020]."
    ),
    "norm_weighted_readout_map_mean": (
        "The readout row of attention times the norm of the key's value behind the output projection, averaged over "
        "images. [@kobayashi2020]."
    ),
    "norm_weighted_received_attention_mean": (
        "Attention times the norm of the key's value behind the output projection that each patch receives from patch "
        "queries, averaged over images. [@kobayashi2020]."
    ),
    "normalized_mutual_information": (
        "I(q; k) / √(H(q) H(k)) of query and key, queries even, patches only: 0 where all queries look at the same "
        "keys, 1 where each looks at a key of its own. [@park2023], eq. 2."
    ),
    "position_deviation": (
        "Standard deviation (n − 1) of each key's attention over queries, averaged over keys; patches only. "
        "[@walmer2023]."
    ),
    "head_deviation": (
        "Standard deviation (n − 1) of each entry over heads, averaged over queries and keys; patches only. "
        "[@walmer2023]."
    ),
    "head_similarity": (
        "Jensen-Shannon divergence between two heads' rows, averaged over queries, in nats: 0 for equal heads, at most "
        "ln 2. [@clark2019], section 6, who sum over queries."
    ),
    "offset_map_mean": (
        "Attention by the key's position relative to the query, each row's patch mass scaled to 1, averaged over the "
        "queries that have such a key inside the image, and over images."
    ),
    "offset_map_pooled_mean": (
        "Attention by the key's position relative to the query, each row's patch mass scaled to 1, all mass at that "
        "offset divided by the number of patches. [@walmer2023]."
    ),
    "rollout": (
        "R = M~L~ … M~1~, each M~l~ = (F~l~ + I)/2 with rows divided by their "
        "sums, F~l~ the mean over heads of block l's attention; the result is the readout row's patch "
        "columns. [@abnar2020], section 3 (variant `abnar`, nothing discarded)."
    ),
    "rollout_vit_explain": (
        "The rollout of [@gildenblat], bit for bit: maximum over heads, the smallest 90 % of the entries discarded, "
        "(F + I)/2, column j divided by the sum of row j, the result divided by its maximum."
    ),
    "gradient_rollout": (
        "With G the gradient of the target class's logit by the attention, F~l~ = max(mean over heads of "
        "A·G, 0), then as rollout: (F + I)/2, rows divided by their sums, product over blocks. [@hebbar], eqs. 3.4a to "
        "3.4e, nothing discarded."
    ),
    "gradient_rollout_vit_explain": (
        "The gradient rollout of [@gildenblat], bit for bit: the gradient is that by the scores before the softmax, "
        "and block l is paired with the gradient of the l-th block from the end; mean over heads, above 0, the "
        "smallest 90 % discarded, then as `rollout_vit_explain`."
    ),
    "chefer": (
        "With G the gradient of the target class's logit by the attention, F~l~ = mean over heads of "
        "max(A·G, 0), and R the product over blocks of (I + F~l~), not normalised: [@chefer2021], section 3. "
        "Their earlier method, by relevance propagation, is another one."
    ),
    "head_importance": (
        "|Σ A·G| over queries and keys, G the gradient of the target class's logit by the attention; in the logit's "
        "unit. The score of [@michel2019] is the same of the loss."
    ),
    "head_importance_loss": (
        "|Σ A·G| over queries and keys, G the gradient of the loss, −ln of the target class's probability, by the "
        "attention. [@michel2019], eq. 2."
    ),
    "head_importance_michel": (
        "Σ~i~ |Σ~j~ A~ij~ G~ij~|, G as in `head_importance_loss`: what the code of [@michel2019] computes, before it "
        "divides by the number of tokens and each layer by the norm over its heads."
    ),
    "score_matrix": (
        "Prefix tokens dropped, the maximum over queries for each key, then the mean over heads, on the patch grid; "
        "not renormalised. A value near 1 means that in most heads some patch looks at hardly anything else. "
        "[@hebbar], eq. 3.3, whose text leaves open over what the maximum runs."
    ),
    "score_matrix_mean": (
        "`score_matrix` averaged over images: prefix tokens dropped, the maximum over queries for each key, then the "
        "mean over heads. [@hebbar], eq. 3.3."
    ),
    "score_matrix_key_mean": (
        "Prefix tokens dropped, the maximum over keys for each query, then the mean over heads. [@hebbar], eq. 3.3, in "
        "another reading."
    ),
    "score_matrix_head_mean": (
        "Prefix tokens dropped, the maximum over heads, then the mean over queries. [@hebbar], eq. 3.3, in another "
        "reading."
    ),
    "attention_matrix_mean": "All entries of the attention matrix of each head, averaged over images.",
    "value_norm": "Norm of each key's value behind the output projection, ‖f(x)‖. [@kobayashi2020].",
    "branch_ratio": (
        "Norm of what the attention branch adds to a token, divided by the norm of the residual stream it is added to."
    ),
    "token_norm": "Norm of each token in the residual stream that enters the block.",
}

# What is no statistic of the catalog: title and rich text.
CONCEPTS: dict[str, tuple[str, str]] = {
    "readout": (
        "readout attention",
        "The attention row that the model's head reads: the class token's; the mean of the patch rows where the head "
        "averages patches; the pool's own map where it pools by attention; the mean of class and distillation row in "
        "distilled models. “× uniform” is the value times the number of keys, so that 1 is uniform attention. For the "
        "class token these are the maps of [@caron2021].",
    ),
    "query_map": ("query map", "The attention row of one patch, on the patch grid, times the number of keys."),
    "position_similarity": (
        "position embedding similarity",
        "Cosine between the learned position embeddings of two patches, those of prefix tokens left out. "
        "[@dosovitskiy2021], fig. 7.",
    ),
    "objects": (
        "object similarity",
        "An object is a box, mapped through the model's crop; its vector is the mean of the last block's patch tokens "
        "after the final norm, each weighed by the share of the patch inside the box. Compared with the same mean "
        "weighed by rollout, too. Similarity is the cosine between two objects of one image.",
    ),
    "localisation": (
        "localisation",
        "Of a map and a box: the share of the map's patch mass inside the box; the pointing game, whether the box "
        "covers at least half of a patch where the map is largest ([@zhang2016], at the resolution of patches); and "
        "the intersection over union of the box and the smallest set of patches with 60 % of the mass. Beside a "
        "uniform map, and beside a box of the same size in the middle of the crop, which shows how far photographers' "
        "habit alone leads.",
    ),
    "faithfulness": (
        "faithfulness of maps",
        "Patches are taken out of the picture in the order of the map's values, largest first, and the graph is asked "
        "again: deletion ([@petsiuk2018]; most relevant first in [@samek2017]). Insertion puts the patches with the "
        "largest values back first, into a picture of which nothing is left; read from its end it is the removal of "
        "the least relevant first. A curve's area is the mean of the class's probability over the share of patches; "
        "a map that finds what the model uses has a low deletion and a high insertion, and the difference of the two "
        "areas takes out much of what the fill alone does. Ties are broken by chance. Uniform, centre (a Gaussian of a "
        "quarter of each edge) and random know nothing of the picture: uniform and random differ by chance alone.",
    ),
    "comparison": (
        "comparison of stores",
        "`distance_renormalized` divided by the input's width, and `entropy` divided by the "
        "logarithm of the number of tokens, over (layer + 1) / blocks. For each image the heads of a layer are "
        "averaged, then the images. Paired differences are taken image by image, on the images that the stores share "
        "by path. Head indices mean nothing across models and are never paired.",
    ),
    "groups": (
        "differences between groups",
        "For each group, layer and head the mean of its images less the mean of all others, tested against random "
        "groups of the same size, drawn from all images without replacement, with the variance of all images pooled; "
        "p is the share of them that differ as much ([@besag1991]). q values adjust for all groups, layers and heads "
        "together by [@benjamini1995]: of what is called a difference at q ≤ 0.05, 5 % is expected to be none. A group "
        "of one image has no test. Clusters of images that depend on each other are drawn whole.",
    ),
    "quantiles": (
        "Quantiles",
        "Exact quantiles over images, interpolated linearly, of the values per image that the store keeps.",
    ),
    "spread": (
        "Distributions over queries",
        "Each head's counts divided by their sum; a layer's shares are the mean over its heads. Quantiles are "
        "interpolated linearly within a bin, and so right to within its width. Queries of one image are not "
        "independent of each other: these are descriptions, without intervals.",
    ),
    "intervals": (
        "Intervals",
        "95 % intervals of means are Student's t intervals over images, wider towards the long tail by the skewness of "
        "the values ([@johnson1978]): images are the samples, not patches, layers or heads. One image has no interval, "
        "nor have values that are all equal, but for shares: there it says what an image that differs from all n could "
        "add, about 3 / n. Of fewer than 20 images read them with care. Where images depend on each "
        "other, clusters of them are the samples ([@liang1986]), and the effective n is the number of equal clusters "
        "that say as much. Intervals describe how far the mean would move with other images drawn alike, for this one "
        "model; they say nothing of another training of it.",
    ),
    "accuracy": (
        "Top-1 and top-5",
        "Share of the labelled images whose class is the most probable one, or among the five most probable. Labels "
        "map to classes by name. Intervals are Wilson's ([@wilson1927]).",
    ),
}

READING = (
    "*Attention is not explanation, by itself.* It says where a layer mixes information from, not what "
    "it took from there or whether the prediction depends on it. [@jain2019] found other attention weights that give "
    "the same predictions; [@wiegreffe2019] answered that this depends on what is asked of an explanation, and gave "
    "tests for it. Use these maps to form hypotheses, and test them by changing the input or the model.",
    "*Rollout* follows attention weights alone. Values, MLPs and layer scales are not in it.",
    "*Sinks and prefix tokens* draw attention that says little about the picture, and can dominate "
    "distance and entropy. Read both forms of each beside the prefix mass. Border patches have fewer near neighbours, "
    "so that even uniform attention is farther from there.",
    "*A distance far above that of uniform attention* is no global view: it needs attention on the border of the "
    "picture, which alone is far from most patches. `border_mass` says how much lies there.",
    "*Heads* are unordered: head 3 of one model has nothing to do with head 3 of another.",
)

"""Exact definitions in words, and the publications they come from: what a report prints of its own methods."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["READING", "REFERENCES", "Method", "Reference", "cite", "methods", "references"]


@dataclass(frozen=True, slots=True)
class Reference:
    """A publication: `short` as cited in the text."""

    short: str
    authors: str
    title: str
    place: str
    url: str


@dataclass(frozen=True, slots=True)
class Method:
    """A definition: HTML, and the keys of the references that it cites."""

    title: str
    text: str
    cites: tuple[str, ...] = ()


def _arxiv(number: str) -> str:
    return f"https://arxiv.org/abs/{number}"


REFERENCES: dict[str, Reference] = {
    "abnar2020": Reference(
        "Abnar & Zuidema 2020", "S. Abnar, W. Zuidema", "Quantifying Attention Flow in Transformers",
        "ACL 2020, arXiv 2005.00928", _arxiv("2005.00928"),
    ),
    "caron2021": Reference(
        "Caron et al. 2021", "M. Caron, H. Touvron, I. Misra, H. Jégou, J. Mairal, P. Bojanowski, A. Joulin",
        "Emerging Properties in Self-Supervised Vision Transformers", "ICCV 2021, arXiv 2104.14294",
        _arxiv("2104.14294"),
    ),
    "darcet2024": Reference(
        "Darcet et al. 2024", "T. Darcet, M. Oquab, J. Mairal, P. Bojanowski", "Vision Transformers Need Registers",
        "ICLR 2024, arXiv 2309.16588", _arxiv("2309.16588"),
    ),
    "dosovitskiy2021": Reference(
        "Dosovitskiy et al. 2021", "A. Dosovitskiy, L. Beyer, A. Kolesnikov, D. Weissenborn, X. Zhai, et al.",
        "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", "ICLR 2021, arXiv 2010.11929",
        _arxiv("2010.11929"),
    ),
    "efron1979": Reference(
        "Efron 1979", "B. Efron", "Bootstrap Methods: Another Look at the Jackknife",
        "The Annals of Statistics 7(1), 1-26", "https://doi.org/10.1214/aos/1176344552",
    ),
    "jain2019": Reference(
        "Jain & Wallace 2019", "S. Jain, B. C. Wallace", "Attention is not Explanation",
        "NAACL 2019, arXiv 1902.10186", _arxiv("1902.10186"),
    ),
    "park2023": Reference(
        "Park et al. 2023", "N. Park, W. Kim, B. Heo, T. Kim, S. Yun",
        "What Do Self-Supervised Vision Transformers Learn?", "ICLR 2023, arXiv 2305.00729", _arxiv("2305.00729"),
    ),
    "raghu2021": Reference(
        "Raghu et al. 2021", "M. Raghu, T. Unterthiner, S. Kornblith, C. Zhang, A. Dosovitskiy",
        "Do Vision Transformers See Like Convolutional Neural Networks?", "NeurIPS 2021, arXiv 2108.08810",
        _arxiv("2108.08810"),
    ),
    "walmer2023": Reference(
        "Walmer et al. 2023", "M. Walmer, S. Suri, K. Gupta, A. Shrivastava",
        "Teaching Matters: Investigating the Role of Supervision in Vision Transformers", "CVPR 2023, arXiv 2212.03862",
        _arxiv("2212.03862"),
    ),
    "wiegreffe2019": Reference(
        "Wiegreffe & Pinter 2019", "S. Wiegreffe, Y. Pinter", "Attention is not not Explanation",
        "EMNLP-IJCNLP 2019, arXiv 1908.04626", _arxiv("1908.04626"),
    ),
    "wilson1927": Reference(
        "Wilson 1927", "E. B. Wilson", "Probable Inference, the Law of Succession, and Statistical Inference",
        "Journal of the American Statistical Association 22(158), 209-212",
        "https://doi.org/10.1080/01621459.1927.10502953",
    ),
}  # fmt: skip


def cite(key: str) -> str:
    """A citation that leads to the list at the page's end: HTML."""
    return f'<a class="cite" href="#ref-{key}">{REFERENCES[key].short}</a>'.replace("&", "&amp;")


METHODS: dict[str, Method] = {
    "distance": Method(
        "distance",
        "Mean attention distance as published: <var>mean</var><sub>i</sub> Σ<sub>j</sub> A<sub>ij</sub> "
        "D<sub>ij</sub> over "
        "patches i and j, D the Euclidean distance of their positions in pixels. Prefix rows and columns are dropped "
        "and "
        "the rest is not renormalised. {dosovitskiy2021}, figs. 7 and 11; {raghu2021}, fig. 3.",
        ("dosovitskiy2021", "raghu2021"),
    ),
    "distance_renormalized": Method(
        "distance_renormalized",
        "As <code>distance</code>, each row first divided by its mass on patches. Rows without patch mass are left out "
        "(the store counts them as <code>rows_without_patch_mass</code>). {park2023}, section 2.",
        ("park2023",),
    ),
    "entropy": Method(
        "entropy",
        "−Σ<sub>j</sub> A<sub>ij</sub> ln A<sub>ij</sub> of each row over all keys, 0 ln 0 = 0, in nats; averaged "
        "over all "
        "queries, one head at a time. The entropy of head-averaged attention is something else and is not shown.",
    ),
    "entropy_patch": Method(
        "entropy_patch",
        "The same over patch keys, each row first divided by its mass on patches. With m the mass on prefix tokens, "
        "each "
        "row obeys H = H₂(m) + m H<sub>prefix</sub> + (1 − m) H<sub>patch</sub>.",
    ),
    "prefix_mass": Method(
        "prefix_mass",
        "The attention that patch queries pay to each prefix token, averaged over these queries; a share of 1. That "
        "tokens "
        "serve models as places to store what belongs to no patch is discussed by {darcet2024}.",
        ("darcet2024",),
    ),
    "rollout": Method(
        "rollout",
        "R = M<sub>L</sub> … M<sub>1</sub>, each M<sub>l</sub> = (F<sub>l</sub> + I)/2 with rows divided by their "
        "sums, "
        "F<sub>l</sub> the mean over heads of block l's attention; the result is the readout row's patch columns. "
        "Shown "
        "divided by its mean over patches. {abnar2020}, section 3 (variant <code>abnar</code>, nothing discarded).",
        ("abnar2020",),
    ),
    "readout": Method(
        "readout attention",
        "The attention row that the model's head reads: the class token's; the mean of the patch rows where the head "
        "averages patches; the pool's own map where it pools by attention; the mean of class and distillation row in "
        "distilled models. “× uniform” is the value times the number of keys, so that 1 is uniform attention. For the "
        "class token these are the maps of {caron2021}.",
        ("caron2021",),
    ),
    "score_matrix": Method(
        "score_matrix",
        "Prefix tokens dropped, the maximum over queries for each key, then the mean over heads, on the patch grid; "
        "not "
        "renormalised. A value near 1 means that in most heads some patch looks at hardly anything else.",
    ),
    "query_map": Method(
        "query map",
        "The attention row of one patch, on the patch grid, times the number of keys.",
    ),
    "masses": Method(
        "self_mass, neighbour_mass, rest_mass",
        "Attention of a patch on itself, on its up to 8 neighbours and on all other patches, averaged over patches; "
        "with the "
        "mass on prefix tokens they add up to 1.",
    ),
    "distance_unit_square": Method(
        "distance_unit_square",
        "As <code>distance_renormalized</code>, positions divided by the number of rows (columns) less one. "
        "{walmer2023}.",
        ("walmer2023",),
    ),
    "effective_tokens": Method(
        "effective_tokens",
        "The mean over queries of exp(H), H the entropy of the row in nats: not exp of the mean entropy.",
    ),
    "sink_share": Method(
        "sink_share",
        "Share of the patches that receive more than 4 times the uniform attention, averaged over queries. "
        "{darcet2024}.",
        ("darcet2024",),
    ),
    "normalized_mutual_information": Method(
        "normalized_mutual_information",
        "I(q; k) / √(H(q) H(k)) of query and key, queries even, patches only: 0 where all queries look at the same "
        "keys. "
        "{park2023}, eq. 2.",
        ("park2023",),
    ),
    "position_deviation": Method(
        "position_deviation",
        "Standard deviation of each key's attention over queries, averaged over keys; patches only. {walmer2023}.",
        ("walmer2023",),
    ),
    "offset_map": Method(
        "offset_map",
        "Attention by the key's position relative to the query, each row's patch mass scaled to 1, averaged over the "
        "queries "
        "that have such a key inside the image.",
    ),
    "comparison": Method(
        "comparison of stores",
        "<code>distance_renormalized</code> divided by the input's width, and <code>entropy</code> divided by the "
        "logarithm of the number of tokens, over (layer + 1) / blocks. For each image the heads of a layer are "
        "averaged, then "
        "the images. Paired differences are of the mean over layers and heads, image by image, on the images that "
        "the stores share by path. Head indices mean nothing across models and are never paired.",
    ),
    "bootstrap": Method(
        "Intervals",
        "95 % intervals of means are percentile bootstrap intervals ({efron1979}) over images: images are the samples, "
        "not patches, layers or heads. They describe how far the mean would move with other images drawn alike, for "
        "this one model; they say nothing of another training of it.",
        ("efron1979",),
    ),
    "accuracy": Method(
        "Top-1 and top-5",
        "Share of the labelled images whose class is the most probable one, or among the five most probable. Labels "
        "map "
        "to classes by name. Intervals are Wilson's ({wilson1927}).",
        ("wilson1927",),
    ),
}  # fmt: skip

READING = (
    "<strong>Attention is not explanation, by itself.</strong> It says where a layer mixes information from, not what "
    "it "
    "took from there or whether the prediction depends on it. {jain2019} found other attention weights that give the "
    "same "
    "predictions; {wiegreffe2019} answered that this depends on what is asked of an explanation, and gave tests for "
    "it. Use "
    "these maps to form hypotheses, and test them by changing the input or the model.",
    "<strong>Rollout</strong> follows attention weights alone. Values, MLPs and layer scales are not in it.",
    "<strong>Sinks and prefix tokens</strong> draw attention that says little about the picture, and can dominate "
    "distance and entropy. Read both forms of each beside the prefix mass. Border patches have fewer near neighbours, "
    "so that "
    "even uniform attention is farther from there.",
    "<strong>Heads</strong> are unordered: head 3 of one model has nothing to do with head 3 of another.",
)


def methods(names: Iterable[str]) -> list[tuple[str, str]]:
    """(title, HTML) of the definitions in `names`, in this module's order, each once."""
    wanted = set(names)
    return [(m.title, linked(m.text)) for key, m in METHODS.items() if key in wanted]


def references(names: Iterable[str], text: str = "") -> list[tuple[str, Reference]]:
    """(key, reference) of all that the definitions in `names` and the HTML `text` cite, by author."""
    wanted = {key for name in names for key in METHODS[name].cites}
    return [(key, r) for key, r in sorted(REFERENCES.items()) if key in wanted or f'"#ref-{key}"' in text]


def linked(text: str) -> str:
    """`{key}` as a citation."""
    return text.format(**{key: cite(key) for key in REFERENCES})

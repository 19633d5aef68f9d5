"""The publications that the definitions come from: as a page cites them, and as BibTeX."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["REFERENCES", "Reference", "bibtex"]

_LATEX = str.maketrans({"é": r"{\'e}", "ö": r"{\"o}", "ü": r"{\"u}", "–": "--", "&": r"\&"})


@dataclass(frozen=True, slots=True)
class Reference:
    """A publication.

    Attributes:
        short: as the text cites it.
        authors: in BibTeX's form, "Last, First and Last, First".
        kind: BibTeX's type of entry; `place`: its journal or proceedings; `pages`, `volume`, `year`: "" where unknown.
        arxiv, doi: of it, or "".
        web: where it is found if neither is known.
    """

    short: str
    authors: str
    title: str
    kind: str = "inproceedings"
    place: str = ""
    year: str = ""
    volume: str = ""
    pages: str = ""
    arxiv: str = ""
    doi: str = ""
    web: str = ""

    @property
    def url(self) -> str:
        """Where a reader finds it."""
        if self.arxiv:
            return f"https://arxiv.org/abs/{self.arxiv}"
        return f"https://doi.org/{self.doi}" if self.doi else self.web

    @property
    def line(self) -> tuple[str, str, str]:
        """(authors with initials, title, where it appeared), as a list of references has them."""
        names = []
        for author in self.authors.split(" and "):
            last, _, first = author.partition(", ")
            names.append(" ".join([*(part[0] + "." for part in first.split()), last]))
        where = [" ".join(part for part in (self.place, self.volume) if part), self.pages.replace("--", "–"), self.year]
        where += [f"arXiv {self.arxiv}"] if self.arxiv else [self.web.removeprefix("https://")] if self.web else []
        return ", ".join(names), self.title, ", ".join(part for part in where if part)


REFERENCES: dict[str, Reference] = {
    "abnar2020": Reference(
        "Abnar & Zuidema 2020",
        "Abnar, Samira and Zuidema, Willem",
        "Quantifying Attention Flow in Transformers",
        place="Proceedings of the 58th Annual Meeting of the Association for Computational Linguistics",
        year="2020",
        pages="4190--4197",
        arxiv="2005.00928",
        doi="10.18653/v1/2020.acl-main.385",
    ),
    "benjamini1995": Reference(
        "Benjamini & Hochberg 1995",
        "Benjamini, Yoav and Hochberg, Yosef",
        "Controlling the False Discovery Rate: A Practical and Powerful Approach to Multiple Testing",
        "article",
        "Journal of the Royal Statistical Society: Series B",
        "1995",
        "57(1)",
        "289--300",
        doi="10.1111/j.2517-6161.1995.tb02031.x",
    ),
    "besag1991": Reference(
        "Besag & Clifford 1991",
        "Besag, Julian and Clifford, Peter",
        "Sequential Monte Carlo p-Values",
        "article",
        "Biometrika",
        "1991",
        "78(2)",
        "301--304",
        doi="10.1093/biomet/78.2.301",
    ),
    "caron2021": Reference(
        "Caron et al. 2021",
        "Caron, Mathilde and Touvron, Hugo and Misra, Ishan and Jégou, Hervé and Mairal, Julien and Bojanowski, Piotr "
        "and Joulin, Armand",
        "Emerging Properties in Self-Supervised Vision Transformers",
        place="Proceedings of the IEEE/CVF International Conference on Computer Vision",
        year="2021",
        pages="9650--9660",
        arxiv="2104.14294",
    ),
    "chefer2021": Reference(
        "Chefer et al. 2021",
        "Chefer, Hila and Gur, Shir and Wolf, Lior",
        "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers",
        place="Proceedings of the IEEE/CVF International Conference on Computer Vision",
        year="2021",
        pages="387--396",
        arxiv="2103.15679",
    ),
    "clark2019": Reference(
        "Clark et al. 2019",
        "Clark, Kevin and Khandelwal, Urvashi and Levy, Omer and Manning, Christopher D.",
        "What Does BERT Look at? An Analysis of BERT's Attention",
        place="Proceedings of the 2019 ACL Workshop BlackboxNLP",
        year="2019",
        pages="276--286",
        arxiv="1906.04341",
        doi="10.18653/v1/W19-4828",
    ),
    "darcet2024": Reference(
        "Darcet et al. 2024",
        "Darcet, Timothée and Oquab, Maxime and Mairal, Julien and Bojanowski, Piotr",
        "Vision Transformers Need Registers",
        place="International Conference on Learning Representations",
        year="2024",
        arxiv="2309.16588",
    ),
    "dosovitskiy2021": Reference(
        "Dosovitskiy et al. 2021",
        "Dosovitskiy, Alexey and Beyer, Lucas and Kolesnikov, Alexander and Weissenborn, Dirk and Zhai, Xiaohua and "
        "Unterthiner, Thomas and Dehghani, Mostafa and Minderer, Matthias and Heigold, Georg and Gelly, Sylvain and "
        "Uszkoreit, Jakob and Houlsby, Neil",
        "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
        place="International Conference on Learning Representations",
        year="2021",
        arxiv="2010.11929",
    ),
    "gildenblat": Reference(
        "Gildenblat, vit-explain",
        "Gildenblat, Jacob",
        "vit-explain: Explainability for Vision Transformers",
        "misc",
        web="https://github.com/jacobgil/vit-explain",
    ),
    "hebbar": Reference(
        "Hebbar, Okafor & Banerjee",
        "Hebbar, K. and Okafor, C. and Banerjee, S.",
        "Interpreting Vision Transformers",
        "misc",
        web="https://github.com/zuruoke/intrepreting-ViT",
    ),
    "jain2019": Reference(
        "Jain & Wallace 2019",
        "Jain, Sarthak and Wallace, Byron C.",
        "Attention is not Explanation",
        place="Proceedings of the 2019 Conference of the North American Chapter of the Association for Computational "
        "Linguistics: Human Language Technologies",
        year="2019",
        pages="3543--3556",
        arxiv="1902.10186",
        doi="10.18653/v1/N19-1357",
    ),
    "johnson1978": Reference(
        "Johnson 1978",
        "Johnson, Norman J.",
        "Modified t Tests and Confidence Intervals for Asymmetrical Populations",
        "article",
        "Journal of the American Statistical Association",
        "1978",
        "73(363)",
        "536--544",
        doi="10.1080/01621459.1978.10480051",
    ),
    "kobayashi2020": Reference(
        "Kobayashi et al. 2020",
        "Kobayashi, Goro and Kuribayashi, Tatsuki and Yokoi, Sho and Inui, Kentaro",
        "Attention is Not Only a Weight: Analyzing Transformers with Vector Norms",
        place="Proceedings of the 2020 Conference on Empirical Methods in Natural Language Processing",
        year="2020",
        pages="7057--7075",
        arxiv="2004.10102",
        doi="10.18653/v1/2020.emnlp-main.574",
    ),
    "liang1986": Reference(
        "Liang & Zeger 1986",
        "Liang, Kung-Yee and Zeger, Scott L.",
        "Longitudinal Data Analysis Using Generalized Linear Models",
        "article",
        "Biometrika",
        "1986",
        "73(1)",
        "13--22",
        doi="10.1093/biomet/73.1.13",
    ),
    "michel2019": Reference(
        "Michel et al. 2019",
        "Michel, Paul and Levy, Omer and Neubig, Graham",
        "Are Sixteen Heads Really Better than One?",
        place="Advances in Neural Information Processing Systems 32",
        year="2019",
        arxiv="1905.10650",
    ),
    "park2023": Reference(
        "Park et al. 2023",
        "Park, Namuk and Kim, Wonjae and Heo, Byeongho and Kim, Taekyung and Yun, Sangdoo",
        "What Do Self-Supervised Vision Transformers Learn?",
        place="International Conference on Learning Representations",
        year="2023",
        arxiv="2305.00729",
    ),
    "petsiuk2018": Reference(
        "Petsiuk et al. 2018",
        "Petsiuk, Vitali and Das, Abir and Saenko, Kate",
        "RISE: Randomized Input Sampling for Explanation of Black-box Models",
        place="British Machine Vision Conference",
        year="2018",
        arxiv="1806.07421",
    ),
    "raghu2021": Reference(
        "Raghu et al. 2021",
        "Raghu, Maithra and Unterthiner, Thomas and Kornblith, Simon and Zhang, Chiyuan and Dosovitskiy, Alexey",
        "Do Vision Transformers See Like Convolutional Neural Networks?",
        place="Advances in Neural Information Processing Systems 34",
        year="2021",
        arxiv="2108.08810",
    ),
    "samek2017": Reference(
        "Samek et al. 2017",
        "Samek, Wojciech and Binder, Alexander and Montavon, Grégoire and Lapuschkin, Sebastian and Müller, "
        "Klaus-Robert",
        "Evaluating the Visualization of What a Deep Neural Network Has Learned",
        kind="article",
        place="IEEE Transactions on Neural Networks and Learning Systems",
        year="2017",
        volume="28",
        pages="2660--2673",
        arxiv="1509.06321",
    ),
    "walmer2023": Reference(
        "Walmer et al. 2023",
        "Walmer, Matthew and Suri, Saksham and Gupta, Kamal and Shrivastava, Abhinav",
        "Teaching Matters: Investigating the Role of Supervision in Vision Transformers",
        place="Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition",
        year="2023",
        arxiv="2212.03862",
    ),
    "wiegreffe2019": Reference(
        "Wiegreffe & Pinter 2019",
        "Wiegreffe, Sarah and Pinter, Yuval",
        "Attention is not not Explanation",
        place="Proceedings of the 2019 Conference on Empirical Methods in Natural Language Processing and the 9th "
        "International Joint Conference on Natural Language Processing",
        year="2019",
        pages="11--20",
        arxiv="1908.04626",
        doi="10.18653/v1/D19-1002",
    ),
    "wilson1927": Reference(
        "Wilson 1927",
        "Wilson, Edwin B.",
        "Probable Inference, the Law of Succession, and Statistical Inference",
        "article",
        "Journal of the American Statistical Association",
        "1927",
        "22(158)",
        "209--212",
        doi="10.1080/01621459.1927.10502953",
    ),
    "zhang2016": Reference(
        "Zhang et al. 2016",
        "Zhang, Jianming and Lin, Zhe and Brandt, Jonathan and Shen, Xiaohui and Sclaroff, Stan",
        "Top-down Neural Attention by Excitation Backprop",
        place="European Conference on Computer Vision",
        year="2016",
        pages="543--559",
        arxiv="1608.00507",
        doi="10.1007/978-3-319-46493-0_33",
    ),
}


def bibtex(key: str) -> str:
    """One entry, in ASCII."""
    r = REFERENCES[key]
    volume, _, number = r.volume.rstrip(")").partition("(")
    fields = {
        "author": r.authors.translate(_LATEX),
        "title": f"{{{r.title}}}",
        "journal" if r.kind == "article" else "booktitle": r.place.translate(_LATEX),
        "volume": volume,
        "number": number.replace("-", "--"),
        "pages": r.pages,
        "year": r.year,
        "eprint": r.arxiv,
        "archiveprefix": "arXiv" if r.arxiv else "",
        "doi": r.doi,
        "howpublished": rf"\url{{{r.web}}}" if r.web else "",
    }
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@{r.kind}{{{key},", *lines, "}"])

"""The pages of the losses: formula, choice, cost, settings, and a picture that the loss itself draws.

The formulas are written here, as people write them; the definitions that are computed are in fastpair/formulas, whose
settings, means and sources the pages quote. The pictures are drawn by the package.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

import fastpair.functional as FP
from fastpair.formulas.pair_losses import DEFINITIONS
from fastpair.formulas.to_markdown import settings

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
BLUE, ORANGE = "#0072B2", "#D55E00"


@dataclass(frozen=True)
class Page:
    """``of``: the loss of an anchor (1, 2) with one positive and one negative (1, 2) each, for the picture."""

    module: str
    function: str
    family: str
    title: str
    formula: str
    when: str
    of: Callable[[Tensor, Tensor, Tensor], Tensor] | None
    source: str = ""
    note: str = ""

    @property
    def path(self) -> str:
        return f"losses/{self.module}.md"


def of_pairs(function: Callable[..., Tensor], **options) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def loss(anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        references = torch.cat([positive, negative])
        return function(anchor, torch.tensor([0]), references, torch.tensor([0, 1]), **options)

    return loss


def of_classes(function: Callable[..., Tensor], **options) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def loss(anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        return function(anchor, torch.cat([positive, negative]), torch.tensor([0]), **options)

    return loss


PAIRS, TRIPLETS, VIEWS, CLASSES, BOUNDS = (
    "Pairs that labels make",
    "Triplets",
    "Two views",
    "Vectors of classes",
    "Pairwise bounds of cross-entropy",
)
COSTS = {
    PAIRS: "Time: 1.5 matrix products of the batch with itself, the floor, and 2 beyond 4096 samples. Memory: no n × n "
    "matrix is held.",
    TRIPLETS: "The hardest triplets cost the scores and the gradient of the rows that they name, less than the 1.5 "
    "products of a pair loss. All triplets, and the semi-hard ones, are counted by sorting each anchor's positives, "
    "not through a list.",
    VIEWS: "One kernel for rows and columns. With the options that are made of log-sum-exps of rows, "
    "backward computes the "
    "scores once more. No n × n matrix is held.",
    CLASSES: "Time: three products of n × K × d, the logits and two gradients. Memory: the logits of "
    "a block of rows, not "
    "all n × K.",
    BOUNDS: "Time: that of a cross-entropy with K class vectors made from the batch, O(nKd), never O(n²d).",
}

P, N = r"\mathcal{P}", r"\mathcal{N}"
POSITIVES, NEGATIVES, BOTH = rf"\sum_{{p \in {P}}}", rf"\sum_{{q \in {N}}}", rf"\sum_{{k \in {P} \cup {N}}}"
RELU = r"\left[{}\right]_+"

PAGES = [
    Page(
        "ContrastiveLoss",
        "contrastive_loss",
        PAIRS,
        "Contrastive loss",
        rf"\ell = {POSITIVES} \left[d_p - m_+\right]_+^{{\,\rho}} + {NEGATIVES} \left[m_- - d_q\right]_+^{{\,\rho}}",
        "Positives are pulled together, up to the distance $m_+$, and negatives pushed apart until "
        "$m_-$: a pair beyond "
        "its margin has no part in the gradient. Each pair counts alone, so that a negative pulls as "
        "hard near few others "
        "as near many. `power=2` ($\\rho = 2$) is the form of the paper, whose slope falls to zero at the margin.",
        of_pairs(FP.contrastive_loss),
    ),
    Page(
        "SNCALoss",
        "snca_loss",
        PAIRS,
        "Scalable neighbourhood component analysis",
        rf"\ell = \log {BOTH} e^{{s_k/\tau}} - \log {POSITIVES} e^{{s_p/\tau}}",
        "The probability that a neighbour drawn by a softmax over the scores is a positive. One "
        "close positive is enough: "
        "the sum over positives is inside the logarithm, so that a class may lie in several clusters.",
        of_pairs(FP.snca_loss),
    ),
    Page(
        "NCALoss",
        "nca_loss",
        PAIRS,
        "Neighbourhood component analysis",
        rf"\ell = \log {BOTH} e^{{-\sigma d_k^2}} - \log {POSITIVES} e^{{-\sigma d_p^2}}",
        "SNCA on squared distances: a softmax of neighbours whose weights fall as a Gaussian does.",
        of_pairs(FP.nca_loss),
    ),
    Page(
        "SupConLoss",
        "supcon_loss",
        PAIRS,
        "Supervised contrastive loss",
        rf"\ell = \log {BOTH} e^{{s_k/\tau}} - \frac1{{|{P}|}} {POSITIVES} \frac{{s_p}}\tau",
        "Every positive is pulled, by the same amount: the mean is outside the logarithm. Positives stand in the "
        "denominator too, so that close positives push each other.",
        of_pairs(FP.supcon_loss),
    ),
    Page(
        "DCLLoss",
        "dcl_loss",
        PAIRS,
        "Decoupled contrastive loss",
        rf"\ell = \log {NEGATIVES} e^{{s_q/\tau}} - \frac1{{|{P}|}} {POSITIVES} \frac{{s_p}}\tau",
        "SupCon without the positives in the denominator: the pull on a positive does not fade as it "
        "comes close, and the "
        "loss has no lower bound at zero. It was proposed for small batches.",
        of_pairs(FP.dcl_loss),
    ),
    Page(
        "SINCERELoss",
        "sincere_loss",
        PAIRS,
        "SINCERE",
        rf"\ell = \frac1{{|{P}|}} {POSITIVES} \log\Bigl(1 + {NEGATIVES} e^{{(s_q - s_p)/\tau}}\Bigr)",
        "SupCon in which each positive meets the negatives alone: positives do not push each other.",
        of_pairs(FP.sincere_loss),
    ),
    Page(
        "NTXentLoss",
        "ntxent_loss",
        PAIRS,
        "NT-Xent",
        rf"\ell = {POSITIVES} \log\Bigl(1 + {NEGATIVES} e^{{(s_q - s_p)/\tau}}\Bigr)",
        "SINCERE, averaged over positive pairs rather than anchors: an anchor with many positives "
        "weighs more. With two "
        "views of each sample it is the loss of SimCLR.",
        of_pairs(FP.ntxent_loss),
    ),
    Page(
        "MultiSimilarityLoss",
        "multi_similarity_loss",
        PAIRS,
        "Multi-similarity loss",
        rf"\ell = \frac1\alpha \log\Bigl(1 + {POSITIVES} e^{{-\alpha(s_p - \lambda)}}\Bigr)"
        rf" + \frac1\beta \log\Bigl(1 + {NEGATIVES} e^{{\beta(s_q - \lambda)}}\Bigr)",
        "Both parts are soft maxima: the furthest positives and the closest negatives get most of "
        "the gradient, with no "
        "miner. Pairs on the right side of λ by a few 1/β have almost none.",
        of_pairs(FP.multi_similarity_loss),
    ),
    Page(
        "CircleLoss",
        "circle_loss",
        PAIRS,
        "Circle loss",
        rf"\ell = \log\Bigl(1 + {POSITIVES} e^{{-\gamma [1 + m - s_p]_+ (s_p - 1 + m)}}"
        rf" {NEGATIVES} e^{{\gamma [s_q + m]_+ (s_q - m)}}\Bigr)",
        "Each pair has a weight of its own, by how far it is from its optimum; the weights "
        "$[\\cdot]_+$ carry no gradient. "
        "A pair at its optimum is left alone even where the other is not.",
        of_pairs(FP.circle_loss),
    ),
    Page(
        "GeneralizedLiftedStructureLoss",
        "generalized_lifted_structure_loss",
        PAIRS,
        "Generalised lifted structure",
        rf"\ell = \Bigl[\log {POSITIVES} e^{{d_p - m_+}} + \log {NEGATIVES} e^{{m_- - d_q}}\Bigr]_+",
        "A soft form of the hardest triplet: log-sum-exps in place of maxima, with the temperature of the distances.",
        of_pairs(FP.generalized_lifted_structure_loss),
    ),
    Page(
        "TripletMarginLoss",
        "triplet_margin_loss",
        TRIPLETS,
        "Triplet margin loss",
        r"\ell = \left[d_p - d_q + m\right]_+",
        '`triplets_per_anchor="hard"` compares the furthest positive with the closest negative of each anchor, `"all"` '
        'every pair of them, `"semihard"` those that are already in order but by less than the margin. '
        "`smooth_loss=True` puts $\\log(1 + e^{d_p - d_q + m})$ in place of the hinge.",
        of_pairs(FP.triplet_margin_loss),
        note="The mean is over the triplets whose loss is not zero.",
    ),
    Page(
        "InfoNCELoss",
        "info_nce_loss",
        VIEWS,
        "InfoNCE",
        r"\ell_i = \log \sum_j e^{s_{ij}/\tau} - s_{ii}/\tau",
        "Row i of the one side belongs to row i of the other: images and texts (CLIP, with "
        "`symmetric=True`), queries and "
        "documents. [Queries and documents](../losses.md#queries-and-documents) has hard negatives, directions and the "
        "rest.",
        lambda a, p, q: FP.info_nce_loss(a, torch.cat([p, q]), symmetric=False),
        "van den Oord et al., 2018 (arXiv 1807.03748); Radford et al., ICML 2021 (CLIP)",
    ),
    Page(
        "SigLIPLoss",
        "siglip_loss",
        VIEWS,
        "Sigmoid loss of SigLIP",
        r"\ell_i = \log\bigl(1 + e^{-(t s_{ii} + b)}\bigr) + \sum_{j \ne i} \log\bigl(1 + e^{t s_{ij} + b}\bigr)",
        "Each pair is a yes-or-no question of its own, with no sum over the batch inside a "
        "logarithm: t and b are learned.",
        lambda a, p, q: FP.siglip_loss(a, torch.cat([p, q]), pairs=torch.tensor([[1, -1]])),
        "Zhai et al., ICCV 2023 (arXiv 2303.15343)",
    ),
    Page(
        "LinearCrossEntropyLoss",
        "linear_cross_entropy",
        CLASSES,
        "Linear cross-entropy",
        r"\ell = \log \sum_k e^{w_k \cdot z + b_k} - w_y \cdot z - b_y",
        "The classifier and its loss in one call. The paper shows that it bounds the pairwise "
        "losses: without a pair it "
        "does the same work. Needs the classes to be known, and enough samples of each over the "
        "training, not in a batch.",
        of_classes(FP.linear_cross_entropy),
    ),
    Page(
        "NormalizedSoftmaxLoss",
        "normalized_softmax_loss",
        CLASSES,
        "Normalised softmax",
        r"\ell = \log \sum_k e^{\cos(z, w_k)/\tau} - \cos(z, w_y)/\tau",
        "Cross-entropy on cosines: lengths play no part, as they play none in retrieval by cosine.",
        of_classes(FP.normalized_softmax_loss),
    ),
    Page(
        "CosFaceLoss",
        "cosface_loss",
        CLASSES,
        "CosFace",
        r"\ell = -\log \frac{e^{\sigma(\cos\theta_y - m)}}{e^{\sigma(\cos\theta_y - m)} + \sum_{k \ne "
        r"y} e^{\sigma\cos\theta_k}}",
        "Normalised softmax with a margin on the cosine of the own class: classes are asked to be apart by it.",
        of_classes(FP.cosface_loss),
    ),
    Page(
        "ArcFaceLoss",
        "arcface_loss",
        CLASSES,
        "ArcFace",
        r"\ell = -\log \frac{e^{\sigma\cos(\theta_y + m)}}{e^{\sigma\cos(\theta_y + m)} + \sum_{k \ne "
        r"y} e^{\sigma\cos\theta_k}}",
        "The margin is one of the angle. It is given in degrees.",
        of_classes(FP.arcface_loss),
    ),
    Page(
        "ProxyNCALoss",
        "proxy_nca_loss",
        CLASSES,
        "Proxy-NCA",
        r"\ell = \log \sum_k e^{-\sigma |\hat z - \hat w_k|^2} + \sigma |\hat z - \hat w_y|^2",
        "NCA against one learned vector a class instead of samples.",
        of_classes(FP.proxy_nca_loss),
    ),
    Page(
        "ProxyAnchorLoss",
        "proxy_anchor_loss",
        CLASSES,
        "Proxy-anchor",
        rf"\frac1{{|K_+|}} \sum_{{k \in K_+}} \log\Bigl(1 + {POSITIVES} e^{{-\alpha(s_p - \delta)}}\Bigr)"
        rf" + \frac1K \sum_k \log\Bigl(1 + {NEGATIVES} e^{{\alpha(s_q + \delta)}}\Bigr)",
        "Each class's vector is the anchor, the samples of the batch are its positives and "
        "negatives: samples are weighed "
        "against each other, which proxy-NCA does not do. $K_+$ are the classes that the batch has.",
        of_classes(FP.proxy_anchor_loss),
    ),
    Page(
        "CenterLoss",
        "center_loss",
        CLASSES,
        "Center loss",
        r"\ell = \tfrac12 |z - c_y|^2",
        "Tightness alone: it holds classes together and keeps nothing apart, and is added to a cross-entropy.",
        lambda a, p, q: FP.center_loss(a, torch.tensor([0]), torch.cat([p, q])),
    ),
    Page(
        "SPCELoss",
        "spce_loss",
        BOUNDS,
        "Simplified pairwise cross-entropy (SPCE)",
        r"-\frac1{n^2} \sum_i \sum_{j:\, y_j = y_i} z_i \cdot z_j"
        r" + \frac1n \sum_i \log \sum_k \exp\Bigl(\frac1n \sum_{j:\, y_j = k} z_i \cdot z_j\Bigr)",
        "Cross-entropy whose weights are made from the batch, one gradient step away from zero: it "
        "needs no classifier, but "
        "the whole batch. [The paper](../paper.md) has what it is for.",
        None,
        "Boudiaf et al., ECCV 2020 (arXiv 2003.08983), section 5",
    ),
    Page(
        "PCELoss",
        "pce_loss",
        BOUNDS,
        "Pairwise cross-entropy (PCE)",
        r"-\frac1{2\lambda n^2} \sum_i \sum_{j:\, y_j = y_i} z_i \cdot z_j + \frac1n \sum_i \log \sum_k"
        r" \exp\Bigl(\frac1{\lambda n} \sum_j p_{jk}\, z_i \cdot z_j\Bigr) - \frac1{2\lambda} \sum_k |c_k|^2,"
        r" \qquad c_k = \frac1n \sum_i p_{ik} z_i",
        "A bound of cross-entropy made of pairs, with the classifier's softmax p: for measuring how "
        "tight the bound is rather "
        "than for training. [The paper](../paper.md) has it.",
        None,
        "Boudiaf et al., ECCV 2020 (arXiv 2003.08983), section 4",
    ),
]


def definition(page: Page):
    return DEFINITIONS.get(page.function.removesuffix("_loss"))


def at_cosine(cosine: Tensor) -> Tensor:
    """The unit vector (1, 2) of that cosine to the anchor (1, 0)."""
    return torch.stack([cosine, (1 - cosine**2).sqrt()])[None]


def curve(page: Page, cosines: Tensor, moved: str, fixed: float) -> tuple[Tensor, Tensor]:
    """Loss and slope against the cosine of the positive or the negative, the other's being ``fixed``, in float64."""
    anchor, still = torch.tensor([[1.0, 0.0]], dtype=torch.float64), at_cosine(torch.tensor(fixed, dtype=torch.float64))
    values, slopes = [], []
    for cosine in cosines:
        s = cosine.clone().requires_grad_()
        loss = page.of(anchor, *((at_cosine(s), still) if moved == "positive" else (still, at_cosine(s))))
        values.append(loss.detach())
        slopes.append(torch.autograd.grad(loss, s, allow_unused=True, materialize_grads=True)[0])
    return torch.stack(values), torch.stack(slopes)


def picture(page: Page) -> str:
    cosines = torch.linspace(-0.995, 0.995, 160, dtype=torch.float64)
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 2.7), layout="constrained")
    for axis, moved, fixed in zip(axes, ("positive", "negative"), (0.0, 0.5)):
        values, slopes = curve(page, cosines, moved, fixed)
        other = "negative" if moved == "positive" else "positive"
        axis.plot(cosines, values, color=BLUE, label="loss")
        axis.plot(cosines, slopes, color=ORANGE, linestyle="--", label="slope")
        axis.axhline(0, color="#888888", linewidth=0.6)
        axis.set_xlabel(f"cosine of the {moved} (the {other}'s: {fixed:g})")
    axes[0].legend(frameon=False)
    with io.StringIO() as text:
        plt.rcParams["svg.hashsalt"] = page.module
        figure.savefig(text, format="svg", metadata={"Date": None})
        plt.close(figure)
        return text.getvalue()


def measured(page: Page) -> str:
    """The row of the measured times at n = 1024, where there is one."""
    name = {"triplet_margin_loss": "hard_triplet"}.get(page.function, page.function.removesuffix("_loss"))
    for file in ("cpu-amd-epyc-2-threads", "cpu-amd-epyc-2-threads-growth"):
        results = json.loads((RESULTS / f"{file}.json").read_text())
        for row in results["results"]:
            if row["name"] == name and row["sizes"].get("n") == 1024 and row["sizes"].get("d") == 512:
                times = row["milliseconds"]
                others = ", ".join(f"{key} {times[key]:.3g}" for key in ("eager", "compile") if key in times)
                sizes = ", ".join(f"{key} = {value}" for key, value in row["sizes"].items())
                return (
                    f"Measured on two threads ({sizes}): {times['fastpair']:.3g} ms, PyTorch {others} ms "
                    f"([results](../benchmarks/results/{file}.md))."
                )
    return ""


def write(page: Page) -> str:
    of = definition(page)
    source = of.source if of else page.source
    lines = [f"# {page.title}", "", f"$$\n{page.formula}\n$$", ""]
    if page.family in (PAIRS, TRIPLETS):
        lines += [
            "The loss of an anchor with the positives $\\mathcal{P}$ and the negatives "
            "$\\mathcal{N}$; $s$ is the closeness of "
            "a pair, a cosine by default or $-d$ for a distance $d$.",
            "",
        ]
    lines += [page.when, "", page.note, ""] if page.note else [page.when, ""]
    if page.of is not None:
        lines += [
            f"![Loss and slope of {page.module} against the score]({page.module}.svg)",
            "",
            "One positive and one negative, the default settings; the slope is the derivative that "
            "the package returns.",
            "",
        ]
    lines += ["## Cost", "", COSTS[page.family], measured(page), ""]
    lines += ["## Settings", ""]
    if of and hasattr(of, "arguments"):
        lines += [f"`{of.module}({', '.join(settings(of))})`", "", f'`reduction="mean"` is the mean {of.mean}.', ""]
    lines += [
        f"[`fastpair.losses.{page.module}`][fastpair.losses.{page.module}] and "
        f"[`fastpair.functional.{page.function}`][fastpair.functional.{page.function}] have the arguments and errors.",
        "",
    ]
    if source:
        lines += [f"Source: {source}.", ""]
    return "\n".join(lines)


def index() -> str:
    lines = [
        "# The losses",
        "",
        "Each page has the formula, when to choose the loss, its cost, and a picture of loss and slope.",
    ]
    for family in COSTS:
        lines += ["", f"## {family}", ""]
        lines += [f"- [{page.title}]({page.module}.md), `{page.module}`" for page in PAGES if page.family == family]
    lines += [
        "",
        "[Settings and calls](../losses.md) has what they share: which pairs there are, temperatures "
        "that learn, losses "
        "of your own.",
        "",
    ]
    return "\n".join(lines)

"""The losses as functions. Every tensor argument may be float32, float64, bfloat16 or float16, of any strides.

Sums are kept in float32 (float64 for float64 inputs) and losses are returned in that dtype. An empty batch, or one
without the pairs that a loss is made of, has loss zero and zero gradients. Losses can be differentiated once. Arguments
of a wrong type raise TypeError, of a wrong shape or value ValueError.

NaN and infinity reach the anchors and references that meet them, and no others: what is finite in dense PyTorch is
finite here, with the same value. What is NaN there because of a NaN is NaN here; where it is the difference of two
infinities, a loss may be its limit, and a gradient may meet less than a matrix product does, in which NaN times zero is
NaN.

Tensors are dense (``torch.strided``) and whole: no sparse, nested or mkldnn tensors, no DTensor. ``torch.compile`` and
``torch.export`` take every loss but those of listed pairs; the transforms of ``torch.func`` (grad, vmap, jacrev) take
``backend="reference"``.

``backend`` overrides the kernel that is chosen for the tensors' device: see :func:`fastpair.use_backend`.

The pair losses share these arguments. P_i are the references of anchor i's class, its positives, N_i the others:

    embeddings: anchors (n, d).
    labels: integers (n,). May be None where ``indices_tuple`` is given.
    ref_emb, ref_labels: references (m, d) and (m,), of the embeddings' dtype. Default: the anchors themselves.
    distance: the score of a pair, a metric of :func:`pairwise_distance`.
    reduction: "mean", the loss's own; "sum": sum_i l_i; "none": l_i, shape (n,); "totals": what the mean is made of, to
        be added up over parts of a batch: (S, c, S_neg, c_neg) with mean = S / max(c, 1) + S_neg / max(c_neg, 1). The
        last two are of the negatives where these have a mean of their own, and 0 elsewhere; counts have no gradient.
    indices_tuple: the pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative), integer
        tensors of row numbers as miners make them, to take in place of those that the labels make. A pair that is
        listed twice counts once, but twice in :func:`contrastive_loss` and :func:`ntxent_loss`. The loss is then plain
        PyTorch on the listed scores, whose memory grows with the list.
    exclude_self: which pairs are no pairs because both sides are one sample. None: the pairs (i, i), when and only
        when ``ref_emb`` is None or ``embeddings`` itself. True: the first n references are the anchors. False: none.
        A tensor (n,): the row of ``ref_emb`` that each anchor is, -1 for none.
"""

from __future__ import annotations

import math

from torch import Tensor

from fastpair import ops
from fastpair.formulas.pair_losses import DEFINITIONS
from fastpair.ops import checks

__all__ = [
    "arcface_loss",
    "center_loss",
    "circle_loss",
    "contrastive_loss",
    "cosface_loss",
    "generalized_lifted_structure_loss",
    "info_nce_loss",
    "linear_cross_entropy",
    "multi_similarity_loss",
    "nca_loss",
    "normalized_softmax_loss",
    "ntxent_loss",
    "pairwise_distance",
    "pce_loss",
    "proxy_anchor_loss",
    "proxy_nca_loss",
    "siglip_loss",
    "snca_loss",
    "spce_loss",
    "supcon_loss",
    "triplet_margin_loss",
]


def pairwise_distance(
    x: Tensor, y: Tensor | None = None, metric: str = "sqeuclidean", *, backend: str | None = None
) -> Tensor:
    r"""Scores of all pairs of rows of ``x`` (n, d) and ``y`` (m, d; default: ``x``), as a matrix (n, m).

    ================== ======================== ==================================================
    metric             s_ij                     at the edge
    ================== ======================== ==================================================
    "sqeuclidean"      |x_i - y_j|^2            never below 0
    "euclidean"        |x_i - y_j|              gradient 0 where the distance is 0 (see below)
    "unit_sqeuclidean" the same of x_i / |x_i|  a zero row stays zero and has gradient 0
    "unit_euclidean"   and y_j / |y_j|
    "cosine"           x_i.y_j / (|x_i| |y_j|)  a zero row has cosine 0 and gradient 0
    "dot"              x_i.y_j
    ================== ======================== ==================================================

    Returns the dtype of ``x``, with gradients to both sides. ``y`` must share the dtype, device and d of ``x``.

    Distances that are small beside the norms are computed from the differences of the rows. The kernels' *gradient* of
    "euclidean", and of losses on it, is a sum of rows over distances: what close pairs add to it has a relative error
    of about eps |x| / distance, eps being 1e-7 in float32.
    """
    return ops.pairwise_distance(x, y, metric, backend)


# ---- pair losses


def contrastive_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    pos_margin: float = 0.0,
    neg_margin: float = 1.0,
    distance: str = "unit_euclidean",
    power: int = 1,
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Contrastive loss over all pairs.

        l_i = sum_{j in P_i} [d_ij - pos_margin]_+^power + sum_{j in N_i} [neg_margin - d_ij]_+^power

    and for a similarity s_ij ("cosine", "dot") with the signs flipped: [pos_margin - s]_+ and [s - neg_margin]_+, so
    that ``pos_margin=1, neg_margin=0`` is the usual choice.

    Args:
        pos_margin, neg_margin: in units of the distance; not negative for a distance.
        power: 1 or 2.
        reduction: "mean": for ``power=1`` the average of the positive terms that are not zero plus that of the negative
            terms that are not zero (the convention of pytorch-metric-learning), for ``power=2`` (1/n) sum_i l_i (with
            ``pos_margin=0`` and "euclidean" the form of the paper).

    Source: Hadsell et al., CVPR 2006; Boudiaf et al., ECCV 2020 (arXiv 2003.08983), Table 1.
    """
    checks.contrastive_settings(pos_margin, neg_margin, distance, power)
    loss = "contrastive" if power == 1 else "squared_contrastive"
    params = _params("contrastive", distance, pos_margin=pos_margin, neg_margin=neg_margin)
    return _pair_loss(
        loss, params, embeddings, labels, ref_emb, ref_labels, distance, reduction, indices_tuple, exclude_self, backend
    )


def snca_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    temperature: float = 0.1,
    distance: str = "cosine",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Scalable neighbourhood component analysis.

        l_i = log sum_{j in P_i or N_i} exp(s_ij / temperature) - log sum_{j in P_i} exp(s_ij / temperature)

    with s = -d for a distance d.

    Args:
        temperature: the paper's sigma, positive.
        reduction: "mean" over the anchors that have positives.

    Source: Wu et al., ECCV 2018 (arXiv 1808.04699); Boudiaf et al., ECCV 2020 (arXiv 2003.08983), Table 1.
    """
    checks.positive("temperature", temperature)
    params = [1 / temperature]
    return _pair_loss(
        "snca",
        params,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        distance,
        reduction,
        indices_tuple,
        exclude_self,
        backend,
    )


def nca_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    softmax_scale: float = 1.0,
    distance: str = "unit_sqeuclidean",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Neighbourhood components analysis: :func:`snca_loss` of squared distances, at temperature 1 / ``softmax_scale``.

        l_i = -log sum_{j in P_i} p_ij
        p_ij = exp(-softmax_scale d_ij) / sum_{k in P_i or N_i} exp(-softmax_scale d_ik)

    with -d = s for a similarity s. Computed from logarithms of sums: pytorch-metric-learning, whose probabilities
    underflow, leaves far anchors out and is NaN where all are far.

    Args:
        softmax_scale: positive.
        reduction: "mean" over the anchors that have positives.

    Source: Goldberger et al., NeurIPS 2004, in the form of Boudiaf et al., ECCV 2020 (arXiv 2003.08983).
    """
    checks.positive("softmax_scale", softmax_scale)
    params = [float(softmax_scale)]
    return _pair_loss(
        "snca",
        params,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        distance,
        reduction,
        indices_tuple,
        exclude_self,
        backend,
    )


def supcon_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    temperature: float = 0.1,
    distance: str = "cosine",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Supervised contrastive loss.

        l_i = log sum_{j in P_i or N_i} exp(s_ij / temperature) - (1/|P_i|) sum_{j in P_i} s_ij / temperature

    with s = -d for a distance d.

    Args:
        temperature: positive.
        reduction: "mean" over the anchors that have positives, also where the batch has no negatives (for
            pytorch-metric-learning such a batch has loss 0).

    Source: Khosla et al., NeurIPS 2020 (arXiv 2004.11362), eq. 2.
    """
    checks.positive("temperature", temperature)
    params = [1 / temperature]
    return _pair_loss(
        "supcon",
        params,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        distance,
        reduction,
        indices_tuple,
        exclude_self,
        backend,
    )


def ntxent_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    temperature: float = 0.07,
    distance: str = "cosine",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Normalised temperature-scaled cross-entropy, each positive against the anchor's negatives.

        l_i = sum_{p in P_i} log( 1 + sum_{k in N_i} exp((s_ik - s_ip) / temperature) )

    with s = -d for a distance d. Computed from logarithms of sums: pytorch-metric-learning's probabilities underflow
    for small temperatures, and its loss stops at 87.

    Args:
        temperature: positive.
        reduction: "mean" over the positive pairs.

    Source: Sohn, NeurIPS 2016; Chen et al., ICML 2020 (arXiv 2002.05709); with several positives the form of SINCERE,
    Feeney and Hughes (arXiv 2309.14277).
    """
    checks.positive("temperature", temperature)
    params = [1 / temperature]
    return _pair_loss(
        "ntxent",
        params,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        distance,
        reduction,
        indices_tuple,
        exclude_self,
        backend,
    )


def multi_similarity_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    distance: str = "cosine",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Multi-similarity loss.

        l_i = (1/alpha) log(1 + sum_{j in P_i} exp(-alpha (s_ij - base)))
            + (1/beta) log(1 + sum_{j in N_i} exp(beta (s_ij - base)))

    and for a distance with the signs flipped.

    Args:
        alpha, beta: weights of the positives and of the negatives, positive.
        base: the similarity, or distance, at which a pair is neither.
        reduction: "mean" over all anchors, those without pairs included.

    Source: Wang et al., CVPR 2019 (arXiv 1904.06627), eq. 16; its pair mining is left to the user.
    """
    checks.positive("alpha", alpha)
    checks.positive("beta", beta)
    checks.finite("base", base)
    params = _params("multi_similarity", distance, alpha=alpha, beta=beta, base=base)
    return _pair_loss(
        "multi_similarity",
        params,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        distance,
        reduction,
        indices_tuple,
        exclude_self,
        backend,
    )


def circle_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    m: float = 0.4,
    gamma: float = 80.0,
    distance: str = "cosine",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Circle loss with pairwise labels.

        l_i = log( 1 + sum_{j in P_i} exp(-gamma [1 + m - s_ij]_+ (s_ij - 1 + m))
                       sum_{k in N_i} exp(gamma [s_ik + m]_+ (s_ik - m)) )

    where the weights [.]_+ are constants of the gradient.

    Args:
        m: the margin.
        gamma: the scale, positive.
        distance: "cosine" or "dot".
        reduction: "mean" over the anchors that have positives and negatives; the others have loss 0.

    Source: Sun et al., CVPR 2020 (arXiv 2002.10857), eq. 6 and 8.
    """
    checks.finite("m", m)
    checks.positive("gamma", gamma)
    checks.one_of("distance", distance, checks.SIMILARITIES)
    params = _params("circle", distance, m=m, gamma=gamma)
    return _pair_loss(
        "circle",
        params,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        distance,
        reduction,
        indices_tuple,
        exclude_self,
        backend,
    )


def generalized_lifted_structure_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    neg_margin: float = 1.0,
    pos_margin: float = 0.0,
    distance: str = "unit_euclidean",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Lifted structure loss over all positives and negatives of an anchor.

        l_i = [ log sum_{j in P_i} exp(d_ij - pos_margin) + log sum_{k in N_i} exp(neg_margin - d_ik) ]_+

    and for a similarity with the signs flipped.

    Args:
        neg_margin, pos_margin: in units of the distance.
        reduction: "mean" over the anchors that have positives and negatives; the others have loss 0
            (pytorch-metric-learning drops the missing sum from the formula instead).

    Source: Hermans et al., 2017 (arXiv 1703.07737), eq. 8, after Song et al., CVPR 2016.
    """
    checks.finite("neg_margin", neg_margin)
    checks.finite("pos_margin", pos_margin)
    params = _params("generalized_lifted_structure", distance, pos_margin=pos_margin, neg_margin=neg_margin)
    return _pair_loss(
        "lifted_structure",
        params,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        distance,
        reduction,
        indices_tuple,
        exclude_self,
        backend,
    )


def triplet_margin_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    margin: float = 0.05,
    swap: bool = False,
    smooth_loss: bool = False,
    triplets_per_anchor: str = "all",
    distance: str = "unit_euclidean",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Triplet margin loss.

        l_i = sum over triplets (i, p in P_i, n in N_i) of [d_ip - d_in + margin]_+

    with d = -s for a similarity s.

    Args:
        margin: in units of the distance.
        swap: the smaller of d_in and d_pn in place of d_in. For triplets that are given by ``indices_tuple`` only.
        smooth_loss: log(1 + exp(x)) in place of [x]_+.
        triplets_per_anchor: which triplets count. "all": every one, summed up in O(n log n) time an anchor.
            "semihard": those with d_ip < d_in < d_ip + margin. "hard": one an anchor, its farthest positive with its
            nearest negative (of equal ones any, for the gradient). Ignored where ``indices_tuple`` says which.
        reduction: "mean" over the triplets whose loss is not zero.

    Source: Schroff et al., CVPR 2015 (arXiv 1503.03832), eq. 2 ("all", "semihard"); Hermans et al., 2017
    (arXiv 1703.07737), eq. 5 ("hard").
    """
    checks.finite("margin", margin)
    checks.one_of("triplets_per_anchor", triplets_per_anchor, TRIPLETS)
    if swap and indices_tuple is None:
        raise ValueError("swap must be False without indices_tuple, which says what triplets to swap in; got True")
    loss = ("smooth_" if smooth_loss else "") + TRIPLETS[triplets_per_anchor]
    return _pair_loss(
        loss,
        [float(margin)],
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        distance,
        reduction,
        indices_tuple,
        exclude_self,
        backend,
        swap=swap,
    )


TRIPLETS = {"all": "triplet", "semihard": "semihard_triplet", "hard": "hard_triplet"}


def _params(name: str, distance: str, **settings: float) -> list[float]:
    return DEFINITIONS[name].params(settings, distance in checks.SIMILARITIES)


def _pair_loss(
    loss: str,
    params: list[float],
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    distance: str,
    reduction: str,
    indices_tuple: tuple[Tensor, ...] | None,
    exclude_self: bool | Tensor | None,
    backend: str | None,
    **mined_settings,
) -> Tensor:
    settings = {"distance": distance, "reduction": reduction, "backend": backend}
    if indices_tuple is not None:
        checks.unused_by_lists(embeddings, labels, ref_emb, ref_labels, exclude_self)
        return ops.mined_pair_loss(loss, params, embeddings, ref_emb, indices_tuple, **settings, **mined_settings)
    return ops.pair_loss(loss, params, embeddings, labels, ref_emb, ref_labels, exclude_self=exclude_self, **settings)


# ---- two views of the same samples: row i of one belongs to row i of the other


def info_nce_loss(
    embeddings: Tensor,
    ref_emb: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    symmetric: bool = True,
    distance: str = "cosine",
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""InfoNCE of two views: each row of one against all rows of the other.

        r_i = log sum_j exp(s_ij / temperature) - s_ii / temperature      (rows)
        c_j = log sum_i exp(s_ij / temperature) - s_jj / temperature      (columns)
        l_i = (r_i + c_i) / 2, the loss of CLIP, or r_i where not ``symmetric``

    with s = -d for a distance d. The mutual information of the views is at least log n - mean r_i.

    Args:
        embeddings: (n, d), one view.
        ref_emb: (n, d), the other view; rows beyond n, negatives of all, are allowed where not ``symmetric``.
        temperature: positive. A tensor of one element, which may require a gradient, needs "cosine" or "dot".
        symmetric: whether both views are anchors.
        distance: as for the pair losses.
        reduction: "mean", "sum", "none": (n,), or, where not ``symmetric``, "totals" as for the pair losses.

    Source: van den Oord et al., 2018 (arXiv 1807.03748), eq. 4; Radford et al., ICML 2021 (arXiv 2103.00020).
    """
    return ops.info_nce(embeddings, ref_emb, temperature, symmetric, distance, reduction, backend)


def siglip_loss(
    embeddings: Tensor,
    ref_emb: Tensor,
    scale: float | Tensor = 10.0,
    bias: float | Tensor = -10.0,
    *,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Sigmoid loss of two views: every pair for itself, no softmax.

        l_i = log(1 + exp(-(scale s_ii + bias))) + sum_{j != i} log(1 + exp(scale s_ij + bias)),   s the cosine

    Args:
        embeddings: (n, d), one view.
        ref_emb: (m, d), m >= n, the other view; rows beyond n are negatives of all.
        scale, bias: numbers or tensors of one element, which may require a gradient.
        reduction: "mean", "sum", "none": (n,), or "totals" as for the pair losses.

    Source: Zhai et al., ICCV 2023 (arXiv 2303.15343), eq. 1 and algorithm 1.
    """
    return ops.siglip(embeddings, ref_emb, scale, bias, reduction, backend)


# ---- classes


def linear_cross_entropy(
    embeddings: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Cross-entropy of a linear classifier, without the (n, K) logits in memory.

        l_i = -sum_k q_ik log p_ik,   p_i = softmax(weight @ z_i + bias),
        q_ik = (1 - label_smoothing) [k = y_i] + label_smoothing / K

    the same as ``F.cross_entropy(F.linear(embeddings, weight, bias), labels, ...)``.

    Args:
        embeddings: z (n, d).
        weight: class weights (K, d), of the embeddings' dtype unless autocast is on, K >= 1.
        labels: integers (n,) in [0, K), or ``ignore_index``. Another label raises ValueError on the CPU; on a GPU,
            where a look at it would wait for the device, it makes the loss NaN.
        bias: (K,) or None.
        label_smoothing: in [0, 1].
        ignore_index: rows with this label have loss 0, no gradient, and do not count in the mean.
        reduction: "mean" over the rows that count (0 where there is none, unlike the NaN of ``F.cross_entropy``),
            "sum" or "none".

    Source: Boudiaf et al., ECCV 2020 (arXiv 2003.08983), eq. for L_CE.
    """
    checks.integer("ignore_index", ignore_index)
    return ops.linear_cross_entropy(embeddings, weight, labels, bias, label_smoothing, ignore_index, reduction, backend)


def normalized_softmax_loss(
    embeddings: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.05,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Cross-entropy of cosines: logits cos(z_i, w_k) / temperature.

    Args:
        embeddings: z (n, d).
        weight: class weights w (K, d), of the embeddings' dtype unless autocast is on.
        labels: integers (n,) in [0, K), none of which is ignored; others as for :func:`linear_cross_entropy`.
        temperature: positive.
        reduction: "mean", "sum" or "none".

    Source: Zhai and Wu, BMVC 2019 (arXiv 1811.12649), eq. 3.
    """
    checks.positive("temperature", temperature)
    return _cosine_cross_entropy(embeddings, weight, labels, "cosface", 1 / temperature, 0.0, reduction, backend)


def cosface_loss(
    embeddings: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.35,
    scale: float = 64.0,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Cross-entropy of cosines with a margin: logits scale (cos(z_i, w_k) - margin [k = y_i]).

    Args:
        embeddings, weight, labels, reduction: as for :func:`normalized_softmax_loss`.
        margin: of the cosine.
        scale: positive.

    Source: Wang et al., CVPR 2018 (arXiv 1801.09414), eq. 4.
    """
    checks.finite("margin", margin)
    checks.positive("scale", scale)
    return _cosine_cross_entropy(embeddings, weight, labels, "cosface", scale, margin, reduction, backend)


def arcface_loss(
    embeddings: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    margin: float = 28.6,
    scale: float = 64.0,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Cross-entropy of cosines with a margin of the angle: logits scale cos(theta_ik + margin [k = y_i]).

    Where theta + margin is beyond 180 degrees the target's logit is scale (cos theta - m sin m), m being the margin in
    radians, so that it keeps falling with the angle. The gradient is finite at cos theta = 1 too, where
    pytorch-metric-learning's is NaN: within 0.06 degrees of it sin theta is replaced by a straight line.

    Args:
        embeddings, weight, labels, reduction: as for :func:`normalized_softmax_loss`.
        margin: in degrees, at least 0 and below 180.
        scale: positive.

    Source: Deng et al., CVPR 2019 (arXiv 1801.07698), eq. 3.
    """
    checks.number("margin", margin)
    if not 0 <= margin < 180:
        raise ValueError(f"margin must be at least 0 and below 180 degrees, got {margin}")
    checks.positive("scale", scale)
    radians = margin * math.pi / 180
    return _cosine_cross_entropy(embeddings, weight, labels, "arcface", scale, radians, reduction, backend)


def proxy_nca_loss(
    embeddings: Tensor,
    proxies: Tensor,
    labels: Tensor,
    *,
    softmax_scale: float = 1.0,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Neighbourhood components analysis with one proxy a class.

        l_i = -log( exp(-softmax_scale d_{i y_i}) / sum_k exp(-softmax_scale d_ik) ),  d_ik = |z_i/|z_i| - p_k/|p_k||^2

    With d = 2 - 2 cos it is the cross-entropy of cosines at scale 2 ``softmax_scale``. As in pytorch-metric-learning,
    and unlike the paper, a sample's own proxy is in the denominator.

    Args:
        embeddings, labels, reduction: as for :func:`normalized_softmax_loss`.
        proxies: p (K, d).
        softmax_scale: positive.

    Source: Movshovitz-Attias et al., ICCV 2017 (arXiv 1703.07464), eq. 4.
    """
    checks.positive("softmax_scale", softmax_scale)
    scale = 2.0 * softmax_scale
    return _cosine_cross_entropy(embeddings, proxies, labels, "cosface", scale, 0.0, reduction, backend, "proxies")


def _cosine_cross_entropy(
    embeddings, weight, labels, logits, scale, margin, reduction, backend, weight_name="weight"
) -> Tensor:
    return ops.linear_cross_entropy(
        embeddings,
        weight,
        labels,
        None,
        0.0,
        None,
        reduction,
        backend,
        logits=logits,
        scale=float(scale),
        margin=float(margin),
        weight_name=weight_name,
    )


def center_loss(
    embeddings: Tensor, labels: Tensor, centers: Tensor, *, reduction: str = "mean", backend: str | None = None
) -> Tensor:
    r"""Center loss: l_i = 1/2 |z_i - c_{y_i}|^2, O(nd), plain PyTorch.

    Args:
        embeddings: z (n, d).
        labels: integers (n,) in [0, K).
        centers: c (K, d), of any floating dtype.
        reduction: "mean", "sum" or "none".

    Source: Wen et al., ECCV 2016, eq. 2; Boudiaf et al., ECCV 2020 (arXiv 2003.08983), Table 1.
    """
    checks.embeddings_and_labels(embeddings, labels)
    checks.matrix("centers", centers, "d")
    checks.same_columns("centers", centers, "embeddings", embeddings)
    checks.class_range(labels, len(centers))
    checks.one_of("reduction", reduction, checks.REDUCTIONS)
    return ops.center(embeddings, labels, centers, reduction, backend)


def proxy_anchor_loss(
    embeddings: Tensor,
    proxies: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.1,
    alpha: float = 32.0,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Proxy-anchor loss: a pair loss whose anchors are the proxies of the classes.

        l_k = log(1 + sum_{i: y_i = k} exp(-alpha (s_ik - margin)))
            + log(1 + sum_{i: y_i != k} exp(alpha (s_ik + margin)))

    with s_ik the cosine of embedding i and proxy k.

    Args:
        embeddings: (n, d).
        proxies: (K, d), of the embeddings' dtype unless autocast is on.
        labels: integers (n,) in [0, K).
        margin: of the cosine.
        alpha: positive.
        reduction: "mean": the first part averaged over the proxies with samples in the batch, the second over all K;
            "sum"; "none": (K,); "totals" as for the pair losses.

    Source: Kim et al., CVPR 2020 (arXiv 2003.13911), eq. 4.
    """
    checks.finite("margin", margin)
    checks.positive("alpha", alpha)
    return ops.proxy_anchor(embeddings, proxies, labels, float(margin), float(alpha), reduction, backend)


# ---- pairwise bounds on cross-entropy


def spce_loss(embeddings: Tensor, labels: Tensor, *, reduction: str = "mean", backend: str | None = None) -> Tensor:
    r"""Simplified pairwise cross-entropy: cross-entropy whose class weights are made from the batch, O(n K d).

        l_i = -(1/n) sum_{j: y_j = y_i} z_i.z_j + log sum_k exp( (1/n) sum_{j: y_j = k} z_i.z_j )

    with k over the classes in the batch, and self-pairs counted. It equals the cross-entropy with the class weights
    theta_k = (1/n) sum_{y_i = k} z_i.

    Args:
        embeddings: z (n, d).
        labels: integers (n,), any values.
        reduction: "mean" (the paper's loss), "sum" or "none".

    Source: Boudiaf et al., ECCV 2020 (arXiv 2003.08983), SPCE.
    """
    return ops.spce(embeddings, labels, reduction, backend)


def pce_loss(
    embeddings: Tensor,
    labels: Tensor,
    probabilities: Tensor,
    *,
    lam: float | None = None,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Pairwise cross-entropy: the upper bound's pairwise twin of cross-entropy, O(n K d).

        PCE = -(1/(2 lam n^2)) sum_i sum_{j: y_j = y_i} z_i.z_j
              + (1/n) sum_i log sum_k exp( (1/(lam n)) sum_j p_jk z_i.z_j ) - (1/(2 lam)) sum_k |c_k|^2

    with the soft class means c_k = (1/n) sum_i p_ik z_i; self-pairs count.

    Args:
        embeddings: z (n, d).
        labels: integers (n,), any values.
        probabilities: p (n, K), a classifier's softmax; a constant of the gradient.
        lam: lambda > 0, a constant of the gradient. Default: the smallest eigenvalue over all k of
            A_k = (1/n) sum_i (p_ik - p_ik^2) z_i z_i^T. It costs O(K d^2 (n + d)) and waits for the device.
            Where it is not positive, as it must be with n <= d, the bound is empty: ValueError.
        reduction: "mean" (the paper's loss), "sum" (n times the mean) or "none": (n,), the last term in equal shares.

    Source: Boudiaf et al., ECCV 2020 (arXiv 2003.08983), PCE.
    """
    return ops.pce(embeddings, labels, probabilities, lam, reduction, backend)

"""The losses as functions. Every tensor argument may be float32, float64, bfloat16 or float16, of any strides.

Sums are kept in float32 (float64 for float64 inputs) and losses are returned in that dtype. An empty batch, or one
without the pairs that a loss is made of, has loss zero and zero gradients; NaN and infinity propagate. Losses can be
differentiated once. Arguments of a wrong type raise TypeError, of a wrong shape or value ValueError.

``backend`` overrides the kernel that is chosen for the tensors' device: see :func:`fastpair.use_backend`.
"""

from __future__ import annotations

from torch import Tensor

from fastpair import ops
from fastpair.ops import checks

__all__ = ["contrastive_loss", "linear_cross_entropy", "pairwise_distance", "pce_loss", "spce_loss"]


def pairwise_distance(
    x: Tensor, y: Tensor | None = None, metric: str = "sqeuclidean", *, backend: str | None = None
) -> Tensor:
    r"""Scores of all pairs of rows of ``x`` (n, d) and ``y`` (m, d; default: ``x``), as a matrix (n, m).

    ============== ==================================== =========================================
    metric         s_ij                                 at the edge
    ============== ==================================== =========================================
    "sqeuclidean"  |x_i - y_j|^2                        never below 0
    "euclidean"    |x_i - y_j|                          gradient 0 where the distance is 0 (see below)
    "cosine"       x_i.y_j / (|x_i| |y_j|)              a zero row has cosine 0 and gradient 0
    "dot"          x_i.y_j
    ============== ==================================== =========================================

    Returns the dtype of ``x``, with gradients to both sides. ``y`` must share the dtype, device and d of ``x``.

    Distances that are small beside the norms are computed from the differences of the rows. The kernels' *gradient* of
    "euclidean", and of losses on it, is a sum of rows over distances: what close pairs add to it has a relative error
    of about eps |x| / distance, eps being 1e-7 in float32.
    """
    return ops.pairwise_distance(x, y, metric, backend)


def contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    pos_margin: float = 0.0,
    neg_margin: float = 1.0,
    distance: str = "euclidean",
    power: int = 1,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Contrastive loss over all pairs.

    With d_ij the distance of anchor i and reference j, P_i and N_i its references of the same and of other classes:

        l_i = sum_{j in P_i} [d_ij - pos_margin]_+^power + sum_{j in N_i} [neg_margin - d_ij]_+^power

    and for a similarity s_ij ("cosine", "dot") with the signs flipped: [pos_margin - s]_+ and [s - neg_margin]_+, so
    that ``pos_margin=1, neg_margin=0`` is the usual choice.

    Args:
        embeddings: anchors (n, d). They are used as they are; normalise them first, or take "cosine", where wanted.
        labels: integers (n,).
        ref_emb, ref_labels: references (m, d) and (m,). Default: the anchors themselves, less the pairs (i, i).
        pos_margin, neg_margin: in units of the distance; not negative for a distance.
        distance: "euclidean", "sqeuclidean", "cosine" or "dot", as in :func:`pairwise_distance`.
        power: 1 or 2.
        reduction: "mean": for ``power=1`` the average of the positive terms that are not zero plus that of the negative
            terms that are not zero (the convention of pytorch-metric-learning), for ``power=2`` (1/n) sum_i l_i (with
            ``pos_margin=0`` the form of the paper); "sum": sum_i l_i; "none": l_i, shape (n,).

    Source: Hadsell et al., CVPR 2006; Boudiaf et al., ECCV 2020 (arXiv 2003.08983), Table 1.
    """
    checks.contrastive_settings(pos_margin, neg_margin, distance, power)
    loss = "contrastive" if power == 1 else "squared_contrastive"
    params = [float(pos_margin), float(neg_margin)]
    return ops.pair_loss(embeddings, labels, ref_emb, ref_labels, loss, params, distance, reduction, backend)


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
        labels: integers (n,) in [0, K), or ``ignore_index``. On the CPU a label out of range raises RuntimeError.
        bias: (K,) or None.
        label_smoothing: in [0, 1].
        ignore_index: rows with this label have loss 0, no gradient, and do not count in the mean.
        reduction: "mean" over the rows that count (0 where there is none, unlike the NaN of ``F.cross_entropy``),
            "sum" or "none".

    Source: Boudiaf et al., ECCV 2020 (arXiv 2003.08983), eq. for L_CE.
    """
    return ops.linear_cross_entropy(embeddings, weight, labels, bias, label_smoothing, ignore_index, reduction, backend)


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

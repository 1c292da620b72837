"""The losses over the pairs that labels make, over triplets, and on one vector per class, as functions. Made by
``python -m fastpair.formulas`` from the definitions in fastpair/formulas: not to be edited."""

from __future__ import annotations

from torch import Tensor, nn

from fastpair.losses.classes import class_loss
from fastpair.losses.pair import pair_loss

__all__ = [
    "arcface_loss",
    "center_loss",
    "circle_loss",
    "contrastive_loss",
    "cosface_loss",
    "dcl_loss",
    "generalized_lifted_structure_loss",
    "multi_similarity_loss",
    "nca_loss",
    "normalized_softmax_loss",
    "ntxent_loss",
    "proxy_anchor_loss",
    "proxy_nca_loss",
    "sincere_loss",
    "snca_loss",
    "supcon_loss",
    "triplet_margin_loss",
]


def contrastive_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    pos_margin: float = 0.0,
    neg_margin: float = 1.0,
    distance: str | nn.Module = "unit_euclidean",
    power: int = 1,
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    pairs: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    weights: Tensor | None = None,
    ref_bias: Tensor | None = None,
    ignore_above: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Contrastive loss over all pairs.

        Σ_P [d − m₊]₊ᵖ + Σ_N [m₋ − d]₊ᵖ

    P are the anchor's positives among the references, N its negatives; s is the closeness of a pair, a similarity
    or −d for a distance d.

    For a similarity s the signs are flipped, [m₊ − s]₊ and [s − m₋]₊, so that pos_margin 1 and neg_margin 0 are the
    usual choice.

    Args:
        embeddings: anchors (n, d), float32, float64, bfloat16 or float16.
        labels: integers (n,), or sets of labels, boolean (n, L): a pair is positive where both have the same label,
            or have one in common. May be None where ``indices_tuple`` is given.
        ref_emb, ref_labels: references (m, d), of the embeddings' dtype, and their labels. Default: the anchors
            themselves.
        pos_margin: m₊, in units of the distance, for which it is not negative.
        neg_margin: m₋, in units of the distance, for which it is not negative.
        distance: the score of a pair, a metric of :func:`fastpair.functional.pairwise_distance`, or the object of
            pytorch-metric-learning that is the same.
        power: p, 1 or 2.
        reduction: "mean": for power 1 the average of the positive terms that are not zero plus that of the negative
            terms that are not zero (the convention of pytorch-metric-learning), for power 2 over all anchors (with
            pos_margin 0 and "euclidean" the form of the paper); "sum": the sum of the anchors' losses; "none": the
            losses, shape (n,); "totals": what the mean is made of, which adds up over parts of a batch: (S, c,
            S_neg, c_neg) with mean = S / c + S_neg / c_neg, a part being 0 where its c is. The last two belong to
            the negatives where these have a mean of their own, else they are 0; counts have no gradient.
        indices_tuple: the pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative),
            integer tensors of row numbers as miners make them, used in place of those that the labels make. A pair
            that is listed twice counts once, but twice in contrastive_loss and ntxent_loss. On a CPU a kernel
            gathers the listed rows; elsewhere the loss is then plain PyTorch on the listed scores.
        exclude_self: which pairs are left out because both sides are one sample. None: the pairs (i, i), when and
            only when ``ref_emb`` is None or ``embeddings`` itself. True: the first n references are the anchors.
            False: none. A tensor (n,): the row of ``ref_emb`` that each anchor is, -1 for none.
        pairs: in place of labels, integers (n, m): 1 for a positive pair, -1 for a negative one, 0 for none.
        ids, ref_ids: integers (n,) and (m,), false-negative masking: samples with equal ids, as duplicates have,
            are no pair. ``ref_ids`` goes with ``ref_emb``.
        weights: floating (n,), not negative: the anchors' losses and counts are multiplied by them, so that the
            mean is a weighted one. Constants of the gradient.
        ref_bias: floating (m,), or (n,) without references: added to the terms of negatives, of losses that sum
            their exponentials, as the correction −log q of sampled softmax is (Yi et al., RecSys 2019). Constants
            of the gradient.
        ignore_above: a negative whose closeness is above that of the anchor's closest positive plus this number, in
            units of the score, is no pair: it may be a positive without the label (as in Qwen3-Embedding, arXiv
            2506.05176, and GISTEmbed, arXiv 2402.16829, with the model itself as the guide). For the same losses.
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.

    Source: Hadsell et al., CVPR 2006; Boudiaf et al., ECCV 2020 (arXiv 2003.08983), Table 1.
    """
    settings = {
        "pos_margin": pos_margin,
        "neg_margin": neg_margin,
        "distance": distance,
        "power": power,
        "reduction": reduction,
    }
    return pair_loss(
        "contrastive",
        settings,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        indices_tuple,
        exclude_self,
        pairs,
        ids,
        ref_ids,
        weights,
        ref_bias,
        ignore_above,
        backend,
    )


def snca_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.1,
    distance: str | nn.Module = "cosine",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    pairs: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    weights: Tensor | None = None,
    ref_bias: Tensor | None = None,
    ignore_above: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Scalable neighbourhood component analysis.

        log Σ_{P∪N} exp(s/τ) − log Σ_P exp(s/τ)

    P are the anchor's positives among the references, N its negatives; s is the closeness of a pair, a similarity
    or −d for a distance d.

    Args:
        embeddings: anchors (n, d), float32, float64, bfloat16 or float16.
        labels: integers (n,), or sets of labels, boolean (n, L): a pair is positive where both have the same label,
            or have one in common. May be None where ``indices_tuple`` is given.
        ref_emb, ref_labels: references (m, d), of the embeddings' dtype, and their labels. Default: the anchors
            themselves.
        temperature: τ, the paper's σ, positive. Or a floating tensor of one element, such as a Parameter, which may
            require a gradient.
        distance: the score of a pair, a metric of :func:`fastpair.functional.pairwise_distance`, or the object of
            pytorch-metric-learning that is the same.
        reduction: "mean": over the anchors that have positives; "sum": the sum of the anchors' losses; "none": the
            losses, shape (n,); "totals": what the mean is made of, which adds up over parts of a batch: (S, c,
            S_neg, c_neg) with mean = S / c + S_neg / c_neg, a part being 0 where its c is. The last two belong to
            the negatives where these have a mean of their own, else they are 0; counts have no gradient.
        indices_tuple: the pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative),
            integer tensors of row numbers as miners make them, used in place of those that the labels make. A pair
            that is listed twice counts once, but twice in contrastive_loss and ntxent_loss. On a CPU a kernel
            gathers the listed rows; elsewhere the loss is then plain PyTorch on the listed scores.
        exclude_self: which pairs are left out because both sides are one sample. None: the pairs (i, i), when and
            only when ``ref_emb`` is None or ``embeddings`` itself. True: the first n references are the anchors.
            False: none. A tensor (n,): the row of ``ref_emb`` that each anchor is, -1 for none.
        pairs: in place of labels, integers (n, m): 1 for a positive pair, -1 for a negative one, 0 for none.
        ids, ref_ids: integers (n,) and (m,), false-negative masking: samples with equal ids, as duplicates have,
            are no pair. ``ref_ids`` goes with ``ref_emb``.
        weights: floating (n,), not negative: the anchors' losses and counts are multiplied by them, so that the
            mean is a weighted one. Constants of the gradient.
        ref_bias: floating (m,), or (n,) without references: added to the terms of negatives, of losses that sum
            their exponentials, as the correction −log q of sampled softmax is (Yi et al., RecSys 2019). Constants
            of the gradient.
        ignore_above: a negative whose closeness is above that of the anchor's closest positive plus this number, in
            units of the score, is no pair: it may be a positive without the label (as in Qwen3-Embedding, arXiv
            2506.05176, and GISTEmbed, arXiv 2402.16829, with the model itself as the guide). For the same losses.
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.

    Source: Wu et al., ECCV 2018 (arXiv 1808.04699); Boudiaf et al., ECCV 2020 (arXiv 2003.08983), Table 1.
    """
    settings = {
        "temperature": temperature,
        "distance": distance,
        "reduction": reduction,
    }
    return pair_loss(
        "snca",
        settings,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        indices_tuple,
        exclude_self,
        pairs,
        ids,
        ref_ids,
        weights,
        ref_bias,
        ignore_above,
        backend,
    )


def nca_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    softmax_scale: float | Tensor = 1.0,
    distance: str | nn.Module = "unit_sqeuclidean",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    pairs: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    weights: Tensor | None = None,
    ref_bias: Tensor | None = None,
    ignore_above: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Neighbourhood components analysis.

        log Σ_{P∪N} exp(σs) − log Σ_P exp(σs), s = −d²

    P are the anchor's positives among the references, N its negatives; s is the closeness of a pair, a similarity
    or −d for a distance d.

    Computed from logarithms of sums: pytorch-metric-learning, whose probabilities underflow, leaves far anchors out
    and is NaN where all are far.

    Args:
        embeddings: anchors (n, d), float32, float64, bfloat16 or float16.
        labels: integers (n,), or sets of labels, boolean (n, L): a pair is positive where both have the same label,
            or have one in common. May be None where ``indices_tuple`` is given.
        ref_emb, ref_labels: references (m, d), of the embeddings' dtype, and their labels. Default: the anchors
            themselves.
        softmax_scale: σ, positive. Or a floating tensor of one element, such as a Parameter, which may require a
            gradient.
        distance: the score of a pair, a metric of :func:`fastpair.functional.pairwise_distance`, or the object of
            pytorch-metric-learning that is the same.
        reduction: "mean": over the anchors that have positives; "sum": the sum of the anchors' losses; "none": the
            losses, shape (n,); "totals": what the mean is made of, which adds up over parts of a batch: (S, c,
            S_neg, c_neg) with mean = S / c + S_neg / c_neg, a part being 0 where its c is. The last two belong to
            the negatives where these have a mean of their own, else they are 0; counts have no gradient.
        indices_tuple: the pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative),
            integer tensors of row numbers as miners make them, used in place of those that the labels make. A pair
            that is listed twice counts once, but twice in contrastive_loss and ntxent_loss. On a CPU a kernel
            gathers the listed rows; elsewhere the loss is then plain PyTorch on the listed scores.
        exclude_self: which pairs are left out because both sides are one sample. None: the pairs (i, i), when and
            only when ``ref_emb`` is None or ``embeddings`` itself. True: the first n references are the anchors.
            False: none. A tensor (n,): the row of ``ref_emb`` that each anchor is, -1 for none.
        pairs: in place of labels, integers (n, m): 1 for a positive pair, -1 for a negative one, 0 for none.
        ids, ref_ids: integers (n,) and (m,), false-negative masking: samples with equal ids, as duplicates have,
            are no pair. ``ref_ids`` goes with ``ref_emb``.
        weights: floating (n,), not negative: the anchors' losses and counts are multiplied by them, so that the
            mean is a weighted one. Constants of the gradient.
        ref_bias: floating (m,), or (n,) without references: added to the terms of negatives, of losses that sum
            their exponentials, as the correction −log q of sampled softmax is (Yi et al., RecSys 2019). Constants
            of the gradient.
        ignore_above: a negative whose closeness is above that of the anchor's closest positive plus this number, in
            units of the score, is no pair: it may be a positive without the label (as in Qwen3-Embedding, arXiv
            2506.05176, and GISTEmbed, arXiv 2402.16829, with the model itself as the guide). For the same losses.
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.

    Source: Goldberger et al., NeurIPS 2004, in the form of Boudiaf et al., ECCV 2020 (arXiv 2003.08983).
    """
    settings = {
        "softmax_scale": softmax_scale,
        "distance": distance,
        "reduction": reduction,
    }
    return pair_loss(
        "nca",
        settings,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        indices_tuple,
        exclude_self,
        pairs,
        ids,
        ref_ids,
        weights,
        ref_bias,
        ignore_above,
        backend,
    )


def supcon_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.1,
    distance: str | nn.Module = "cosine",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    pairs: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    weights: Tensor | None = None,
    ref_bias: Tensor | None = None,
    ignore_above: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Supervised contrastive loss.

        log Σ_{P∪N} exp(s/τ) − mean_P s/τ

    P are the anchor's positives among the references, N its negatives; s is the closeness of a pair, a similarity
    or −d for a distance d.

    Args:
        embeddings: anchors (n, d), float32, float64, bfloat16 or float16.
        labels: integers (n,), or sets of labels, boolean (n, L): a pair is positive where both have the same label,
            or have one in common. May be None where ``indices_tuple`` is given.
        ref_emb, ref_labels: references (m, d), of the embeddings' dtype, and their labels. Default: the anchors
            themselves.
        temperature: τ, positive. Or a floating tensor of one element, such as a Parameter, which may require a
            gradient.
        distance: the score of a pair, a metric of :func:`fastpair.functional.pairwise_distance`, or the object of
            pytorch-metric-learning that is the same.
        reduction: "mean": over the anchors that have positives, also where the batch has no negatives (for
            pytorch-metric-learning such a batch has loss 0); "sum": the sum of the anchors' losses; "none": the
            losses, shape (n,); "totals": what the mean is made of, which adds up over parts of a batch: (S, c,
            S_neg, c_neg) with mean = S / c + S_neg / c_neg, a part being 0 where its c is. The last two belong to
            the negatives where these have a mean of their own, else they are 0; counts have no gradient.
        indices_tuple: the pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative),
            integer tensors of row numbers as miners make them, used in place of those that the labels make. A pair
            that is listed twice counts once, but twice in contrastive_loss and ntxent_loss. On a CPU a kernel
            gathers the listed rows; elsewhere the loss is then plain PyTorch on the listed scores.
        exclude_self: which pairs are left out because both sides are one sample. None: the pairs (i, i), when and
            only when ``ref_emb`` is None or ``embeddings`` itself. True: the first n references are the anchors.
            False: none. A tensor (n,): the row of ``ref_emb`` that each anchor is, -1 for none.
        pairs: in place of labels, integers (n, m): 1 for a positive pair, -1 for a negative one, 0 for none.
        ids, ref_ids: integers (n,) and (m,), false-negative masking: samples with equal ids, as duplicates have,
            are no pair. ``ref_ids`` goes with ``ref_emb``.
        weights: floating (n,), not negative: the anchors' losses and counts are multiplied by them, so that the
            mean is a weighted one. Constants of the gradient.
        ref_bias: floating (m,), or (n,) without references: added to the terms of negatives, of losses that sum
            their exponentials, as the correction −log q of sampled softmax is (Yi et al., RecSys 2019). Constants
            of the gradient.
        ignore_above: a negative whose closeness is above that of the anchor's closest positive plus this number, in
            units of the score, is no pair: it may be a positive without the label (as in Qwen3-Embedding, arXiv
            2506.05176, and GISTEmbed, arXiv 2402.16829, with the model itself as the guide). For the same losses.
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.

    Source: Khosla et al., NeurIPS 2020 (arXiv 2004.11362), eq. 2.
    """
    settings = {
        "temperature": temperature,
        "distance": distance,
        "reduction": reduction,
    }
    return pair_loss(
        "supcon",
        settings,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        indices_tuple,
        exclude_self,
        pairs,
        ids,
        ref_ids,
        weights,
        ref_bias,
        ignore_above,
        backend,
    )


def dcl_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.1,
    distance: str | nn.Module = "cosine",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    pairs: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    weights: Tensor | None = None,
    ref_bias: Tensor | None = None,
    ignore_above: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Decoupled contrastive loss, whose denominator has no positives.

        log Σ_N exp(s/τ) − mean_P s/τ

    P are the anchor's positives among the references, N its negatives; s is the closeness of a pair, a similarity
    or −d for a distance d.

    Args:
        embeddings: anchors (n, d), float32, float64, bfloat16 or float16.
        labels: integers (n,), or sets of labels, boolean (n, L): a pair is positive where both have the same label,
            or have one in common. May be None where ``indices_tuple`` is given.
        ref_emb, ref_labels: references (m, d), of the embeddings' dtype, and their labels. Default: the anchors
            themselves.
        temperature: τ, positive. Or a floating tensor of one element, such as a Parameter, which may require a
            gradient.
        distance: the score of a pair, a metric of :func:`fastpair.functional.pairwise_distance`, or the object of
            pytorch-metric-learning that is the same.
        reduction: "mean": over the anchors that have positives and negatives; the others have loss 0; "sum": the
            sum of the anchors' losses; "none": the losses, shape (n,); "totals": what the mean is made of, which
            adds up over parts of a batch: (S, c, S_neg, c_neg) with mean = S / c + S_neg / c_neg, a part being 0
            where its c is. The last two belong to the negatives where these have a mean of their own, else they are
            0; counts have no gradient.
        indices_tuple: the pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative),
            integer tensors of row numbers as miners make them, used in place of those that the labels make. A pair
            that is listed twice counts once, but twice in contrastive_loss and ntxent_loss. On a CPU a kernel
            gathers the listed rows; elsewhere the loss is then plain PyTorch on the listed scores.
        exclude_self: which pairs are left out because both sides are one sample. None: the pairs (i, i), when and
            only when ``ref_emb`` is None or ``embeddings`` itself. True: the first n references are the anchors.
            False: none. A tensor (n,): the row of ``ref_emb`` that each anchor is, -1 for none.
        pairs: in place of labels, integers (n, m): 1 for a positive pair, -1 for a negative one, 0 for none.
        ids, ref_ids: integers (n,) and (m,), false-negative masking: samples with equal ids, as duplicates have,
            are no pair. ``ref_ids`` goes with ``ref_emb``.
        weights: floating (n,), not negative: the anchors' losses and counts are multiplied by them, so that the
            mean is a weighted one. Constants of the gradient.
        ref_bias: floating (m,), or (n,) without references: added to the terms of negatives, of losses that sum
            their exponentials, as the correction −log q of sampled softmax is (Yi et al., RecSys 2019). Constants
            of the gradient.
        ignore_above: a negative whose closeness is above that of the anchor's closest positive plus this number, in
            units of the score, is no pair: it may be a positive without the label (as in Qwen3-Embedding, arXiv
            2506.05176, and GISTEmbed, arXiv 2402.16829, with the model itself as the guide). For the same losses.
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.

    Source: Yeh et al., ECCV 2022 (arXiv 2110.06848); with several positives their mean.
    """
    settings = {
        "temperature": temperature,
        "distance": distance,
        "reduction": reduction,
    }
    return pair_loss(
        "dcl",
        settings,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        indices_tuple,
        exclude_self,
        pairs,
        ids,
        ref_ids,
        weights,
        ref_bias,
        ignore_above,
        backend,
    )


def sincere_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.1,
    distance: str | nn.Module = "cosine",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    pairs: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    weights: Tensor | None = None,
    ref_bias: Tensor | None = None,
    ignore_above: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Supervised InfoNCE revisited, each positive against the anchor's negatives.

        mean_P log(1 + Σ_N exp((s_N − s_P)/τ))

    P are the anchor's positives among the references, N its negatives; s is the closeness of a pair, a similarity
    or −d for a distance d.

    NTXentLoss is the sum over the positives in place of their mean.

    Args:
        embeddings: anchors (n, d), float32, float64, bfloat16 or float16.
        labels: integers (n,), or sets of labels, boolean (n, L): a pair is positive where both have the same label,
            or have one in common. May be None where ``indices_tuple`` is given.
        ref_emb, ref_labels: references (m, d), of the embeddings' dtype, and their labels. Default: the anchors
            themselves.
        temperature: τ, positive. Or a floating tensor of one element, such as a Parameter, which may require a
            gradient.
        distance: the score of a pair, a metric of :func:`fastpair.functional.pairwise_distance`, or the object of
            pytorch-metric-learning that is the same.
        reduction: "mean": over the anchors that have positives; "sum": the sum of the anchors' losses; "none": the
            losses, shape (n,); "totals": what the mean is made of, which adds up over parts of a batch: (S, c,
            S_neg, c_neg) with mean = S / c + S_neg / c_neg, a part being 0 where its c is. The last two belong to
            the negatives where these have a mean of their own, else they are 0; counts have no gradient.
        indices_tuple: the pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative),
            integer tensors of row numbers as miners make them, used in place of those that the labels make. A pair
            that is listed twice counts once, but twice in contrastive_loss and ntxent_loss. On a CPU a kernel
            gathers the listed rows; elsewhere the loss is then plain PyTorch on the listed scores.
        exclude_self: which pairs are left out because both sides are one sample. None: the pairs (i, i), when and
            only when ``ref_emb`` is None or ``embeddings`` itself. True: the first n references are the anchors.
            False: none. A tensor (n,): the row of ``ref_emb`` that each anchor is, -1 for none.
        pairs: in place of labels, integers (n, m): 1 for a positive pair, -1 for a negative one, 0 for none.
        ids, ref_ids: integers (n,) and (m,), false-negative masking: samples with equal ids, as duplicates have,
            are no pair. ``ref_ids`` goes with ``ref_emb``.
        weights: floating (n,), not negative: the anchors' losses and counts are multiplied by them, so that the
            mean is a weighted one. Constants of the gradient.
        ref_bias: floating (m,), or (n,) without references: added to the terms of negatives, of losses that sum
            their exponentials, as the correction −log q of sampled softmax is (Yi et al., RecSys 2019). Constants
            of the gradient.
        ignore_above: a negative whose closeness is above that of the anchor's closest positive plus this number, in
            units of the score, is no pair: it may be a positive without the label (as in Qwen3-Embedding, arXiv
            2506.05176, and GISTEmbed, arXiv 2402.16829, with the model itself as the guide). For the same losses.
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.

    Source: Feeney and Hughes (arXiv 2309.14277).
    """
    settings = {
        "temperature": temperature,
        "distance": distance,
        "reduction": reduction,
    }
    return pair_loss(
        "sincere",
        settings,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        indices_tuple,
        exclude_self,
        pairs,
        ids,
        ref_ids,
        weights,
        ref_bias,
        ignore_above,
        backend,
    )


def ntxent_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.07,
    distance: str | nn.Module = "cosine",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    pairs: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    weights: Tensor | None = None,
    ref_bias: Tensor | None = None,
    ignore_above: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Normalised temperature-scaled cross-entropy, each positive against the anchor's negatives.

        Σ_P log(1 + Σ_N exp((s_N − s_P)/τ))

    P are the anchor's positives among the references, N its negatives; s is the closeness of a pair, a similarity
    or −d for a distance d.

    Computed from logarithms of sums: pytorch-metric-learning's probabilities underflow for small temperatures, and
    its loss stops at 87.

    Args:
        embeddings: anchors (n, d), float32, float64, bfloat16 or float16.
        labels: integers (n,), or sets of labels, boolean (n, L): a pair is positive where both have the same label,
            or have one in common. May be None where ``indices_tuple`` is given.
        ref_emb, ref_labels: references (m, d), of the embeddings' dtype, and their labels. Default: the anchors
            themselves.
        temperature: τ, positive. Or a floating tensor of one element, such as a Parameter, which may require a
            gradient.
        distance: the score of a pair, a metric of :func:`fastpair.functional.pairwise_distance`, or the object of
            pytorch-metric-learning that is the same.
        reduction: "mean": over the positive pairs; "sum": the sum of the anchors' losses; "none": the losses, shape
            (n,); "totals": what the mean is made of, which adds up over parts of a batch: (S, c, S_neg, c_neg) with
            mean = S / c + S_neg / c_neg, a part being 0 where its c is. The last two belong to the negatives where
            these have a mean of their own, else they are 0; counts have no gradient.
        indices_tuple: the pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative),
            integer tensors of row numbers as miners make them, used in place of those that the labels make. A pair
            that is listed twice counts once, but twice in contrastive_loss and ntxent_loss. On a CPU a kernel
            gathers the listed rows; elsewhere the loss is then plain PyTorch on the listed scores.
        exclude_self: which pairs are left out because both sides are one sample. None: the pairs (i, i), when and
            only when ``ref_emb`` is None or ``embeddings`` itself. True: the first n references are the anchors.
            False: none. A tensor (n,): the row of ``ref_emb`` that each anchor is, -1 for none.
        pairs: in place of labels, integers (n, m): 1 for a positive pair, -1 for a negative one, 0 for none.
        ids, ref_ids: integers (n,) and (m,), false-negative masking: samples with equal ids, as duplicates have,
            are no pair. ``ref_ids`` goes with ``ref_emb``.
        weights: floating (n,), not negative: the anchors' losses and counts are multiplied by them, so that the
            mean is a weighted one. Constants of the gradient.
        ref_bias: floating (m,), or (n,) without references: added to the terms of negatives, of losses that sum
            their exponentials, as the correction −log q of sampled softmax is (Yi et al., RecSys 2019). Constants
            of the gradient.
        ignore_above: a negative whose closeness is above that of the anchor's closest positive plus this number, in
            units of the score, is no pair: it may be a positive without the label (as in Qwen3-Embedding, arXiv
            2506.05176, and GISTEmbed, arXiv 2402.16829, with the model itself as the guide). For the same losses.
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.

    Source: Sohn, NeurIPS 2016; Chen et al., ICML 2020 (arXiv 2002.05709); with several positives each against the
    negatives, as in SINCERE.
    """
    settings = {
        "temperature": temperature,
        "distance": distance,
        "reduction": reduction,
    }
    return pair_loss(
        "ntxent",
        settings,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        indices_tuple,
        exclude_self,
        pairs,
        ids,
        ref_ids,
        weights,
        ref_bias,
        ignore_above,
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
    distance: str | nn.Module = "cosine",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    pairs: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    weights: Tensor | None = None,
    ref_bias: Tensor | None = None,
    ignore_above: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Multi-similarity loss.

        log(1 + Σ_P exp(−α(s − λ)))/α + log(1 + Σ_N exp(β(s − λ)))/β

    P are the anchor's positives among the references, N its negatives; s is the closeness of a pair, a similarity
    or −d for a distance d.

    Args:
        embeddings: anchors (n, d), float32, float64, bfloat16 or float16.
        labels: integers (n,), or sets of labels, boolean (n, L): a pair is positive where both have the same label,
            or have one in common. May be None where ``indices_tuple`` is given.
        ref_emb, ref_labels: references (m, d), of the embeddings' dtype, and their labels. Default: the anchors
            themselves.
        alpha: α, the weight of the positives, positive.
        beta: β, the weight of the negatives, positive.
        base: λ, the similarity, or distance, at which a pair is neither.
        distance: the score of a pair, a metric of :func:`fastpair.functional.pairwise_distance`, or the object of
            pytorch-metric-learning that is the same.
        reduction: "mean": over all anchors, those without pairs included; "sum": the sum of the anchors' losses;
            "none": the losses, shape (n,); "totals": what the mean is made of, which adds up over parts of a batch:
            (S, c, S_neg, c_neg) with mean = S / c + S_neg / c_neg, a part being 0 where its c is. The last two
            belong to the negatives where these have a mean of their own, else they are 0; counts have no gradient.
        indices_tuple: the pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative),
            integer tensors of row numbers as miners make them, used in place of those that the labels make. A pair
            that is listed twice counts once, but twice in contrastive_loss and ntxent_loss. On a CPU a kernel
            gathers the listed rows; elsewhere the loss is then plain PyTorch on the listed scores.
        exclude_self: which pairs are left out because both sides are one sample. None: the pairs (i, i), when and
            only when ``ref_emb`` is None or ``embeddings`` itself. True: the first n references are the anchors.
            False: none. A tensor (n,): the row of ``ref_emb`` that each anchor is, -1 for none.
        pairs: in place of labels, integers (n, m): 1 for a positive pair, -1 for a negative one, 0 for none.
        ids, ref_ids: integers (n,) and (m,), false-negative masking: samples with equal ids, as duplicates have,
            are no pair. ``ref_ids`` goes with ``ref_emb``.
        weights: floating (n,), not negative: the anchors' losses and counts are multiplied by them, so that the
            mean is a weighted one. Constants of the gradient.
        ref_bias: floating (m,), or (n,) without references: added to the terms of negatives, of losses that sum
            their exponentials, as the correction −log q of sampled softmax is (Yi et al., RecSys 2019). Constants
            of the gradient.
        ignore_above: a negative whose closeness is above that of the anchor's closest positive plus this number, in
            units of the score, is no pair: it may be a positive without the label (as in Qwen3-Embedding, arXiv
            2506.05176, and GISTEmbed, arXiv 2402.16829, with the model itself as the guide). For the same losses.
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.

    Source: Wang et al., CVPR 2019 (arXiv 1904.06627), eq. 16; its pair mining is left to the user.
    """
    settings = {
        "alpha": alpha,
        "beta": beta,
        "base": base,
        "distance": distance,
        "reduction": reduction,
    }
    return pair_loss(
        "multi_similarity",
        settings,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        indices_tuple,
        exclude_self,
        pairs,
        ids,
        ref_ids,
        weights,
        ref_bias,
        ignore_above,
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
    distance: str | nn.Module = "cosine",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    pairs: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    weights: Tensor | None = None,
    ref_bias: Tensor | None = None,
    ignore_above: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Circle loss with pairwise labels.

        log(1 + Σ_P exp(−γ[1+m−s]₊(s−1+m)) · Σ_N exp(γ[s+m]₊(s−m)))

    P are the anchor's positives among the references, N its negatives; s is the closeness of a pair, a similarity
    or −d for a distance d.

    The weights [·]₊ are constants of the gradient.

    Args:
        embeddings: anchors (n, d), float32, float64, bfloat16 or float16.
        labels: integers (n,), or sets of labels, boolean (n, L): a pair is positive where both have the same label,
            or have one in common. May be None where ``indices_tuple`` is given.
        ref_emb, ref_labels: references (m, d), of the embeddings' dtype, and their labels. Default: the anchors
            themselves.
        m: the margin.
        gamma: γ, the scale, positive.
        distance: the score of a pair, "cosine" or "dot", or the object of pytorch-metric-learning that is the same.
        reduction: "mean": over the anchors that have positives and negatives; the others have loss 0; "sum": the
            sum of the anchors' losses; "none": the losses, shape (n,); "totals": what the mean is made of, which
            adds up over parts of a batch: (S, c, S_neg, c_neg) with mean = S / c + S_neg / c_neg, a part being 0
            where its c is. The last two belong to the negatives where these have a mean of their own, else they are
            0; counts have no gradient.
        indices_tuple: the pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative),
            integer tensors of row numbers as miners make them, used in place of those that the labels make. A pair
            that is listed twice counts once, but twice in contrastive_loss and ntxent_loss. On a CPU a kernel
            gathers the listed rows; elsewhere the loss is then plain PyTorch on the listed scores.
        exclude_self: which pairs are left out because both sides are one sample. None: the pairs (i, i), when and
            only when ``ref_emb`` is None or ``embeddings`` itself. True: the first n references are the anchors.
            False: none. A tensor (n,): the row of ``ref_emb`` that each anchor is, -1 for none.
        pairs: in place of labels, integers (n, m): 1 for a positive pair, -1 for a negative one, 0 for none.
        ids, ref_ids: integers (n,) and (m,), false-negative masking: samples with equal ids, as duplicates have,
            are no pair. ``ref_ids`` goes with ``ref_emb``.
        weights: floating (n,), not negative: the anchors' losses and counts are multiplied by them, so that the
            mean is a weighted one. Constants of the gradient.
        ref_bias: floating (m,), or (n,) without references: added to the terms of negatives, of losses that sum
            their exponentials, as the correction −log q of sampled softmax is (Yi et al., RecSys 2019). Constants
            of the gradient.
        ignore_above: a negative whose closeness is above that of the anchor's closest positive plus this number, in
            units of the score, is no pair: it may be a positive without the label (as in Qwen3-Embedding, arXiv
            2506.05176, and GISTEmbed, arXiv 2402.16829, with the model itself as the guide). For the same losses.
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.

    Source: Sun et al., CVPR 2020 (arXiv 2002.10857), eq. 6 and 8.
    """
    settings = {
        "m": m,
        "gamma": gamma,
        "distance": distance,
        "reduction": reduction,
    }
    return pair_loss(
        "circle",
        settings,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        indices_tuple,
        exclude_self,
        pairs,
        ids,
        ref_ids,
        weights,
        ref_bias,
        ignore_above,
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
    distance: str | nn.Module = "unit_euclidean",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    pairs: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    weights: Tensor | None = None,
    ref_bias: Tensor | None = None,
    ignore_above: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Lifted structure loss over all positives and negatives of an anchor.

        [log Σ_P exp(d − m₊) + log Σ_N exp(m₋ − d)]₊

    P are the anchor's positives among the references, N its negatives; s is the closeness of a pair, a similarity
    or −d for a distance d.

    For a similarity the signs are flipped.

    Args:
        embeddings: anchors (n, d), float32, float64, bfloat16 or float16.
        labels: integers (n,), or sets of labels, boolean (n, L): a pair is positive where both have the same label,
            or have one in common. May be None where ``indices_tuple`` is given.
        ref_emb, ref_labels: references (m, d), of the embeddings' dtype, and their labels. Default: the anchors
            themselves.
        neg_margin: m₋, in units of the distance.
        pos_margin: m₊, in units of the distance.
        distance: the score of a pair, a metric of :func:`fastpair.functional.pairwise_distance`, or the object of
            pytorch-metric-learning that is the same.
        reduction: "mean": over the anchors that have positives and negatives; the others have loss 0
            (pytorch-metric-learning drops the missing sum from the formula instead); "sum": the sum of the anchors'
            losses; "none": the losses, shape (n,); "totals": what the mean is made of, which adds up over parts of
            a batch: (S, c, S_neg, c_neg) with mean = S / c + S_neg / c_neg, a part being 0 where its c is. The last
            two belong to the negatives where these have a mean of their own, else they are 0; counts have no
            gradient.
        indices_tuple: the pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative),
            integer tensors of row numbers as miners make them, used in place of those that the labels make. A pair
            that is listed twice counts once, but twice in contrastive_loss and ntxent_loss. On a CPU a kernel
            gathers the listed rows; elsewhere the loss is then plain PyTorch on the listed scores.
        exclude_self: which pairs are left out because both sides are one sample. None: the pairs (i, i), when and
            only when ``ref_emb`` is None or ``embeddings`` itself. True: the first n references are the anchors.
            False: none. A tensor (n,): the row of ``ref_emb`` that each anchor is, -1 for none.
        pairs: in place of labels, integers (n, m): 1 for a positive pair, -1 for a negative one, 0 for none.
        ids, ref_ids: integers (n,) and (m,), false-negative masking: samples with equal ids, as duplicates have,
            are no pair. ``ref_ids`` goes with ``ref_emb``.
        weights: floating (n,), not negative: the anchors' losses and counts are multiplied by them, so that the
            mean is a weighted one. Constants of the gradient.
        ref_bias: floating (m,), or (n,) without references: added to the terms of negatives, of losses that sum
            their exponentials, as the correction −log q of sampled softmax is (Yi et al., RecSys 2019). Constants
            of the gradient.
        ignore_above: a negative whose closeness is above that of the anchor's closest positive plus this number, in
            units of the score, is no pair: it may be a positive without the label (as in Qwen3-Embedding, arXiv
            2506.05176, and GISTEmbed, arXiv 2402.16829, with the model itself as the guide). For the same losses.
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.

    Source: Hermans et al., 2017 (arXiv 1703.07737), eq. 8, after Song et al., CVPR 2016.
    """
    settings = {
        "neg_margin": neg_margin,
        "pos_margin": pos_margin,
        "distance": distance,
        "reduction": reduction,
    }
    return pair_loss(
        "generalized_lifted_structure",
        settings,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        indices_tuple,
        exclude_self,
        pairs,
        ids,
        ref_ids,
        weights,
        ref_bias,
        ignore_above,
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
    distance: str | nn.Module = "unit_euclidean",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    pairs: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    weights: Tensor | None = None,
    ref_bias: Tensor | None = None,
    ignore_above: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Triplet margin loss.

        Σ over triplets of an anchor, a positive and a negative, of [d_P − d_N + m]₊

    P are the anchor's positives among the references, N its negatives; s is the closeness of a pair, a similarity
    or −d for a distance d.

    For a similarity d is −s.

    Args:
        embeddings: anchors (n, d), float32, float64, bfloat16 or float16.
        labels: integers (n,), or sets of labels, boolean (n, L): a pair is positive where both have the same label,
            or have one in common. May be None where ``indices_tuple`` is given.
        ref_emb, ref_labels: references (m, d), of the embeddings' dtype, and their labels. Default: the anchors
            themselves.
        margin: m, in units of the distance.
        swap: use the smaller of d_N and the distance between positive and negative in place of d_N. Only for
            triplets that ``indices_tuple`` lists.
        smooth_loss: log(1 + exp(x)) in place of [x]₊.
        triplets_per_anchor: which triplets count. "all": every one, summed in O(n log n) time per anchor.
            "semihard": those with d_P < d_N < d_P + m. "facenet": one for each positive, with the nearest negative
            that is farther or, where there is none, with the farthest negative. "hard": one per anchor, its
            farthest positive with its nearest negative. Of equally far ones any is taken, for the gradient. Ignored
            where ``indices_tuple`` lists them.
        distance: the score of a pair, a metric of :func:`fastpair.functional.pairwise_distance`, or the object of
            pytorch-metric-learning that is the same.
        reduction: "mean": over the triplets whose loss is not zero, or with "facenet" over all of them, one for
            each positive of the anchors that have negatives (the mean of TensorFlow Addons and
            sentence-transformers); "sum": the sum of the anchors' losses; "none": the losses, shape (n,); "totals":
            what the mean is made of, which adds up over parts of a batch: (S, c, S_neg, c_neg) with mean = S / c +
            S_neg / c_neg, a part being 0 where its c is. The last two belong to the negatives where these have a
            mean of their own, else they are 0; counts have no gradient.
        indices_tuple: the pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative),
            integer tensors of row numbers as miners make them, used in place of those that the labels make. A
            triplet that is listed twice counts twice. On a CPU a kernel gathers the listed rows; elsewhere the loss
            is then plain PyTorch on the listed scores.
        exclude_self: which pairs are left out because both sides are one sample. None: the pairs (i, i), when and
            only when ``ref_emb`` is None or ``embeddings`` itself. True: the first n references are the anchors.
            False: none. A tensor (n,): the row of ``ref_emb`` that each anchor is, -1 for none.
        pairs: in place of labels, integers (n, m): 1 for a positive pair, -1 for a negative one, 0 for none.
        ids, ref_ids: integers (n,) and (m,), false-negative masking: samples with equal ids, as duplicates have,
            are no pair. ``ref_ids`` goes with ``ref_emb``.
        weights: floating (n,), not negative: the anchors' losses and counts are multiplied by them, so that the
            mean is a weighted one. Constants of the gradient.
        ref_bias: floating (m,), or (n,) without references: added to the terms of negatives, of losses that sum
            their exponentials, as the correction −log q of sampled softmax is (Yi et al., RecSys 2019). Constants
            of the gradient.
        ignore_above: a negative whose closeness is above that of the anchor's closest positive plus this number, in
            units of the score, is no pair: it may be a positive without the label (as in Qwen3-Embedding, arXiv
            2506.05176, and GISTEmbed, arXiv 2402.16829, with the model itself as the guide). For the same losses.
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.

    Source: Schroff et al., CVPR 2015 (arXiv 1503.03832), eq. 2 ("all", "semihard") and section 3.2 ("facenet");
    Hermans et al., 2017 (arXiv 1703.07737), eq. 5 ("hard").
    """
    settings = {
        "margin": margin,
        "swap": swap,
        "smooth_loss": smooth_loss,
        "triplets_per_anchor": triplets_per_anchor,
        "distance": distance,
        "reduction": reduction,
    }
    return pair_loss(
        "triplet_margin",
        settings,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        indices_tuple,
        exclude_self,
        pairs,
        ids,
        ref_ids,
        weights,
        ref_bias,
        ignore_above,
        backend,
    )


def normalized_softmax_loss(
    embeddings: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.05,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    """Cross-entropy of cosines.

        logits cos(z_i, w_k) / temperature

    Args:
        embeddings: z (n, d).
        weight: class weights w (K, d), of the embeddings' dtype unless autocast is on.
        labels: integers (n,) in [0, K), none of which is ignored; any other as in :func:`linear_cross_entropy`.
        temperature: positive.
        reduction: "mean", "sum" or "none".
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.

    Source: Zhai and Wu, BMVC 2019 (arXiv 1811.12649), eq. 3.
    """
    settings = {
        "temperature": temperature,
        "reduction": reduction,
    }
    return class_loss(
        "normalized_softmax",
        settings,
        embeddings,
        weight,
        labels,
        backend,
    )


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
    """Cross-entropy of cosines with a margin.

        logits scale (cos(z_i, w_k) - margin [k = y_i])

    Args:
        embeddings: z (n, d).
        weight: class weights w (K, d), of the embeddings' dtype unless autocast is on.
        labels: integers (n,) in [0, K), none of which is ignored; any other as in :func:`linear_cross_entropy`.
        margin: in units of the cosine.
        scale: positive.
        reduction: "mean", "sum" or "none".
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.

    Source: Wang et al., CVPR 2018 (arXiv 1801.09414), eq. 4.
    """
    settings = {
        "margin": margin,
        "scale": scale,
        "reduction": reduction,
    }
    return class_loss(
        "cosface",
        settings,
        embeddings,
        weight,
        labels,
        backend,
    )


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
    """Cross-entropy of cosines with a margin on the angle.

        logits scale cos(theta_ik + margin [k = y_i])

    Where theta + margin exceeds 180 degrees the target's logit is scale (cos theta - m sin m), m being the margin
    in radians, so that it keeps falling with the angle. The gradient is finite at theta = 0 too, where
    pytorch-metric-learning's is NaN: within 0.06 degrees of it sin theta is replaced by a straight line.

    Args:
        embeddings: z (n, d).
        weight: class weights w (K, d), of the embeddings' dtype unless autocast is on.
        labels: integers (n,) in [0, K), none of which is ignored; any other as in :func:`linear_cross_entropy`.
        margin: in degrees, at least 0 and below 180.
        scale: positive.
        reduction: "mean", "sum" or "none".
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.

    Source: Deng et al., CVPR 2019 (arXiv 1801.07698), eq. 3.
    """
    settings = {
        "margin": margin,
        "scale": scale,
        "reduction": reduction,
    }
    return class_loss(
        "arcface",
        settings,
        embeddings,
        weight,
        labels,
        backend,
    )


def proxy_nca_loss(
    embeddings: Tensor,
    proxies: Tensor,
    labels: Tensor,
    *,
    softmax_scale: float = 1.0,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    """Neighbourhood components analysis with one proxy per class.

        l_i = -log( exp(-softmax_scale d_{i y_i}) / sum_k exp(-softmax_scale d_ik) ),  d_ik = |z_i/|z_i| - p_k/|p_k||^2

    With d = 2 - 2 cos it is the cross-entropy of cosines at scale 2 ``softmax_scale``. As in
    pytorch-metric-learning, and unlike the paper, a sample's own proxy is in the denominator.

    Args:
        embeddings: z (n, d).
        proxies: p (K, d), of the embeddings' dtype unless autocast is on.
        labels: integers (n,) in [0, K), none of which is ignored; any other as in :func:`linear_cross_entropy`.
        softmax_scale: positive.
        reduction: "mean", "sum" or "none".
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.

    Source: Movshovitz-Attias et al., ICCV 2017 (arXiv 1703.07464), eq. 4.
    """
    settings = {
        "softmax_scale": softmax_scale,
        "reduction": reduction,
    }
    return class_loss(
        "proxy_nca",
        settings,
        embeddings,
        proxies,
        labels,
        backend,
    )


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
    """Proxy-anchor loss: a pair loss whose anchors are the proxies of the classes.

        l_k = log(1 + sum_{i: y_i = k} exp(-alpha (s_ik - margin)))
            + log(1 + sum_{i: y_i != k} exp(alpha (s_ik + margin)))

    s_ik is the cosine of embedding i and proxy k.

    Args:
        embeddings: z (n, d).
        proxies: p (K, d), of the embeddings' dtype unless autocast is on.
        labels: integers (n,) in [0, K).
        margin: in units of the cosine.
        alpha: positive.
        reduction: "mean": the first part averaged over the proxies with samples in the batch, the second over all
            K; "sum"; "none": (K,); "totals" as for the pair losses.
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.

    Source: Kim et al., CVPR 2020 (arXiv 2003.13911), eq. 4.
    """
    settings = {
        "margin": margin,
        "alpha": alpha,
        "reduction": reduction,
    }
    return class_loss(
        "proxy_anchor",
        settings,
        embeddings,
        proxies,
        labels,
        backend,
    )


def center_loss(
    embeddings: Tensor,
    labels: Tensor,
    centers: Tensor,
    *,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    """Center loss: the pull of samples towards the centre of their class.

        l_i = 1/2 |z_i - c_{y_i}|^2

    O(nd), plain PyTorch.

    Args:
        embeddings: z (n, d).
        labels: integers (n,) in [0, K).
        centers: c (K, d), of any floating dtype.
        reduction: "mean", "sum" or "none".
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.

    Source: Wen et al., ECCV 2016, eq. 2; Boudiaf et al., ECCV 2020 (arXiv 2003.08983), Table 1.
    """
    settings = {
        "reduction": reduction,
    }
    return class_loss(
        "center",
        settings,
        embeddings,
        centers,
        labels,
        backend,
    )

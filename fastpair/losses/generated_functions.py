"""The losses over the pairs that labels make, as functions. Made by ``python -m fastpair.formulas`` from
fastpair/formulas/pair_losses.py: not to be edited."""

from __future__ import annotations

from torch import Tensor

from fastpair.losses.pair import formula_of, pair_loss

__all__ = [
    "circle_loss",
    "contrastive_loss",
    "dcl_loss",
    "generalized_lifted_structure_loss",
    "multi_similarity_loss",
    "nca_loss",
    "ntxent_loss",
    "sincere_loss",
    "snca_loss",
    "supcon_loss",
]


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
    pairs: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    weights: Tensor | None = None,
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
        power: p, 1 or 2.
        distance: the score of a pair, a metric of :func:`fastpair.functional.pairwise_distance`.
        reduction: "mean": for power 1 the average of the positive terms that are not zero plus that of the negative
            terms that are not zero (the convention of pytorch-metric-learning), for power 2 over all anchors (with
            pos_margin 0 and "euclidean" the form of the paper); "sum": the sum of the anchors' losses; "none": the
            losses, shape (n,); "totals": what the mean is made of, which adds up over parts of a batch: (S, c,
            S_neg, c_neg) with mean = S / c + S_neg / c_neg, a part being 0 where its c is. The last two belong to
            the negatives where these have a mean of their own, else they are 0; counts have no gradient.
        indices_tuple: the pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative),
            integer tensors of row numbers as miners make them, used in place of those that the labels make. A pair
            that is listed twice counts once, but twice in contrastive_loss and ntxent_loss. The loss is then plain
            PyTorch on the listed scores, whose memory grows with the list.
        exclude_self: which pairs are left out because both sides are one sample. None: the pairs (i, i), when and
            only when ``ref_emb`` is None or ``embeddings`` itself. True: the first n references are the anchors.
            False: none. A tensor (n,): the row of ``ref_emb`` that each anchor is, -1 for none.
        pairs: in place of labels, integers (n, m): 1 for a positive pair, -1 for a negative one, 0 for none.
        ids, ref_ids: integers (n,) and (m,), false-negative masking: samples with equal ids, as duplicates have,
            are no pair. ``ref_ids`` goes with ``ref_emb``.
        weights: floating (n,), not negative: the anchors' losses and counts are multiplied by them, so that the
            mean is a weighted one. Constants of the gradient.
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.

    Source: Hadsell et al., CVPR 2006; Boudiaf et al., ECCV 2020 (arXiv 2003.08983), Table 1.
    """
    settings = {"pos_margin": pos_margin, "neg_margin": neg_margin, "power": power}
    loss, params = formula_of("contrastive", settings, distance, reduction)
    return pair_loss(
        loss,
        params,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        distance=distance,
        reduction=reduction,
        indices_tuple=indices_tuple,
        exclude_self=exclude_self,
        pairs=pairs,
        ids=ids,
        ref_ids=ref_ids,
        weights=weights,
        backend=backend,
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
    pairs: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    weights: Tensor | None = None,
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
        temperature: τ, the paper's σ, positive.
        distance: the score of a pair, a metric of :func:`fastpair.functional.pairwise_distance`.
        reduction: "mean": over the anchors that have positives; "sum": the sum of the anchors' losses; "none": the
            losses, shape (n,); "totals": what the mean is made of, which adds up over parts of a batch: (S, c,
            S_neg, c_neg) with mean = S / c + S_neg / c_neg, a part being 0 where its c is. The last two belong to
            the negatives where these have a mean of their own, else they are 0; counts have no gradient.
        indices_tuple: the pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative),
            integer tensors of row numbers as miners make them, used in place of those that the labels make. A pair
            that is listed twice counts once, but twice in contrastive_loss and ntxent_loss. The loss is then plain
            PyTorch on the listed scores, whose memory grows with the list.
        exclude_self: which pairs are left out because both sides are one sample. None: the pairs (i, i), when and
            only when ``ref_emb`` is None or ``embeddings`` itself. True: the first n references are the anchors.
            False: none. A tensor (n,): the row of ``ref_emb`` that each anchor is, -1 for none.
        pairs: in place of labels, integers (n, m): 1 for a positive pair, -1 for a negative one, 0 for none.
        ids, ref_ids: integers (n,) and (m,), false-negative masking: samples with equal ids, as duplicates have,
            are no pair. ``ref_ids`` goes with ``ref_emb``.
        weights: floating (n,), not negative: the anchors' losses and counts are multiplied by them, so that the
            mean is a weighted one. Constants of the gradient.
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.

    Source: Wu et al., ECCV 2018 (arXiv 1808.04699); Boudiaf et al., ECCV 2020 (arXiv 2003.08983), Table 1.
    """
    settings = {"temperature": temperature}
    loss, params = formula_of("snca", settings, distance, reduction)
    return pair_loss(
        loss,
        params,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        distance=distance,
        reduction=reduction,
        indices_tuple=indices_tuple,
        exclude_self=exclude_self,
        pairs=pairs,
        ids=ids,
        ref_ids=ref_ids,
        weights=weights,
        backend=backend,
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
    pairs: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    weights: Tensor | None = None,
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
        softmax_scale: σ, positive.
        distance: the score of a pair, a metric of :func:`fastpair.functional.pairwise_distance`.
        reduction: "mean": over the anchors that have positives; "sum": the sum of the anchors' losses; "none": the
            losses, shape (n,); "totals": what the mean is made of, which adds up over parts of a batch: (S, c,
            S_neg, c_neg) with mean = S / c + S_neg / c_neg, a part being 0 where its c is. The last two belong to
            the negatives where these have a mean of their own, else they are 0; counts have no gradient.
        indices_tuple: the pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative),
            integer tensors of row numbers as miners make them, used in place of those that the labels make. A pair
            that is listed twice counts once, but twice in contrastive_loss and ntxent_loss. The loss is then plain
            PyTorch on the listed scores, whose memory grows with the list.
        exclude_self: which pairs are left out because both sides are one sample. None: the pairs (i, i), when and
            only when ``ref_emb`` is None or ``embeddings`` itself. True: the first n references are the anchors.
            False: none. A tensor (n,): the row of ``ref_emb`` that each anchor is, -1 for none.
        pairs: in place of labels, integers (n, m): 1 for a positive pair, -1 for a negative one, 0 for none.
        ids, ref_ids: integers (n,) and (m,), false-negative masking: samples with equal ids, as duplicates have,
            are no pair. ``ref_ids`` goes with ``ref_emb``.
        weights: floating (n,), not negative: the anchors' losses and counts are multiplied by them, so that the
            mean is a weighted one. Constants of the gradient.
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.

    Source: Goldberger et al., NeurIPS 2004, in the form of Boudiaf et al., ECCV 2020 (arXiv 2003.08983).
    """
    settings = {"softmax_scale": softmax_scale}
    loss, params = formula_of("nca", settings, distance, reduction)
    return pair_loss(
        loss,
        params,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        distance=distance,
        reduction=reduction,
        indices_tuple=indices_tuple,
        exclude_self=exclude_self,
        pairs=pairs,
        ids=ids,
        ref_ids=ref_ids,
        weights=weights,
        backend=backend,
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
    pairs: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    weights: Tensor | None = None,
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
        temperature: τ, positive.
        distance: the score of a pair, a metric of :func:`fastpair.functional.pairwise_distance`.
        reduction: "mean": over the anchors that have positives, also where the batch has no negatives (for
            pytorch-metric-learning such a batch has loss 0); "sum": the sum of the anchors' losses; "none": the
            losses, shape (n,); "totals": what the mean is made of, which adds up over parts of a batch: (S, c,
            S_neg, c_neg) with mean = S / c + S_neg / c_neg, a part being 0 where its c is. The last two belong to
            the negatives where these have a mean of their own, else they are 0; counts have no gradient.
        indices_tuple: the pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative),
            integer tensors of row numbers as miners make them, used in place of those that the labels make. A pair
            that is listed twice counts once, but twice in contrastive_loss and ntxent_loss. The loss is then plain
            PyTorch on the listed scores, whose memory grows with the list.
        exclude_self: which pairs are left out because both sides are one sample. None: the pairs (i, i), when and
            only when ``ref_emb`` is None or ``embeddings`` itself. True: the first n references are the anchors.
            False: none. A tensor (n,): the row of ``ref_emb`` that each anchor is, -1 for none.
        pairs: in place of labels, integers (n, m): 1 for a positive pair, -1 for a negative one, 0 for none.
        ids, ref_ids: integers (n,) and (m,), false-negative masking: samples with equal ids, as duplicates have,
            are no pair. ``ref_ids`` goes with ``ref_emb``.
        weights: floating (n,), not negative: the anchors' losses and counts are multiplied by them, so that the
            mean is a weighted one. Constants of the gradient.
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.

    Source: Khosla et al., NeurIPS 2020 (arXiv 2004.11362), eq. 2.
    """
    settings = {"temperature": temperature}
    loss, params = formula_of("supcon", settings, distance, reduction)
    return pair_loss(
        loss,
        params,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        distance=distance,
        reduction=reduction,
        indices_tuple=indices_tuple,
        exclude_self=exclude_self,
        pairs=pairs,
        ids=ids,
        ref_ids=ref_ids,
        weights=weights,
        backend=backend,
    )


def dcl_loss(
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
    pairs: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    weights: Tensor | None = None,
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
        temperature: τ, positive.
        distance: the score of a pair, a metric of :func:`fastpair.functional.pairwise_distance`.
        reduction: "mean": over the anchors that have positives and negatives; the others have loss 0; "sum": the
            sum of the anchors' losses; "none": the losses, shape (n,); "totals": what the mean is made of, which
            adds up over parts of a batch: (S, c, S_neg, c_neg) with mean = S / c + S_neg / c_neg, a part being 0
            where its c is. The last two belong to the negatives where these have a mean of their own, else they are
            0; counts have no gradient.
        indices_tuple: the pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative),
            integer tensors of row numbers as miners make them, used in place of those that the labels make. A pair
            that is listed twice counts once, but twice in contrastive_loss and ntxent_loss. The loss is then plain
            PyTorch on the listed scores, whose memory grows with the list.
        exclude_self: which pairs are left out because both sides are one sample. None: the pairs (i, i), when and
            only when ``ref_emb`` is None or ``embeddings`` itself. True: the first n references are the anchors.
            False: none. A tensor (n,): the row of ``ref_emb`` that each anchor is, -1 for none.
        pairs: in place of labels, integers (n, m): 1 for a positive pair, -1 for a negative one, 0 for none.
        ids, ref_ids: integers (n,) and (m,), false-negative masking: samples with equal ids, as duplicates have,
            are no pair. ``ref_ids`` goes with ``ref_emb``.
        weights: floating (n,), not negative: the anchors' losses and counts are multiplied by them, so that the
            mean is a weighted one. Constants of the gradient.
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.

    Source: Yeh et al., ECCV 2022 (arXiv 2110.06848); with several positives their mean.
    """
    settings = {"temperature": temperature}
    loss, params = formula_of("dcl", settings, distance, reduction)
    return pair_loss(
        loss,
        params,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        distance=distance,
        reduction=reduction,
        indices_tuple=indices_tuple,
        exclude_self=exclude_self,
        pairs=pairs,
        ids=ids,
        ref_ids=ref_ids,
        weights=weights,
        backend=backend,
    )


def sincere_loss(
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
    pairs: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    weights: Tensor | None = None,
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
        temperature: τ, positive.
        distance: the score of a pair, a metric of :func:`fastpair.functional.pairwise_distance`.
        reduction: "mean": over the anchors that have positives; "sum": the sum of the anchors' losses; "none": the
            losses, shape (n,); "totals": what the mean is made of, which adds up over parts of a batch: (S, c,
            S_neg, c_neg) with mean = S / c + S_neg / c_neg, a part being 0 where its c is. The last two belong to
            the negatives where these have a mean of their own, else they are 0; counts have no gradient.
        indices_tuple: the pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative),
            integer tensors of row numbers as miners make them, used in place of those that the labels make. A pair
            that is listed twice counts once, but twice in contrastive_loss and ntxent_loss. The loss is then plain
            PyTorch on the listed scores, whose memory grows with the list.
        exclude_self: which pairs are left out because both sides are one sample. None: the pairs (i, i), when and
            only when ``ref_emb`` is None or ``embeddings`` itself. True: the first n references are the anchors.
            False: none. A tensor (n,): the row of ``ref_emb`` that each anchor is, -1 for none.
        pairs: in place of labels, integers (n, m): 1 for a positive pair, -1 for a negative one, 0 for none.
        ids, ref_ids: integers (n,) and (m,), false-negative masking: samples with equal ids, as duplicates have,
            are no pair. ``ref_ids`` goes with ``ref_emb``.
        weights: floating (n,), not negative: the anchors' losses and counts are multiplied by them, so that the
            mean is a weighted one. Constants of the gradient.
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.

    Source: Feeney and Hughes (arXiv 2309.14277).
    """
    settings = {"temperature": temperature}
    loss, params = formula_of("sincere", settings, distance, reduction)
    return pair_loss(
        loss,
        params,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        distance=distance,
        reduction=reduction,
        indices_tuple=indices_tuple,
        exclude_self=exclude_self,
        pairs=pairs,
        ids=ids,
        ref_ids=ref_ids,
        weights=weights,
        backend=backend,
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
    pairs: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    weights: Tensor | None = None,
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
        temperature: τ, positive.
        distance: the score of a pair, a metric of :func:`fastpair.functional.pairwise_distance`.
        reduction: "mean": over the positive pairs; "sum": the sum of the anchors' losses; "none": the losses, shape
            (n,); "totals": what the mean is made of, which adds up over parts of a batch: (S, c, S_neg, c_neg) with
            mean = S / c + S_neg / c_neg, a part being 0 where its c is. The last two belong to the negatives where
            these have a mean of their own, else they are 0; counts have no gradient.
        indices_tuple: the pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative),
            integer tensors of row numbers as miners make them, used in place of those that the labels make. A pair
            that is listed twice counts once, but twice in contrastive_loss and ntxent_loss. The loss is then plain
            PyTorch on the listed scores, whose memory grows with the list.
        exclude_self: which pairs are left out because both sides are one sample. None: the pairs (i, i), when and
            only when ``ref_emb`` is None or ``embeddings`` itself. True: the first n references are the anchors.
            False: none. A tensor (n,): the row of ``ref_emb`` that each anchor is, -1 for none.
        pairs: in place of labels, integers (n, m): 1 for a positive pair, -1 for a negative one, 0 for none.
        ids, ref_ids: integers (n,) and (m,), false-negative masking: samples with equal ids, as duplicates have,
            are no pair. ``ref_ids`` goes with ``ref_emb``.
        weights: floating (n,), not negative: the anchors' losses and counts are multiplied by them, so that the
            mean is a weighted one. Constants of the gradient.
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.

    Source: Sohn, NeurIPS 2016; Chen et al., ICML 2020 (arXiv 2002.05709); with several positives each against the
    negatives, as in SINCERE.
    """
    settings = {"temperature": temperature}
    loss, params = formula_of("ntxent", settings, distance, reduction)
    return pair_loss(
        loss,
        params,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        distance=distance,
        reduction=reduction,
        indices_tuple=indices_tuple,
        exclude_self=exclude_self,
        pairs=pairs,
        ids=ids,
        ref_ids=ref_ids,
        weights=weights,
        backend=backend,
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
    pairs: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    weights: Tensor | None = None,
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
        distance: the score of a pair, a metric of :func:`fastpair.functional.pairwise_distance`.
        reduction: "mean": over all anchors, those without pairs included; "sum": the sum of the anchors' losses;
            "none": the losses, shape (n,); "totals": what the mean is made of, which adds up over parts of a batch:
            (S, c, S_neg, c_neg) with mean = S / c + S_neg / c_neg, a part being 0 where its c is. The last two
            belong to the negatives where these have a mean of their own, else they are 0; counts have no gradient.
        indices_tuple: the pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative),
            integer tensors of row numbers as miners make them, used in place of those that the labels make. A pair
            that is listed twice counts once, but twice in contrastive_loss and ntxent_loss. The loss is then plain
            PyTorch on the listed scores, whose memory grows with the list.
        exclude_self: which pairs are left out because both sides are one sample. None: the pairs (i, i), when and
            only when ``ref_emb`` is None or ``embeddings`` itself. True: the first n references are the anchors.
            False: none. A tensor (n,): the row of ``ref_emb`` that each anchor is, -1 for none.
        pairs: in place of labels, integers (n, m): 1 for a positive pair, -1 for a negative one, 0 for none.
        ids, ref_ids: integers (n,) and (m,), false-negative masking: samples with equal ids, as duplicates have,
            are no pair. ``ref_ids`` goes with ``ref_emb``.
        weights: floating (n,), not negative: the anchors' losses and counts are multiplied by them, so that the
            mean is a weighted one. Constants of the gradient.
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.

    Source: Wang et al., CVPR 2019 (arXiv 1904.06627), eq. 16; its pair mining is left to the user.
    """
    settings = {"alpha": alpha, "beta": beta, "base": base}
    loss, params = formula_of("multi_similarity", settings, distance, reduction)
    return pair_loss(
        loss,
        params,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        distance=distance,
        reduction=reduction,
        indices_tuple=indices_tuple,
        exclude_self=exclude_self,
        pairs=pairs,
        ids=ids,
        ref_ids=ref_ids,
        weights=weights,
        backend=backend,
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
    pairs: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    weights: Tensor | None = None,
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
        distance: the score of a pair, "cosine" or "dot".
        reduction: "mean": over the anchors that have positives and negatives; the others have loss 0; "sum": the
            sum of the anchors' losses; "none": the losses, shape (n,); "totals": what the mean is made of, which
            adds up over parts of a batch: (S, c, S_neg, c_neg) with mean = S / c + S_neg / c_neg, a part being 0
            where its c is. The last two belong to the negatives where these have a mean of their own, else they are
            0; counts have no gradient.
        indices_tuple: the pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative),
            integer tensors of row numbers as miners make them, used in place of those that the labels make. A pair
            that is listed twice counts once, but twice in contrastive_loss and ntxent_loss. The loss is then plain
            PyTorch on the listed scores, whose memory grows with the list.
        exclude_self: which pairs are left out because both sides are one sample. None: the pairs (i, i), when and
            only when ``ref_emb`` is None or ``embeddings`` itself. True: the first n references are the anchors.
            False: none. A tensor (n,): the row of ``ref_emb`` that each anchor is, -1 for none.
        pairs: in place of labels, integers (n, m): 1 for a positive pair, -1 for a negative one, 0 for none.
        ids, ref_ids: integers (n,) and (m,), false-negative masking: samples with equal ids, as duplicates have,
            are no pair. ``ref_ids`` goes with ``ref_emb``.
        weights: floating (n,), not negative: the anchors' losses and counts are multiplied by them, so that the
            mean is a weighted one. Constants of the gradient.
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.

    Source: Sun et al., CVPR 2020 (arXiv 2002.10857), eq. 6 and 8.
    """
    settings = {"m": m, "gamma": gamma}
    loss, params = formula_of("circle", settings, distance, reduction)
    return pair_loss(
        loss,
        params,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        distance=distance,
        reduction=reduction,
        indices_tuple=indices_tuple,
        exclude_self=exclude_self,
        pairs=pairs,
        ids=ids,
        ref_ids=ref_ids,
        weights=weights,
        backend=backend,
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
    pairs: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    weights: Tensor | None = None,
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
        distance: the score of a pair, a metric of :func:`fastpair.functional.pairwise_distance`.
        reduction: "mean": over the anchors that have positives and negatives; the others have loss 0
            (pytorch-metric-learning drops the missing sum from the formula instead); "sum": the sum of the anchors'
            losses; "none": the losses, shape (n,); "totals": what the mean is made of, which adds up over parts of
            a batch: (S, c, S_neg, c_neg) with mean = S / c + S_neg / c_neg, a part being 0 where its c is. The last
            two belong to the negatives where these have a mean of their own, else they are 0; counts have no
            gradient.
        indices_tuple: the pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative),
            integer tensors of row numbers as miners make them, used in place of those that the labels make. A pair
            that is listed twice counts once, but twice in contrastive_loss and ntxent_loss. The loss is then plain
            PyTorch on the listed scores, whose memory grows with the list.
        exclude_self: which pairs are left out because both sides are one sample. None: the pairs (i, i), when and
            only when ``ref_emb`` is None or ``embeddings`` itself. True: the first n references are the anchors.
            False: none. A tensor (n,): the row of ``ref_emb`` that each anchor is, -1 for none.
        pairs: in place of labels, integers (n, m): 1 for a positive pair, -1 for a negative one, 0 for none.
        ids, ref_ids: integers (n,) and (m,), false-negative masking: samples with equal ids, as duplicates have,
            are no pair. ``ref_ids`` goes with ``ref_emb``.
        weights: floating (n,), not negative: the anchors' losses and counts are multiplied by them, so that the
            mean is a weighted one. Constants of the gradient.
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.

    Source: Hermans et al., 2017 (arXiv 1703.07737), eq. 8, after Song et al., CVPR 2016.
    """
    settings = {"neg_margin": neg_margin, "pos_margin": pos_margin}
    loss, params = formula_of("generalized_lifted_structure", settings, distance, reduction)
    return pair_loss(
        loss,
        params,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        distance=distance,
        reduction=reduction,
        indices_tuple=indices_tuple,
        exclude_self=exclude_self,
        pairs=pairs,
        ids=ids,
        ref_ids=ref_ids,
        weights=weights,
        backend=backend,
    )

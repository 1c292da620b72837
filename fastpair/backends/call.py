"""The arguments of the operators that compute a loss and its gradients, defined once.

``row_grad`` holds the incoming gradients of the losses (n,), or of the totals (4,), in place of the reduction's own
weights. ``grad_...`` says whether the gradient by that tensor is wanted. Results are the value and the gradients in
the accumulation dtype, those that are not wanted being empty.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class PairLossCall(NamedTuple):
    """A loss over all pairs of anchors and references, less the pairs (i, self_index[i]); without references, over the
    batch's own pairs less the self-pairs. ``labels``: integers (n,), or sets of them, packed to the bits of int32 words
    (n, words); pairs with equal labels, or with sets that share one, are positive. Pairs with equal ``ids`` are none.
    ``pairs`` (n, m), int8: 1 for positive pairs, -1 for negative ones, in place of all these. The losses and the counts
    of anchors are multiplied by ``weights`` (n,). ``anchor_scalars`` (K, n), ``ref_scalars`` (K', m): the numbers of
    rows that a formula reads. ``two_sided``: the references are anchors as well, and the result is the mean over both
    sides. ``params``: see :class:`fastpair.formulas.formula.PairFormula`; ``learned`` (P,), in their place, are
    those of formulas that learn some. Only on a CPU can there be a gradient by ``params``."""

    embeddings: Tensor
    ref_emb: Tensor | None
    learned: Tensor | None
    labels: Tensor
    ref_labels: Tensor | None
    self_index: Tensor | None
    row_grad: Tensor | None
    loss: str
    params: list[float]
    distance: str
    two_sided: bool
    reduction: str
    grad_embeddings: bool
    grad_ref: bool
    grad_learned: bool
    ids: Tensor | None = None
    ref_ids: Tensor | None = None
    pairs: Tensor | None = None
    weights: Tensor | None = None
    anchor_scalars: Tensor | None = None
    ref_scalars: Tensor | None = None


class LabelledPairLossCall(NamedTuple):
    """A :class:`PairLossCall` without the fields that most calls leave empty, each of which costs an operator half a
    microsecond."""

    embeddings: Tensor
    ref_emb: Tensor | None
    labels: Tensor
    ref_labels: Tensor | None
    self_index: Tensor | None
    row_grad: Tensor | None
    loss: str
    params: list[float]
    distance: str
    two_sided: bool
    reduction: str
    grad_embeddings: bool
    grad_ref: bool

    def whole(self) -> PairLossCall:
        return PairLossCall(**self._asdict(), learned=None, grad_learned=False)


class PrefixPairLossCall(NamedTuple):
    """A :class:`PairLossCall` whose loss is the sum of those of the first ``prefixes[k]`` columns, which rise with k,
    times ``prefix_weights[k]``: of similarities, with no maxima for terms and no totals."""

    embeddings: Tensor
    ref_emb: Tensor | None
    learned: Tensor | None
    labels: Tensor
    ref_labels: Tensor | None
    self_index: Tensor | None
    row_grad: Tensor | None
    loss: str
    params: list[float]
    prefixes: list[int]
    prefix_weights: list[float]
    distance: str
    two_sided: bool
    reduction: str
    grad_embeddings: bool
    grad_ref: bool
    grad_learned: bool
    ids: Tensor | None = None
    ref_ids: Tensor | None = None
    pairs: Tensor | None = None
    weights: Tensor | None = None
    anchor_scalars: Tensor | None = None
    ref_scalars: Tensor | None = None


class ListedPairLossCall(NamedTuple):
    """A pair loss over listed pairs (anchors, positives) and (negative_anchors, negatives), vectors of row numbers of
    the embeddings and of the references (without these: of the embeddings); without ``negative_anchors``, over triplets
    (anchors, positives, negatives). A pair counts as often as it is listed, without ``repeats`` once; it must not be
    listed as both kinds then. "triplet" and "smooth_triplet" are sums over triplets, pairs making all that they can;
    ``swap``: the negative may be closer to the positive than to the anchor. The rest is as in :class:`PairLossCall`."""

    embeddings: Tensor
    ref_emb: Tensor | None
    learned: Tensor | None
    anchors: Tensor
    positives: Tensor
    negative_anchors: Tensor | None
    negatives: Tensor
    row_grad: Tensor | None
    loss: str
    params: list[float]
    distance: str
    swap: bool
    repeats: bool
    reduction: str
    grad_embeddings: bool
    grad_ref: bool
    grad_learned: bool
    weights: Tensor | None = None
    anchor_scalars: Tensor | None = None
    ref_scalars: Tensor | None = None


class CrossEntropyCall(NamedTuple):
    """Cross-entropy of the logits of embeddings and class weights; ``logits`` says how they are computed: "linear",
    or "cosface" or "arcface", which are functions of cosines."""

    embeddings: Tensor
    weight: Tensor
    bias: Tensor | None
    labels: Tensor
    row_grad: Tensor | None
    logits: str
    scale: float
    margin: float
    label_smoothing: float
    ignore_index: int
    reduction: str
    grad_embeddings: bool
    grad_weight: bool
    grad_bias: bool


class SPCECall(NamedTuple):
    embeddings: Tensor
    labels: Tensor
    row_grad: Tensor | None
    reduction: str
    grad_embeddings: bool

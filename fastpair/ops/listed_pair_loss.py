"""``fastpair::listed_pair_loss``: a loss over the pairs or triplets of lists, with its gradients, in one call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastpair.ops.autograd import fused_loss
from fastpair.ops.parameters import separated


def listed_pair_loss(
    loss: str,
    params: Sequence[float | Tensor],
    embeddings: Tensor,
    ref_emb: Tensor | None,
    lists: tuple[Tensor, ...],
    distance: str,
    swap: bool,
    repeats: bool,
    reduction: str,
    backend: str,
    weights: Tensor | None = None,
    anchor_scalars: Tensor | None = None,
    ref_scalars: Tensor | None = None,
) -> Tensor:
    """The arguments of ``ListedPairLossCall``. ``lists``: pairs (anchor, positive, anchor, negative) or triplets
    (anchor, positive, negative). ``backend``: one that has the operator."""
    anchors, positives, *other = lists[:-1]
    tensors = (embeddings, ref_emb, None, anchors, positives, *(other or [None]), lists[-1])
    numbers, learned = separated(params)
    settings = (loss, numbers, distance, swap, repeats, reduction)
    return fused_loss("listed_pair_loss", backend, tensors, settings, (weights, anchor_scalars, ref_scalars), learned)

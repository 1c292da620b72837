"""The arguments of an operator, once."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class PairLossCall(NamedTuple):
    """Of ``fastpair::pair_loss``, in the order of its schema: see :mod:`fastpair.ops.pair_loss`."""

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

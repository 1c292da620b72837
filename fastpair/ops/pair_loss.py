"""``fastpair::pair_loss``: a loss over all pairs of anchors and references, with its gradients, in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpair.backends import reference
from fastpair.config import choose_backend
from fastpair.ops import checks
from fastpair.ops.autograd import fake_fused_loss, fused_loss

torch.library.define(
    "fastpair::pair_loss",
    "(Tensor embeddings, Tensor? ref_emb, Tensor labels, Tensor? ref_labels, Tensor? row_grad, str loss,"
    " float[] params, str distance, str reduction, bool grad_embeddings, bool grad_ref) -> (Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.register_fake("fastpair::pair_loss")
def _(embeddings, ref_emb, labels, ref_labels, row_grad, loss, params, distance, reduction, *wanted):
    return fake_fused_loss((embeddings, ref_emb), reduction, wanted)


def pair_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    loss: str,
    params: list[float],
    distance: str,
    reduction: str,
    backend: str | None,
) -> Tensor:
    checks.embeddings_and_labels(embeddings, labels)
    checks.references(embeddings, ref_emb, ref_labels)
    checks.one_of("distance", distance, checks.METRICS)
    checks.one_of("reduction", reduction, checks.REDUCTIONS)
    settings = (loss, params, distance, reduction)
    if choose_backend(embeddings.device.type, backend) == "reference":
        return reference.pair_loss(embeddings, labels, ref_emb, ref_labels, *settings)
    tensors = (embeddings, ref_emb, labels, ref_labels)
    return fused_loss(torch.ops.fastpair.pair_loss.default, tensors, settings, differentiable=2)

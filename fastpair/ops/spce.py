"""``fastpair::spce``: the simplified pairwise cross-entropy, with its gradient, in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpair.backends import reference
from fastpair.config import choose_backend
from fastpair.ops import checks
from fastpair.ops.autograd import fake_fused_loss, fused_loss

torch.library.define(
    "fastpair::spce",
    "(Tensor embeddings, Tensor labels, Tensor? row_grad, str reduction, bool grad_embeddings) -> (Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.register_fake("fastpair::spce")
def _(embeddings, labels, row_grad, reduction, *wanted):
    return fake_fused_loss((embeddings,), reduction, wanted)


def spce(embeddings: Tensor, labels: Tensor, reduction: str, backend: str | None) -> Tensor:
    checks.embeddings_and_labels(embeddings, labels)
    checks.one_of("reduction", reduction, checks.REDUCTIONS)
    if choose_backend(embeddings.device.type, backend) == "reference":
        return reference.spce(embeddings, labels, reduction)
    return fused_loss(torch.ops.fastpair.spce.default, (embeddings, labels), (reduction,), differentiable=1)

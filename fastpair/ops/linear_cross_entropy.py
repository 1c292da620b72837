"""``fastpair::linear_cross_entropy``: cross-entropy of a linear classifier, with all its gradients, in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpair.backends import reference
from fastpair.config import choose_backend
from fastpair.ops import checks
from fastpair.ops.autograd import fake_fused_loss, fused_loss
from fastpair.ops.kernels import define, operator
from fastpair.ops.pair_loss import is_large

# On a GPU all logits are held at a time up to so many. Reckoned in benchmarks/PREDICTIONS.md, not measured.
SMALL = 1 << 25
# The operators' ignore_index where no label is ignored.
NO_LABEL = torch.iinfo(torch.int64).min


def _fake(
    embeddings, weight, bias, labels, row_grad, logits, scale, margin, label_smoothing, ignore_index, reduction, *wanted
):
    return fake_fused_loss((embeddings, weight, bias), reduction, wanted)


define(
    "linear_cross_entropy",
    "(Tensor embeddings, Tensor weight, Tensor? bias, Tensor labels, Tensor? row_grad, str logits,"
    " float scale, float margin, float label_smoothing, int ignore_index, str reduction, bool grad_embeddings,"
    " bool grad_weight, bool grad_bias)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _fake,
)


def linear_cross_entropy(
    embeddings: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    label_smoothing: float,
    ignore_index: int | None,
    reduction: str,
    backend: str | None,
    *,
    logits: str = "linear",
    scale: float = 1.0,
    margin: float = 0.0,
    weight_name: str = "weight",
) -> Tensor:
    """``logits``: how they are made of embeddings and class weights, a key of ``reference.LOGITS``."""
    checks.embeddings_and_labels(embeddings, labels)
    checks.matrix(weight_name, weight)
    if bias is not None:
        checks.vector_like("bias", bias, "weight", weight)
    device = embeddings.device.type
    if torch.is_autocast_enabled(device) and embeddings.dtype != torch.float64:
        # Products in the autocast dtype, as F.linear takes them; the parameters and their gradients keep their own.
        dtype = torch.get_autocast_dtype(device)
        embeddings, weight = embeddings.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    checks.like(weight_name, weight, "embeddings", embeddings)
    if weight.shape[0] == 0:
        raise ValueError(f"{weight_name} must have at least one row, one a class, got shape {tuple(weight.shape)}")
    checks.fraction("label_smoothing", label_smoothing)
    if ignore_index is not None:
        checks.integer("ignore_index", ignore_index)
    checks.class_range(labels, weight.shape[0], ignore_index)
    ignore_index = NO_LABEL if ignore_index is None else ignore_index
    checks.one_of("reduction", reduction, checks.REDUCTIONS)
    settings = (logits, scale, margin, label_smoothing, ignore_index, reduction)
    backend = choose_backend(device, backend, embeddings.dtype, large=is_large(embeddings, weight, SMALL))
    if backend == "reference":
        return reference.linear_cross_entropy(embeddings, weight, labels, bias, *settings)
    tensors = (embeddings, weight, bias, labels)
    return fused_loss(operator("linear_cross_entropy", backend), tensors, settings, differentiable=3)

"""``fastpair::linear_cross_entropy``: cross-entropy of a linear classifier, with all its gradients, in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpair.backends import choose_backend, dense
from fastpair.backends.call import CrossEntropyCall
from fastpair.ops import checks
from fastpair.ops.autograd import fused_loss
from fastpair.ops.pair_loss import is_large

# On a GPU up to this many logits are held all at once: an estimate in benchmarks/PREDICTIONS.md, not measured.
MOST_LOGITS = 1 << 25
# The ignore_index that the operators get where no label is ignored.
NO_LABEL = torch.iinfo(torch.int64).min


def linear_cross_entropy(
    embeddings: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    logits: str = "linear",
    scale: float = 1.0,
    margin: float = 0.0,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    reduction: str,
    backend: str | None = None,
    weight_name: str = "weight",
) -> Tensor:
    """``logits``: see ``CrossEntropyCall``. ``weight_name``: what errors call the class weights."""
    labels = checks.embeddings_and_labels(embeddings, labels)
    checks.matrix(weight_name, weight)
    if bias is not None:
        checks.vector_like("bias", bias, "weight", weight)
    device = embeddings.device.type
    if torch.is_autocast_enabled(device) and embeddings.dtype != torch.float64:
        # Products are in the autocast dtype, as in F.linear; the parameters and their gradients keep their own dtype.
        dtype = torch.get_autocast_dtype(device)
        embeddings, weight = embeddings.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    checks.same_columns(weight_name, weight, "embeddings", embeddings)
    embeddings, weight, *bias = checks.one_dtype(embeddings, weight, *([] if bias is None else [bias]))
    bias = bias[0] if bias else None
    if weight.shape[0] == 0:
        raise ValueError(f"{weight_name} must have at least one row, one a class, got shape {tuple(weight.shape)}")
    tensors = (embeddings, weight, bias, labels)
    ignored = NO_LABEL if ignore_index is None else ignore_index
    settings = (logits, scale, margin, label_smoothing, ignored, reduction)
    backend = choose_backend(device, backend, embeddings.dtype, large=is_large(embeddings, weight, MOST_LOGITS))
    if backend == "cpu" and not torch.compiler.is_compiling():
        try:
            return fused_loss("linear_cross_entropy", backend, tensors, settings)
        except RuntimeError:  # the kernel looks at each label anyway: the check is to say what is wrong
            checks.class_range(labels, weight.shape[0], ignore_index)
            raise
    checks.class_range(labels, weight.shape[0], ignore_index)
    if backend == "reference":
        return dense.linear_cross_entropy(CrossEntropyCall(*tensors, None, *settings, *(False,) * 3))
    return fused_loss("linear_cross_entropy", backend, tensors, settings)

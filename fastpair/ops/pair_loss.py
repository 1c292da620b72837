"""``fastpair::pair_loss``: a loss over all pairs of anchors and references, with its gradients, in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpair.backends import choose_backend, dense
from fastpair.backends.call import PairLossCall
from fastpair.formulas.pair_losses import TRIPLETS
from fastpair.ops import checks
from fastpair.ops.autograd import fused_loss

# On a GPU a score matrix of up to this many elements is held whole, as the launches for visiting it in parts would cost
# the host more: see benchmarks/PREDICTIONS.md.
MOST_SCORES = 1 << 20
# The kernels for small batches count elements in 32 bits.
MOST_ELEMENTS = 1 << 27


def is_large(x: Tensor, y: Tensor, most_scores: int = MOST_SCORES) -> bool:
    """Whether the rows of x and y make too many pairs for the kernels for small batches. A CPU has no such kernels, and
    a check there would tie an exported program to its number of rows."""
    return not x.is_cpu and (
        x.shape[0] * y.shape[0] > most_scores or x.numel() > MOST_ELEMENTS or y.numel() > MOST_ELEMENTS
    )


def pair_loss(
    loss: str,
    params: list[float],
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    *,
    distance: str,
    reduction: str,
    backend: str | None = None,
    exclude_self: bool | Tensor | None = None,
    two_sided: bool = False,
) -> Tensor:
    """``loss`` and ``params``: see ``PairLossCall``. ``exclude_self`` None: True if the references are the embeddings
    themselves."""
    checks.embeddings_and_labels(embeddings, labels)
    checks.references(embeddings, ref_emb, ref_labels)
    ref_emb, ref_labels, self_index = _references(embeddings, labels, ref_emb, ref_labels, exclude_self)
    settings = (loss, params, distance, two_sided, reduction)
    tensors = (embeddings, ref_emb, labels, ref_labels, self_index)
    backend = choose_backend(
        embeddings.device.type,
        backend,
        embeddings.dtype,
        lacking=("cuda",) if loss in TRIPLETS else (),
        large=is_large(embeddings, embeddings if ref_emb is None else ref_emb),
    )
    if backend == "reference":
        return dense.pair_loss(PairLossCall(*tensors, None, *settings, False, False))
    return fused_loss("pair_loss", backend, tensors, settings)


def _references(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    exclude_self: bool | Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The references, their labels and each anchor's own row among them; all None for the batch's own pairs."""
    if exclude_self is None:
        exclude_self = ref_emb is None or ref_emb is embeddings
    if isinstance(exclude_self, bool):
        if ref_emb is None or ref_emb is embeddings:
            if exclude_self and (ref_labels is None or ref_labels is labels):
                return None, None, None
            ref_emb, ref_labels = embeddings, labels if ref_labels is None else ref_labels
        if not exclude_self:
            return ref_emb, ref_labels, None
        if ref_emb.shape[0] < embeddings.shape[0]:
            raise ValueError(
                "exclude_self=True says that the first rows of ref_emb are the embeddings, but it has "
                f"{len(ref_emb)} rows for {len(embeddings)} embeddings"
            )
        return ref_emb, ref_labels, torch.arange(embeddings.shape[0], device=embeddings.device)
    if ref_emb is None:
        raise ValueError("exclude_self must be True, False or None without ref_emb, got a tensor")
    checks.self_index(embeddings, ref_emb, exclude_self)
    return ref_emb, ref_labels, exclude_self

"""``fastpair::pair_loss``: a loss over all pairs of anchors and references, with its gradients, in one call."""

from __future__ import annotations

from torch import Tensor

from fastpair.backends import added, choose_backend, dense
from fastpair.backends.call import PairLossCall
from fastpair.formulas.pair_losses import ADDED, TRIPLETS
from fastpair.ops.autograd import fused_loss
from fastpair.ops.relation import relation

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
    labels: Tensor | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    *,
    distance: str,
    reduction: str,
    backend: str | None = None,
    two_sided: bool = False,
    weights: Tensor | None = None,
    **of_pairs: bool | Tensor | None,
) -> Tensor:
    """``loss`` and ``params``: see ``PairLossCall``. ``of_pairs``: the further arguments of ``relation``."""
    given = relation(embeddings, labels, ref_emb, ref_labels, **of_pairs)
    settings = (loss, params, distance, two_sided, reduction)
    tensors = (embeddings, *given, weights)
    lacking = ("cuda",) if loss in TRIPLETS or loss in ADDED else ()
    if loss in TRIPLETS and not given.by_labels:
        lacking = ("cuda", "triton")
    backend = choose_backend(
        embeddings.device.type,
        backend,
        embeddings.dtype,
        lacking=lacking,
        large=is_large(embeddings, embeddings if given.ref_emb is None else given.ref_emb),
    )
    if backend == "cpu" and loss in ADDED and not added.compiled(loss, embeddings.dtype, distance):
        backend = "reference"
    if backend == "reference":
        evaluate = dense.in_blocks if loss in ADDED else dense.pair_loss
        return evaluate(PairLossCall(*tensors, None, *settings, False, False))
    if backend == "cuda" and not given.by_labels:  # these batches are small
        tensors = (embeddings, *given.as_pairs(embeddings), weights)
    return fused_loss("pair_loss", backend, tensors, settings)

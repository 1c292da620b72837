"""``fastpair::pair_loss``: a loss over all pairs of anchors and references, with its gradients, in one call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastpair.backends import added, choose_backend, dense
from fastpair.backends.call import PairLossCall
from fastpair.formulas.pair_losses import TRIPLETS
from fastpair.ops import checks, prefixes
from fastpair.ops.autograd import fused_loss
from fastpair.ops.parameters import separated, stacked
from fastpair.ops.relation import Relation, relation

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


def labelled_pair_loss(
    loss: str,
    params: list[float],
    embeddings: Tensor,
    labels: Tensor,
    distance: str,
    reduction: str,
    backend: str | None = None,
) -> Tensor:
    """:func:`pair_loss` of a batch's own pairs that labels alone make: the most frequent call, by the shortest way
    where it runs on a CPU."""
    given = relation(embeddings, labels, None, None)
    plain = given.labels.ndim == 1 and not added.is_added(loss) and prefixes.asked_for() is None
    if embeddings.is_cpu and plain and choose_backend("cpu", backend, embeddings.dtype) == "cpu":
        tensors = (embeddings, None, given.labels, None, None)
        return fused_loss("labelled_pair_loss", "cpu", tensors, (loss, params, distance, False, reduction))
    return pair_loss(loss, params, embeddings, given, distance, reduction, backend)


def pair_loss(
    loss: str,
    params: Sequence[float | Tensor],
    embeddings: Tensor,
    given: Relation,
    distance: str,
    reduction: str,
    backend: str | None = None,
    two_sided: bool = False,
    weights: Tensor | None = None,
    anchor_scalars: Tensor | None = None,
    ref_scalars: Tensor | None = None,
) -> Tensor:
    """The arguments of ``PairLossCall``. ``params``: tensors of one element among them learn."""
    if given.ref_emb is not None and given.ref_emb.dtype != embeddings.dtype:
        embeddings, ref_emb = checks.one_dtype(embeddings, given.ref_emb)
        given = given._replace(ref_emb=ref_emb)
    numbers, learned = separated(params)
    settings = (loss, numbers, distance, two_sided, reduction)
    is_added = added.is_added(loss)
    lacking = ("cuda",) if loss in TRIPLETS or is_added else ()
    if loss in TRIPLETS and not given.by_labels:
        lacking = ("cuda", "triton")
    backend = choose_backend(
        embeddings.device.type,
        backend,
        embeddings.dtype,
        lacking=lacking,
        large=is_large(embeddings, embeddings if given.ref_emb is None else given.ref_emb),
    )
    if backend == "cpu" and is_added and not added.compiled(loss, embeddings.dtype, distance):
        backend = "reference"
    if backend == "cuda" and not given.by_labels:  # these batches are small
        given = given.as_pairs(embeddings)
    of_prefixes = prefixes.asked_for()
    if of_prefixes is not None:
        prefixes.check_one_sweep(loss, distance, reduction, backend)
    labelled = (given.labels, given.ref_labels, given.self_index)
    labels_alone = given.by_labels and not learned and weights is anchor_scalars is ref_scalars is of_prefixes is None
    if labels_alone and backend != "reference":
        return fused_loss("labelled_pair_loss", backend, (embeddings, given.ref_emb, *labelled), settings)
    tensors = (embeddings, given.ref_emb, None, *labelled)
    further = (given.ids, given.ref_ids, given.pairs, weights, anchor_scalars, ref_scalars)
    if backend == "reference":
        call = PairLossCall(*tensors, None, *settings, False, False, False, *further)
        if learned:
            call = call._replace(learned=stacked(learned, embeddings))
        return dense.in_blocks(call) if is_added else dense.pair_loss(call)
    if of_prefixes is not None:
        settings = (loss, numbers, *of_prefixes, distance, two_sided, reduction)
        return fused_loss("prefix_pair_loss", backend, tensors, settings, further, learned)
    return fused_loss("pair_loss", backend, tensors, settings, further, learned)

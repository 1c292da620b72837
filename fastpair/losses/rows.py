"""What losses of two views are made of: log-sum-exps of rows of scores, and the scores of rows that belong together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastpair import ops
from fastpair.backends import added, dense
from fastpair.formulas.variants import REF_BIAS
from fastpair.losses import options
from fastpair.losses.from_pml import distance_name
from fastpair.numerics import accumulate_dtype
from fastpair.ops import checks
from fastpair.ops.parameters import learn, single

__all__ = ["row_logsumexp"]

RULES = {"temperature": options.learnable(options.positive), "distance": options.distance}


def row_logsumexp(
    embeddings: Tensor,
    ref_emb: Tensor | None = None,
    *,
    temperature: float | Tensor = 1.0,
    distance: str | nn.Module = "cosine",
    exclude_self: bool | Tensor | None = None,
    pairs: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    ref_bias: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""The log-sum-exp of each row of the scores, without the matrix: what softmax losses are made of.

        z_i = log sum_j exp(s_ij / temperature + b_j)

    with s = -d for a distance d; minus infinity, with gradient zero, for a row without pairs. It can be differentiated
    once, by both sides and by the temperature.

    Args:
        embeddings: (n, d), float32, float64, bfloat16 or float16.
        ref_emb: (m, d). Default: the embeddings themselves.
        temperature: positive; a number or a tensor of one element, which may require a gradient.
        distance: the score of a pair, a metric of :func:`fastpair.functional.pairwise_distance`.
        exclude_self: which pairs of a sample with itself are left out, as for the pair losses.
        pairs: (n, m) integers or booleans, 0 for the pairs that are left out.
        ids, ref_ids: integers (n,) and (m,): pairs with equal ids are left out.
        ref_bias: b, floating (m,). A constant of the gradient.
        backend: the kernels, see :func:`fastpair.use_backend`.

    Returns:
        (n,), float64 for float64, else float32.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.
    """
    distance = distance_name(distance)
    options.check(RULES, temperature=temperature, distance=distance)
    checks.matrix("embeddings", embeddings)
    if ref_emb is not None:
        embeddings, ref_emb = checks.both_sides(embeddings, ref_emb)
    labels = ref_labels = None
    if pairs is not None:
        checks.tensor("pairs", pairs)
        if pairs.dtype not in (torch.bool, *checks.INTEGER):
            raise TypeError(f"pairs must be integers or booleans, got {pairs.dtype}")
        pairs = -(pairs != 0).to(torch.int8)
    elif ref_emb is None:
        labels = torch.arange(len(embeddings), device=embeddings.device)
        if exclude_self is False:  # the sample itself is then a reference like the others
            ref_emb, ref_labels = embeddings, -1 - labels
    else:
        labels, ref_labels = (
            torch.full((len(x),), value, device=x.device) for x, value in ((embeddings, 0), (ref_emb, 1))
        )
    of_pairs = (exclude_self, pairs, ids, ref_ids)
    return negatives_logsumexp(
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        of_pairs,
        1 / single(temperature, embeddings),
        distance,
        backend,
        ref_bias=ref_bias,
    )


def negatives_logsumexp(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    of_pairs: tuple[bool | Tensor | None, ...],
    scale: float | Tensor,
    distance: str,
    backend: str | None = None,
    *,
    hardness: float = 0.0,
    ref_bias: Tensor | None = None,
    limits: Tensor | None = None,
) -> Tensor:
    """log sum exp(scale s_ij + hardness s_ij + b_j) over the negatives that labels and ``of_pairs``, the further
    arguments of ``relation``, make, the second s being a constant, without those of a closeness above ``limits``
    (n,)."""
    loss = "row_logsumexp"
    params = [scale, hardness]
    references = ("embeddings", embeddings) if ref_emb is None else ("ref_emb", ref_emb)
    scalars = {"anchor_scalars": None, "ref_scalars": None}
    if ref_bias is not None:
        scalars["ref_scalars"] = checks.scalars("ref_scalars", {REF_BIAS: ref_bias}, (REF_BIAS,), *references)
    if limits is not None:
        scalars["anchor_scalars"] = limits.detach()[None]
    if ref_bias is not None or limits is not None:
        loss = added.add_variant(loss, ref_bias is not None, limits is not None, learn(params))
    given = ops.relation(embeddings, labels, ref_emb, ref_labels, *of_pairs)
    return ops.pair_loss(loss, params, embeddings, given, distance, "none", backend, **scalars)


def own_rows(embeddings: Tensor, ref_emb: Tensor) -> tuple[Tensor, Tensor]:
    """Labels by which anchor i belongs to reference i, and further references to none."""
    n, m = embeddings.shape[0], ref_emb.shape[0]
    if m < n:
        raise ValueError(f"ref_emb must have {n} rows or more like embeddings, got {m}")
    ref_labels = torch.arange(m, device=embeddings.device)
    return ref_labels if m == n else ref_labels[:n], ref_labels


def own_rows_related(embeddings: Tensor, ref_emb: Tensor) -> ops.Relation:
    """The relation of two sides, already checked, whose rows i belong together."""
    return ops.Relation(ref_emb, *own_rows(embeddings, ref_emb), None, None, None, None)


def own_closeness(embeddings: Tensor, ref_emb: Tensor, distance: str) -> Tensor:
    """The closenesses of rows i of both sides, of which the second may have more, in the accumulation dtype."""
    with torch.autocast(embeddings.device.type, enabled=False):
        dtype = accumulate_dtype(embeddings.dtype)
        references = ref_emb[: len(embeddings)].to(dtype)
        return dense.closeness(embeddings.to(dtype), references, distance, dense.row_scores)

"""The way from the settings of a pair loss to the operator, shared by all of them. The losses themselves are in
``generated_functions.py`` and ``generated_modules.py``."""

from __future__ import annotations

from torch import Tensor

from fastpair import ops
from fastpair.formulas.pair_losses import PAIR_LOSSES
from fastpair.losses import options
from fastpair.losses.mined import mined_pair_loss
from fastpair.metrics import METRICS
from fastpair.ops import checks


def pair_loss(
    name: str,
    settings: dict,
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    indices_tuple: tuple[Tensor, ...] | None,
    exclude_self: bool | Tensor | None,
    pairs: Tensor | None,
    ids: Tensor | None,
    ref_ids: Tensor | None,
    weights: Tensor | None,
    backend: str | None,
) -> Tensor:
    """A loss of ``PAIR_LOSSES``."""
    options.check_settings(name, settings)
    of, swap = PAIR_LOSSES[name], settings.get("swap", False)
    if swap and indices_tuple is None:
        raise ValueError("swap must be False without indices_tuple, which says what triplets to swap in; got True")
    return over_pairs(
        of.picked(settings),
        of.params(settings, METRICS[settings["distance"]].similarity),
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        indices_tuple,
        distance=settings["distance"],
        reduction=settings["reduction"],
        weights=weights,
        backend=backend,
        swap=swap,
        exclude_self=exclude_self,
        pairs=pairs,
        ids=ids,
        ref_ids=ref_ids,
    )


def over_pairs(
    loss: str,
    params: list[float],
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    indices_tuple: tuple[Tensor, ...] | None,
    *,
    distance: str,
    reduction: str,
    weights: Tensor | None,
    backend: str | None,
    swap: bool = False,
    **of_pairs: bool | Tensor | None,
) -> Tensor:
    """A formula over the pairs that lists define, or labels and ``of_pairs``, the further arguments of ``relation``."""
    if weights is not None:
        weights = checks.anchor_weights(weights, embeddings)
    settings = {"distance": distance, "reduction": reduction, "weights": weights, "backend": backend}
    if indices_tuple is not None:
        checks.unused_by_lists(embeddings, labels, ref_emb, ref_labels, **of_pairs)
        return mined_pair_loss(loss, params, embeddings, ref_emb, indices_tuple, swap=swap, **settings)
    return ops.pair_loss(loss, params, embeddings, labels, ref_emb, ref_labels, **settings, **of_pairs)

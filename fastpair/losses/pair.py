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
    backend: str | None,
) -> Tensor:
    """A loss of ``PAIR_LOSSES`` over the pairs that labels or lists define."""
    options.check_settings(name, settings)
    of, distance, swap = PAIR_LOSSES[name], settings["distance"], settings.get("swap", False)
    loss, params = of.picked(settings), of.params(settings, METRICS[distance].similarity)
    further = {"distance": distance, "reduction": settings["reduction"], "backend": backend}
    if indices_tuple is not None:
        checks.unused_by_lists(embeddings, labels, ref_emb, ref_labels, exclude_self)
        return mined_pair_loss(loss, params, embeddings, ref_emb, indices_tuple, swap=swap, **further)
    if swap:
        raise ValueError("swap must be False without indices_tuple, which says what triplets to swap in; got True")
    return ops.pair_loss(loss, params, embeddings, labels, ref_emb, ref_labels, exclude_self=exclude_self, **further)

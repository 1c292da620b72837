"""The triplet margin loss."""

from __future__ import annotations

from torch import Tensor

from fastpair.formulas.to_python import METRIC, documentation
from fastpair.losses import options
from fastpair.losses.base import PairLoss
from fastpair.losses.pair import pair_loss

__all__ = ["TripletMarginLoss", "triplet_margin_loss"]

# The operator's names for the losses over the triplets that ``triplets_per_anchor`` chooses.
TRIPLETS = {"all": "triplet", "semihard": "semihard_triplet", "hard": "hard_triplet"}
RULES = {
    "margin": options.finite,
    "swap": options.anything,
    "smooth_loss": options.anything,
    "triplets_per_anchor": options.one_of_these(*TRIPLETS),
    "distance": options.distance,
    "reduction": options.pair_reduction,
}
SETTINGS = (
    "margin: m, in units of the distance.",
    "swap: use the smaller of d_N and the distance between positive and negative in place of d_N. Only for triplets "
    "that ``indices_tuple`` lists.",
    "smooth_loss: log(1 + exp(x)) in place of [x]₊.",
    'triplets_per_anchor: which triplets count. "all": every one, summed in O(n log n) time per anchor. "semihard": '
    'those with d_P < d_N < d_P + m. "hard": one per anchor, its farthest positive with its nearest negative (any of '
    "equal ones, for the gradient). Ignored where ``indices_tuple`` lists them.",
)


def triplet_margin_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    margin: float = 0.05,
    swap: bool = False,
    smooth_loss: bool = False,
    triplets_per_anchor: str = "all",
    distance: str = "unit_euclidean",
    reduction: str = "mean",
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    pairs: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    weights: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    options.check(
        RULES,
        margin=margin,
        smooth_loss=smooth_loss,
        triplets_per_anchor=triplets_per_anchor,
        distance=distance,
        reduction=reduction,
    )
    if swap and indices_tuple is None:
        raise ValueError("swap must be False without indices_tuple, which says what triplets to swap in; got True")
    return pair_loss(
        ("smooth_" if smooth_loss else "") + TRIPLETS[triplets_per_anchor],
        [float(margin)],
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        distance=distance,
        reduction=reduction,
        indices_tuple=indices_tuple,
        exclude_self=exclude_self,
        pairs=pairs,
        ids=ids,
        ref_ids=ref_ids,
        weights=weights,
        backend=backend,
        swap=swap,
    )


triplet_margin_loss.__doc__ = documentation(
    "Triplet margin loss",
    "Σ over triplets of an anchor, a positive and a negative, of [d_P − d_N + m]₊",
    "For a similarity d is −s.",
    'Schroff et al., CVPR 2015 (arXiv 1503.03832), eq. 2 ("all", "semihard"); Hermans et al., 2017 (arXiv 1703.07737), '
    'eq. 5 ("hard")',
    SETTINGS,
    distance=METRIC,
    mean="over the triplets whose loss is not zero",
    repeats="A triplet that is listed twice counts twice.",
)


class TripletMarginLoss(PairLoss):
    """Triplet margin loss: see :func:`fastpair.functional.triplet_margin_loss`."""

    def __init__(
        self,
        margin: float = 0.05,
        swap: bool = False,
        smooth_loss: bool = False,
        triplets_per_anchor: str = "all",
        distance: str = "unit_euclidean",
        reduction: str = "mean",
    ):
        settings = {
            "margin": margin,
            "swap": swap,
            "smooth_loss": smooth_loss,
            "triplets_per_anchor": triplets_per_anchor,
            "distance": distance,
            "reduction": reduction,
        }
        options.check(RULES, **settings)
        super().__init__(triplet_margin_loss, **settings)

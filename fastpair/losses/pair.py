"""The way from the settings of a pair loss to the operator, shared by all of them. The losses themselves are in
``generated_functions.py`` and ``generated_modules.py``."""

from __future__ import annotations

from torch import Tensor

from fastpair import ops
from fastpair.formulas.pair_losses import DEFINITIONS, Definition
from fastpair.losses import options
from fastpair.losses.mined import mined_pair_loss
from fastpair.metrics import METRICS
from fastpair.ops import checks


def rules(of: Definition) -> dict[str, options.Rule]:
    by_name = {"positive": options.positive, "finite": options.finite, "margin": options.not_nan}
    choice = {of.choice.name: options.one_of_numbers(*of.choice.formulas)} if of.choice else {}
    return {
        **{x.name: by_name[x.check] for x in of.settings},
        **choice,
        "distance": options.similarity if of.similarities else options.distance,
        "reduction": options.pair_reduction,
    }


RULES = {name: rules(of) for name, of in DEFINITIONS.items()}
MARGINS = {name: [x.name for x in of.settings if x.check == "margin"] for name, of in DEFINITIONS.items()}


def check_settings(name: str, settings: dict, distance: str, reduction: str) -> None:
    options.check(RULES[name], **settings, distance=distance, reduction=reduction)
    for margin in MARGINS[name]:
        if settings[margin] < 0 and not METRICS[distance].similarity:
            raise ValueError(f"{margin} must not be negative for the distance {distance!r}, got {settings[margin]}")


def formula_of(name: str, settings: dict, distance: str, reduction: str) -> tuple[str, list[float]]:
    """The formula and the parameters of a loss of ``DEFINITIONS``, whose settings are checked first."""
    check_settings(name, settings, distance, reduction)
    of = DEFINITIONS[name]
    return of.picked(settings), of.params(settings, METRICS[distance].similarity)


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
    indices_tuple: tuple[Tensor, ...] | None,
    backend: str | None,
    swap: bool = False,
    weights: Tensor | None = None,
    **of_pairs: bool | Tensor | None,
) -> Tensor:
    """A formula evaluated over the pairs that labels or lists define. ``of_pairs``: the further arguments of
    ``relation``."""
    if weights is not None:
        weights = checks.anchor_weights(weights, embeddings)
    if indices_tuple is not None:
        checks.unused_by_lists(embeddings, labels, ref_emb, ref_labels, **of_pairs)
        settings = {"distance": distance, "reduction": reduction, "backend": backend, "swap": swap, "weights": weights}
        return mined_pair_loss(loss, params, embeddings, ref_emb, indices_tuple, **settings)
    return ops.pair_loss(
        loss,
        params,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        distance=distance,
        reduction=reduction,
        backend=backend,
        weights=weights,
        **of_pairs,
    )

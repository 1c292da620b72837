"""The way from the settings of a pair loss to the operator, shared by all of them. The losses themselves are in
``generated_functions.py`` and ``generated_modules.py``."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from fastpair import ops
from fastpair.backends import added
from fastpair.formulas.pair_losses import BEST_POSITIVE, PAIR_LOSSES
from fastpair.formulas.variants import LIMIT, REF_BIAS
from fastpair.losses import options
from fastpair.losses.from_pml import distance_name
from fastpair.losses.mined import COUNT_REPEATS, mined_pair_loss
from fastpair.metrics import METRICS
from fastpair.ops import checks
from fastpair.ops.parameters import learn, single


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
    ref_bias: Tensor | None,
    ignore_above: float | None,
    backend: str | None,
) -> Tensor:
    """A loss of ``PAIR_LOSSES``."""
    swap = settings.get("swap", False)
    distance = settings["distance"] = distance_name(settings["distance"])
    loss, params = _resolved(name, settings, embeddings)
    if (
        not (swap or learn(params))
        and ref_emb is ref_labels is indices_tuple is exclude_self is pairs is None
        and ids is ref_ids is weights is ref_bias is ignore_above is None
    ):
        return ops.labelled_pair_loss(loss, params, embeddings, labels, distance, settings["reduction"], backend)
    if swap and indices_tuple is None:
        raise ValueError("swap must be False without indices_tuple, which says what triplets to swap in; got True")
    return over_pairs(
        loss,
        params,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        indices_tuple,
        (exclude_self, pairs, ids, ref_ids),
        distance,
        settings["reduction"],
        weights,
        ref_bias,
        ignore_above,
        backend,
        swap,
    )


def _resolved(name: str, settings: dict, like: Tensor) -> tuple[str, list[float | Tensor]]:
    """The formula that checked settings pick, and its parameters."""
    learnable = PAIR_LOSSES[name].learnable
    if learnable and isinstance(value := settings[learnable.name], Tensor):
        checks.single(learnable.name, value)
        loss, _ = _checked(name, {**settings, learnable.name: learnable.default})
        return loss, [learnable.converted(single(value, like))]
    return _checked(name, settings)


def _checked(name: str, settings: dict) -> tuple[str, list[float]]:
    values = tuple(settings.values())
    if torch.compiler.is_compiling():
        return _formula_of.__wrapped__(name, *values)
    try:
        return _formula_of(name, *values)
    except TypeError:  # of a value that cannot be hashed: the check says what is wrong with it
        return _formula_of.__wrapped__(name, *values)


@functools.lru_cache(maxsize=256, typed=True)
def _formula_of(name: str, *values: float | str) -> tuple[str, list[float]]:
    settings = dict(zip(options.RULES[name], values))
    options.check_settings(name, settings)
    of = PAIR_LOSSES[name]
    return of.picked(settings), list(map(float, of.params(settings, METRICS[settings["distance"]].similarity)))


def over_pairs(
    loss: str,
    params: list[float | Tensor],
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    indices_tuple: tuple[Tensor, ...] | None,
    of_pairs: tuple[bool | Tensor | None, ...],
    distance: str,
    reduction: str,
    weights: Tensor | None,
    ref_bias: Tensor | None,
    ignore_above: float | None,
    backend: str | None,
    swap: bool = False,
    anchor_scalars: Mapping[str, Tensor] | None = None,
    ref_scalars: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """A formula over the pairs that lists define, or labels and ``of_pairs``, the further arguments of ``relation``."""
    settings = {"distance": distance, "reduction": reduction, "backend": backend}
    repeats = loss in COUNT_REPEATS
    if weights is not None:
        settings["weights"] = checks.anchor_weights(weights, embeddings)
    if ref_bias is not None:
        ref_scalars = {**(ref_scalars or {}), REF_BIAS: ref_bias}
    if ignore_above is not None:
        options.finite("ignore_above", ignore_above)
        if indices_tuple is not None:
            raise ValueError("ignore_above must be None where indices_tuple lists the pairs, which leaves out others")
        with torch.no_grad():
            given = ops.relation(embeddings, labels, ref_emb, ref_labels, *of_pairs)
            closest = ops.pair_loss(BEST_POSITIVE, [], embeddings, given, distance, "none", backend)
            limits = torch.where(closest == -torch.inf, torch.inf, closest + ignore_above)
        anchor_scalars = {**(anchor_scalars or {}), LIMIT: limits}
    if ref_bias is not None or ignore_above is not None:
        loss = added.add_variant(loss, ref_bias is not None, ignore_above is not None, learn(params))
    if added.is_added(loss):
        of_anchors, of_references = added.scalars(loss)
        references = ("embeddings", embeddings) if ref_emb is None else ("ref_emb", ref_emb)
        settings |= {
            "anchor_scalars": checks.scalars("anchor_scalars", anchor_scalars, of_anchors, "embeddings", embeddings),
            "ref_scalars": checks.scalars("ref_scalars", ref_scalars, of_references, *references),
        }
    if indices_tuple is None:
        given = ops.relation(embeddings, labels, ref_emb, ref_labels, *of_pairs)
        return ops.pair_loss(loss, params, embeddings, given, **settings)
    checks.unused_by_lists(embeddings, labels, ref_emb, ref_labels, of_pairs)
    return mined_pair_loss(loss, params, embeddings, ref_emb, indices_tuple, swap=swap, repeats=repeats, **settings)

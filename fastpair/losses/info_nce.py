"""InfoNCE of two views, or of queries and documents, whose rows i belong together."""

from __future__ import annotations

import inspect
import math

import torch
from torch import Tensor, nn

from fastpair import ops
from fastpair.backends import dense
from fastpair.losses import options
from fastpair.losses.base import FunctionLoss
from fastpair.losses.from_pml import distance_name
from fastpair.losses.rows import negatives_logsumexp, own_closeness, own_rows, own_rows_related
from fastpair.metrics import METRICS
from fastpair.numerics import accumulate_dtype, average, log_sum_exp, reduced, unit_rows
from fastpair.ops import checks
from fastpair.ops.parameters import single
from fastpair.ops.prefixes import refuse_prefixes

__all__ = ["InfoNCELoss", "info_nce_loss"]

DIRECTIONS = ("query_to_doc", "doc_to_query", "query_to_query", "doc_to_doc")
HARDNESS = (None, "in_batch_negatives", "hard_negatives", "all_negatives")


def _directions(name: str, value: tuple[str, ...] | None) -> None:
    if value is None:
        return
    known = isinstance(value, (tuple, list)) and all(of in DIRECTIONS for of in value)
    if not known or "query_to_doc" not in value or len(set(value)) < len(value):
        raise ValueError(
            f"{name} must be some of {', '.join(map(repr, DIRECTIONS))}, each once, the first among them, got {value!r}"
        )


def _hardness_mode(name: str, value: str | None) -> None:
    if value not in HARDNESS:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, HARDNESS))}, got {value!r}")


def _below_one(name: str, value: float) -> None:
    options.fraction(name, value)
    if value == 1:
        raise ValueError(f"{name} must be below 1, got {value}")


RULES = {
    "temperature": options.learnable(options.positive),
    "symmetric": options.anything,
    "distance": options.distance,
    "reduction": options.pair_reduction,
    "directions": _directions,
    "partition_mode": options.one_of("per_direction", "joint"),
    "hardness_mode": _hardness_mode,
    "hardness_strength": options.finite,
    "decoupled": options.anything,
    "ignore_above": lambda name, value: None if value is None else options.finite(name, value),
    "label_smoothing": options.fraction,
    "debias": _below_one,
    "positive_sigma": options.positive_or_none,
}


# What kernels compute as a whole.
PLAIN = {
    "partition_mode": "per_direction",
    "hardness_mode": None,
    "hardness_strength": 0.0,
    "ignore_above": None,
    "label_smoothing": 0.0,
    "debias": 0.0,
    "positive_sigma": None,
}


def info_nce_loss(
    embeddings: Tensor,
    ref_emb: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    symmetric: bool = True,
    distance: str | nn.Module = "cosine",
    reduction: str = "mean",
    directions: tuple[str, ...] | None = None,
    partition_mode: str = "per_direction",
    hardness_mode: str | None = None,
    hardness_strength: float = 0.0,
    decoupled: bool = False,
    ignore_above: float | None = None,
    label_smoothing: float = 0.0,
    debias: float = 0.0,
    positive_sigma: float | None = None,
    hard_negatives: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    pairs: Tensor | None = None,
    weights: Tensor | None = None,
    ref_bias: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""InfoNCE: each row of one view, or query, against all rows of the other, or documents.

        r_i = log sum_j exp(s_ij / temperature) - s_ii / temperature      (rows, query to document)
        c_i = log sum_j exp(s_ji / temperature) - s_ii / temperature      (columns, document to query)
        l_i = (r_i + c_i) / 2, the loss of CLIP, or r_i where not ``symmetric``

    with s = -d for a distance d. The mutual information of the views is at least log n - mean r_i. What further
    arguments change, they change in the sums over the negatives j != i of an anchor.

    Args:
        embeddings: (n, d), one view, the queries.
        ref_emb: (m, d), m >= n, the other view, the documents: row i belongs to embeddings' row i, rows beyond n are
            negatives of every query.
        temperature: positive; a number or a tensor of one element, which may require a gradient.
        symmetric: whether the rows of both views are anchors: ``directions=("query_to_doc", "doc_to_query")``.
        distance: as for the pair losses.
        reduction: "mean", "sum", "none": (n,), or, where not ``symmetric``, "totals" as for the pair losses.
        directions: what is compared, "query_to_doc" and any of "doc_to_query", "query_to_query", "doc_to_doc", in place
            of ``symmetric``. A document is not compared with others of its query, see ``hardness_mode``.
        partition_mode: "per_direction": one softmax a direction, each with the positive score, and the mean of their
            losses; "joint": one softmax over all, as in GTE.
        hardness_mode: which negatives of a query's softmax get ``hardness_strength`` times s, a constant of the
            gradient, added: "in_batch_negatives", those of other queries (LLaVE); "hard_negatives", those of its own
            (EmbeddingGemma); "all_negatives". Rows n + i, 2 n + i and so on of ``ref_emb`` are the own ones of query i.
        decoupled: leave the positive score out of the sums (DCL). A direction in which an anchor has no negatives adds
            nothing, and an anchor without any does not count in the mean.
        ignore_above: a negative whose closeness is above s_ii plus this number, in units of the score, is left out.
        label_smoothing: the target of a softmax is 1 - label_smoothing on the own row and the rest spread over all, as
            in ``torch.nn.functional.cross_entropy``. For similarities, without what changes the negatives.
        debias: the share of documents that are positives without the label, of the debiased contrastive loss: the sum
            over M negatives becomes max((sum - debias M exp(s_ii / t)) / (1 - debias), M exp(-1 / t)). For cosines.
        positive_sigma: weight the positive scores outside of the sums by 2 - n exp(s_ii / positive_sigma) / sum_k
            exp(s_kk / positive_sigma), constants of the gradient: with ``decoupled`` the loss DCLW, with 0.5.
        hard_negatives: (n, k, d), negatives of a query of its own that no other query is compared with.
        ids, ref_ids: integers (n,) and (m,): rows with equal ids, as repeated texts have, are no negatives of each
            other. By default the first n of ``ref_ids`` are ``ids``; with further documents they must be given.
        pairs: integers (n, m) for any m, 1 for a positive pair, -1 for a negative one, 0 for none, in place of row i
            with row i: with several positives the loss is the mean over them. Of the other arguments it takes
            ``temperature``, ``symmetric``, ``distance``, ``reduction`` and ``weights``.
        weights: floating (n,), not negative: the mean is a weighted one. Constants of the gradient.
        ref_bias: floating (m,), added to the terms of documents as negatives of queries: the correction -log q of
            sampled softmax. Constants of the gradient.
        backend: the kernels, see :func:`fastpair.use_backend`.

    Raises:
        TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value, or arguments that do not go
            together.

    Source: van den Oord et al., 2018 (arXiv 1807.03748), eq. 4; Radford et al., ICML 2021 (arXiv 2103.00020); GTE: Li
    et al., 2023 (arXiv 2308.03281); DCL: Yeh et al., ECCV 2022 (arXiv 2110.06848); debiasing: Chuang et al., NeurIPS
    2020 (arXiv 2007.00224), eq. 8; hardness: LLaVE (arXiv 2503.04812), eq. 5, EmbeddingGemma (arXiv 2509.20354).
    """
    distance = distance_name(distance)
    options.check(RULES, temperature=temperature, distance=distance, reduction=reduction)
    if directions is not None:
        options.check(RULES, directions=directions)
    embeddings, ref_emb = checks.both_sides(embeddings, ref_emb)
    temperature = single(temperature, embeddings)
    chosen = {
        "partition_mode": partition_mode,
        "hardness_mode": hardness_mode,
        "hardness_strength": hardness_strength,
        "ignore_above": ignore_above,
        "label_smoothing": label_smoothing,
        "debias": debias,
        "positive_sigma": positive_sigma,
    }
    plain = hard_negatives is ids is ref_ids is ref_bias is None and not decoupled and chosen == PLAIN
    if not plain:
        options.check(RULES, **chosen)
    directions = _compared(directions, symmetric, reduction)
    plain = plain and set(directions) <= set(DIRECTIONS[:2])
    if plain:
        settings = {"distance": distance, "reduction": reduction, "backend": backend}
        symmetric, scale = "doc_to_query" in directions, _inverse(temperature)
        return scaled_info_nce(embeddings, ref_emb, scale, symmetric, pairs=pairs, weights=weights, **settings)
    refuse_prefixes()
    if pairs is not None:
        raise ValueError(
            "pairs must be None with arguments other than temperature, symmetric, distance, reduction and weights, got "
            f"{type(pairs).__name__}"
        )
    rows = own_rows(embeddings, ref_emb)
    if hardness_strength and hardness_mode is None:
        raise ValueError(f"hardness_mode must be given with hardness_strength, got None with {hardness_strength}")
    special = ids is not None or ref_ids is not None or ref_bias is not None or ignore_above is not None
    if label_smoothing:
        options.similarity("distance", distance)
        several = partition_mode == "joint" or not set(directions) <= set(DIRECTIONS[:2])
        if several or special or hardness_strength or decoupled or hard_negatives is not None:
            raise ValueError(
                "label_smoothing must be 0 but for softmaxes between queries and documents without more, got "
                f"{label_smoothing}"
            )
    if debias:
        if special:
            raise ValueError(f"debias must be 0 with ids, ref_bias or ignore_above: it counts negatives, got {debias}")
        if distance != "cosine":
            raise ValueError(f"distance must be 'cosine' with debias, which knows its least score, got {distance!r}")
    if hard_negatives is not None:
        _check_hard_negatives(hard_negatives, embeddings)
        embeddings, ref_emb, hard_negatives = checks.one_dtype(embeddings, ref_emb, hard_negatives)
    batch = _Batch(embeddings, ref_emb, rows, temperature, distance, backend, ids, ref_ids, ignore_above)
    negatives = {
        name: batch.negatives(name, hardness_mode, hardness_strength, ref_bias, hard_negatives) for name in directions
    }
    if debias:
        counts = batch.counts(hard_negatives)
        negatives = {name: batch.debiased(lse, debias, counts[name]) for name, lse in negatives.items()}
    own = batch.own / batch.temperature
    with_own = {name for name in DIRECTIONS[:2] if not decoupled}
    parts = {name: torch.logaddexp(own, lse) if name in with_own else lse for name, lse in negatives.items()}
    if partition_mode == "joint":
        parts = {"joint": _together(list(parts.values()))}
    # A softmax without the positive score may have no terms.
    each = torch.stack([part - own for part in parts.values()], 1)
    some = each != -torch.inf
    losses, counts = torch.where(some, each, 0).mean(1), some.any(1).to(each.dtype)
    if positive_sigma is not None:
        weights_of_own = 2 - len(own) * torch.softmax(batch.own.detach() / positive_sigma, 0)
        losses = losses + (1 - weights_of_own) * own
    if label_smoothing:
        spread = sum(own - batch.mean_score(name) for name in directions)
        losses = losses + label_smoothing / len(directions) * spread
    weights = counts if weights is None else counts * checks.anchor_weights(weights, embeddings)
    return _reduced(losses, weights, reduction)


def _compared(directions: tuple[str, ...] | None, symmetric: bool, reduction: str) -> tuple[str, ...]:
    """The directions that the arguments ask for. Several have no totals."""
    if directions is None:
        directions = DIRECTIONS[:2] if symmetric else DIRECTIONS[:1]
    if len(directions) > 1:
        options.reduction("reduction", reduction)
    return directions


def _inverse(x: float | Tensor) -> float | Tensor:
    return x.reciprocal() if isinstance(x, Tensor) else 1 / x  # which is two operations on a tensor


def scaled_info_nce(
    x: Tensor,
    y: Tensor,
    scale: float | Tensor,
    symmetric: bool = True,
    *,
    distance: str = "cosine",
    reduction: str = "mean",
    pairs: Tensor | None = None,
    weights: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """What kernels compute as a whole, of two sides of one dtype, with the inverse of the temperature."""
    params, settings = [scale], {"distance": distance, "reduction": reduction, "backend": backend}
    if weights is not None:
        settings["weights"] = checks.anchor_weights(weights, x)
    if pairs is not None:
        checks.pairs(pairs, x, y, None, None)
        if symmetric and len(y) != len(x) and (weights is not None or reduction == "none"):
            raise ValueError(
                f"pairs must be ({len(x)}, {len(x)}) for weights or losses of both sides, got {len(y)} columns"
            )
        sides = [(x, y, pairs), (y, x, pairs.T)][: 1 + symmetric]
        sides = [(own, ops.relation(own, None, other, None, False, pairs)) for own, other, pairs in sides]
    else:
        sides = [(x, own_rows_related(x, y))]
        if symmetric and len(x) == len(y) and weights is None:
            return ops.pair_loss("supcon", params, *sides[0], two_sided=True, **settings)
        if symmetric:
            own = y[: len(x)]
            sides.append((own, own_rows_related(own, x)))
    values = [ops.pair_loss("supcon", params, *side, **settings) for side in sides]
    return sum(values) / len(values)


def _check_hard_negatives(rows: Tensor, embeddings: Tensor) -> None:
    checks.tensor("hard_negatives", rows)
    n, d = embeddings.shape
    if rows.ndim != 3 or rows.shape[::2] != (n, d) or rows.dtype not in checks.FLOATING:
        raise ValueError(f"hard_negatives must be floating ({n}, k, {d}), got {rows.dtype} {tuple(rows.shape)}")
    checks.same_device("hard_negatives", rows, "embeddings", embeddings)


def _together(log_sums: list[Tensor]) -> Tensor:
    """The logarithm of the sum of what the vectors are logarithms of."""
    stacked = torch.stack(log_sums, 1)
    return log_sum_exp(stacked, stacked != -torch.inf)


def _reduced(losses: Tensor, weights: Tensor, reduction: str) -> Tensor:
    losses = losses * weights
    if reduction == "totals":
        total = torch.stack([losses.sum(), weights.sum()])
        return torch.cat([total, torch.zeros_like(total)])
    return reduced(losses, average(losses.sum(), weights.sum()), reduction)


class _Batch:
    """Queries and documents, and the log-sum-exps over the negatives of each direction."""

    def __init__(self, x, y, rows, temperature, distance, backend, ids, ref_ids, ignore_above):
        self.x, self.y = x, y
        self.both, self.row = rows
        self.temperature, self.scale = temperature, _inverse(temperature)
        self.distance, self.backend = distance, backend
        self.own = own_closeness(x, y, distance)
        self.limits = None if ignore_above is None else self.own.detach() + ignore_above
        if ids is not None and ref_ids is None and len(y) == len(x):
            ref_ids = ids
        checks.ids(ids, ref_ids, x, y)
        if ref_ids is not None and ids is None:
            raise ValueError("ids must be given with ref_ids, got None")
        self.ids, self.ref_ids = ids, ref_ids

    def negatives(self, name, hardness_mode, hardness, ref_bias, hard_negatives) -> Tensor:
        """The log-sum-exps (n,) of a direction."""
        x, y, n = self.x, self.y, len(self.x)
        docs, both = y if len(y) == n else y[:n], self.both
        doc_ids = None if self.ref_ids is None else self.ref_ids[:n]
        if name == "doc_to_query":
            return self.logsumexp(docs, both, x, both, doc_ids, self.ids)
        if name == "query_to_query":
            return self.logsumexp(x, both, x, both, self.ids, self.ids)
        if name == "doc_to_doc":
            return self.logsumexp(docs, both, y, self.owners(), doc_ids, self.ref_ids)
        apart = hardness != 0 and hardness_mode != "all_negatives" and len(y) > n
        if apart and not (ref_bias is self.ids is None):
            raise ValueError(
                f"hardness_mode must be None or 'all_negatives' with ids or ref_bias, got {hardness_mode!r}"
            )
        of_own, of_others = (hardness if hardness_mode in (mode, "all_negatives") else 0.0 for mode in HARDNESS[2:0:-1])
        refs = self.owners() if apart else self.row
        found = [self.logsumexp(x, both, y, refs, self.ids, self.ref_ids, of_others, ref_bias)]
        if apart:
            found.append(self.listed(y[n:].unflatten(0, (-1, n)).transpose(0, 1), of_own))
        if hard_negatives is not None:
            found.append(self.listed(hard_negatives, of_own))
        return found[0] if len(found) == 1 else _together(found)

    def owners(self) -> Tensor:
        """The queries of the documents."""
        n, m = len(self.x), len(self.y)
        if m % max(n, 1):
            raise ValueError(
                f"ref_emb must have a multiple of {n} rows, as embeddings has, for each query to have its own hard "
                f"negatives, got {m}"
            )
        return self.row % max(n, 1)

    def logsumexp(self, x, labels, y, ref_labels, ids, ref_ids, hardness=0.0, ref_bias=None) -> Tensor:
        settings = {"hardness": hardness, "ref_bias": ref_bias, "limits": self.limits}
        of_pairs = (False, None, ids, ref_ids)
        if y is x:  # each sample makes no pair with itself
            y, ref_labels, of_pairs = None, None, (None, None, ids)
        of_scores = (self.scale, self.distance, self.backend)
        return negatives_logsumexp(x, labels, y, ref_labels, of_pairs, *of_scores, **settings)

    def listed(self, rows: Tensor, hardness: float) -> Tensor:
        """Over the rows (n, k, d) that each query has for itself."""
        with torch.autocast(self.x.device.type, enabled=False):
            dtype = accumulate_dtype(self.x.dtype)
            s = dense.closeness(self.x.to(dtype)[:, None], rows.to(dtype), self.distance, dense.row_scores)
            terms = s / self.temperature + hardness * s.detach()
            if self.limits is not None:
                terms = torch.where(s.detach() > self.limits[:, None], -torch.inf, terms)
            return terms.logsumexp(1)

    def counts(self, hard_negatives: Tensor | None) -> dict[str, int]:
        n, m = len(self.x), len(self.y)
        own = 0 if hard_negatives is None else hard_negatives.shape[1]
        per_query = m // max(n, 1)
        return dict(zip(DIRECTIONS, (m - 1 + own, n - 1, n - 1, m - per_query)))

    def debiased(self, lse: Tensor, share: float, count: int) -> Tensor:
        """The logarithm of max((exp(lse) - share count exp(own / t)) / (1 - share), count exp(-1 / t))."""
        if count <= 0:
            return lse
        taken = share * count * torch.exp(self.own / self.temperature - lse)
        left = torch.where(taken < 1, taken, 0)
        estimate = torch.where(taken < 1, lse + torch.log1p(-left) - math.log(1 - share), -torch.inf)
        least = math.log(count) - 1 / self.temperature
        return torch.maximum(estimate, torch.as_tensor(least, dtype=lse.dtype, device=lse.device))

    def mean_score(self, direction: str) -> Tensor:
        """The mean of each query's scaled scores with all documents, or of each document's with all queries."""
        with torch.autocast(self.x.device.type, enabled=False):
            dtype = accumulate_dtype(self.x.dtype)
            x, y = self.x.to(dtype), self.y.to(dtype)
            if METRICS[self.distance].unit:
                x, y = unit_rows(x), unit_rows(y)
            own, others = (x, y) if direction == "query_to_doc" else (y[: len(x)], x)
            return own @ others.mean(0) / self.temperature


class InfoNCELoss(FunctionLoss):
    """InfoNCE of two views or of queries and documents, ``loss(embeddings, ref_emb, temperature=None, *,
    hard_negatives=None, ids=None, ref_ids=None, pairs=None, weights=None, ref_bias=None)``: see
    :func:`fastpair.functional.info_nce_loss`.

    ``learn_temperature=True`` makes the temperature a parameter: the loss holds ``log_temperature``. A temperature that
    belongs to the model is given in the call.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.07,
        symmetric: bool = True,
        distance: str | nn.Module = "cosine",
        reduction: str = "mean",
        learn_temperature: bool = False,
        *,
        directions: tuple[str, ...] | None = None,
        partition_mode: str = "per_direction",
        hardness_mode: str | None = None,
        hardness_strength: float = 0.0,
        decoupled: bool = False,
        ignore_above: float | None = None,
        label_smoothing: float = 0.0,
        debias: float = 0.0,
        positive_sigma: float | None = None,
    ):
        settings = {
            "symmetric": symmetric,
            "distance": distance_name(distance),
            "reduction": reduction,
            "directions": directions,
            "partition_mode": partition_mode,
            "hardness_mode": hardness_mode,
            "hardness_strength": hardness_strength,
            "decoupled": decoupled,
            "ignore_above": ignore_above,
            "label_smoothing": label_smoothing,
            "debias": debias,
            "positive_sigma": positive_sigma,
        }
        options.check(RULES, temperature=temperature, **settings)
        _compared(directions, symmetric, reduction)
        if learn_temperature and isinstance(temperature, Tensor):
            raise ValueError(
                "temperature must be a number with learn_temperature, a tensor learns by itself; got Tensor"
            )
        super().__init__(info_nce_loss, **settings)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature))) if learn_temperature else None
        self.initial_temperature = temperature

    @property
    def temperature(self) -> float | Tensor:
        return self.initial_temperature if self.log_temperature is None else self.log_temperature.exp()

    def forward(
        self, embeddings: Tensor, ref_emb: Tensor, temperature: float | Tensor | None = None, **of_rows: Tensor | None
    ) -> Tensor:
        temperature = self.temperature if temperature is None else temperature
        return self._function(embeddings, ref_emb, temperature=temperature, **self.settings(), **of_rows)

    def extra_repr(self) -> str:
        temperature = self.initial_temperature
        shown = [f"temperature={temperature.item() if isinstance(temperature, Tensor) else temperature}"]
        defaults = inspect.signature(info_nce_loss).parameters
        shown += [f"{k}={v!r}" for k, v in self.settings().items() if k in ALWAYS_SHOWN or v != defaults[k].default]
        return ", ".join(shown + ["learn_temperature=True"] * (self.log_temperature is not None))


ALWAYS_SHOWN = ("symmetric", "distance", "reduction")

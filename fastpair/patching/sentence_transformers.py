"""sentence-transformers' losses with in-batch negatives, and its triplet losses over labelled batches."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpair.functional import info_nce_loss, triplet_margin_loss
from fastpair.patching.core import Case, Client, Method
from fastpair.patching.tensors import TRACED, ranks, tensor_cases, traced

LOSSES = "sentence_transformers.sentence_transformer.losses"
UTIL = "sentence_transformers.util.similarity"
BOTH = {"query_to_doc", "doc_to_query"}


# ---- in-batch negatives


def _similarity(loss) -> str | None:
    from sentence_transformers import util

    if loss.similarity_fct in (util.cos_sim, util.pytorch_cos_sim):
        return "cosine"
    return "dot" if loss.similarity_fct is util.dot_score else None


def _ranking_loss(loss, embeddings: list[Tensor]) -> Tensor:
    """Each query with its own document, the first, against all documents, and the other directions. With several ranks
    they are all of theirs."""
    queries, *columns = embeddings
    settings = {
        "temperature": 1 / loss.scale,
        "distance": _similarity(loss),
        "partition_mode": loss.partition_mode if len(loss.directions) > 1 else "per_direction",
        "hardness_mode": loss.hardness_mode,
        "hardness_strength": float(loss.hardness_strength) if loss.hardness_mode else 0.0,
    }
    if not (loss.gather_across_devices and ranks() > 1):
        return info_nce_loss(queries, torch.cat(columns), directions=tuple(loss.directions), **settings)
    own, (queries, positives, *negatives) = _gathered(embeddings)
    documents = torch.cat([positives, *negatives])
    value = info_nce_loss(own[0], documents, symmetric=False, **settings)
    if len(loss.directions) > 1:
        value = (value + info_nce_loss(own[1], queries, symmetric=False, **settings)) / 2
    return value


def _gathered(embeddings: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """This rank's columns, and those of all, in which its rows are the first."""
    from sentence_transformers.util import all_gather_with_grad, get_rank

    n = len(embeddings[0])
    of_all = [all_gather_with_grad(column).roll(-get_rank() * n, 0) for column in embeddings]
    return [column[:n] for column in of_all], of_all


def _of_embeddings(loss, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
    return _ranking_loss(loss, embeddings)


def _of_mini_batches(
    loss, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
) -> Tensor:
    """The loss is not made chunk by chunk, as its matrix of scores is never held: the embeddings still are."""
    value = _ranking_loss(loss, [torch.cat(parts) for parts in reps])
    if with_backward:
        value.backward()
        value = value.detach()
    return value


def _columns(embeddings, labels):
    return embeddings


def _first_parts(reps, labels=None, *, with_backward=False):
    return [part for parts in reps for part in parts]


def _unlike(columns: list[int]) -> bool:
    return len(columns) < 2 or len(set(columns)) > 1


def _unlike_embeddings(loss, embeddings, labels) -> bool:
    return _unlike([len(x) for x in embeddings])


def _unlike_mini_batches(loss, reps, labels=None, *, with_backward=False) -> bool:
    return _unlike([sum(map(len, parts)) for parts in reps])


def _of_ranks(loss) -> bool:
    """Whether rows of several ranks are compared otherwise than queries with documents, each softmax by itself."""
    several = set(loss.directions) == BOTH and loss.partition_mode == "per_direction"
    simple = (several or set(loss.directions) == {"query_to_doc"}) and not (
        loss.hardness_mode and loss.hardness_strength
    )
    return loss.gather_across_devices and ranks() > 1 and not simple


RANKING = (
    Case("similarity_fct is another than cos_sim or dot_score", lambda loss: _similarity(loss) is None),
    Case("several ranks share a softmax, or weight negatives", _of_ranks),
)
UNLIKE = "there are fewer than two columns, or they differ in length"
SIMILARITIES = tuple(f"{UTIL}:{name}" for name in ("cos_sim", "dot_score"))


# ---- triplets


def _distance(loss) -> str | None:
    from sentence_transformers.sentence_transformer.losses import BatchHardTripletLossDistanceFunction as functions

    known = {functions.euclidean_distance: "euclidean", functions.cosine_distance: "cosine"}
    return next((name for function, name in known.items() if loss.distance_metric is function), None)


def _all_triplets(loss, labels: Tensor, embeddings: Tensor) -> Tensor:
    return triplet_margin_loss(embeddings, labels.view(-1), margin=float(loss.triplet_margin), distance=_distance(loss))


def _semi_hard_triplets(loss, labels: Tensor, embeddings: Tensor) -> Tensor:
    return triplet_margin_loss(
        embeddings,
        labels.view(-1),
        margin=float(loss.margin),
        triplets_per_anchor="facenet",
        distance=_distance(loss),
    )


def _hard_triplets(loss, labels: Tensor, embeddings: Tensor, margin: float, smooth: bool) -> Tensor:
    """The mean over all anchors."""
    total = triplet_margin_loss(
        embeddings,
        labels.view(-1),
        margin=margin,
        smooth_loss=smooth,
        triplets_per_anchor="hard",
        distance=_distance(loss),
        reduction="sum",
    )
    return total / len(embeddings)


def _with_margin(loss, labels: Tensor, embeddings: Tensor) -> Tensor:
    return _hard_triplets(loss, labels, embeddings, float(loss.triplet_margin), smooth=False)


def _with_soft_margin(loss, labels: Tensor, embeddings: Tensor) -> Tensor:
    return _hard_triplets(loss, labels, embeddings, 0.0, smooth=True)


def _labelled(labels, embeddings):
    return (embeddings,)


def _odd_labels(loss, labels, embeddings) -> bool:
    return (
        labels.numel() != len(embeddings)
        or labels.is_floating_point()
        or labels.dtype == torch.bool
        or labels.device != embeddings.device
    )


def _lone(loss, labels, embeddings) -> bool:
    """Whether an anchor has no positive, whose hardest there has distance 0, or no negative."""
    counts = labels.view(-1).unique(return_counts=True)[1]
    return len(counts) < 2 or bool((counts < 2).any())


def _one_class(loss, labels, embeddings) -> bool:
    """Whether there are positives but no negatives, whose distance there is 0."""
    labels = labels.view(-1)
    return bool((labels == labels[:1]).all())


DISTANCE = Case(
    "distance_metric is another than euclidean_distance or cosine_distance", lambda loss: _distance(loss) is None
)
MARGIN = Case("margin is no plain number", lambda loss: not isinstance(loss.triplet_margin, (int, float)))
SEMI_HARD_MARGIN = Case("margin is no plain number", lambda loss: not isinstance(loss.margin, (int, float)))
TRIPLETS = (*tensor_cases(_labelled), Case("labels are not one integer an embedding", _odd_labels))
EACH_TWICE = (
    Case(TRACED, traced),
    Case("a label occurs once, or only one label does", _lone),
)
HARD = f"{LOSSES}.batch_hard_triplet"
MASKS = ("get_anchor_positive_triplet_mask", "get_anchor_negative_triplet_mask")
DISTANCES = (
    f"{HARD}:BatchHardTripletLossDistanceFunction.euclidean_distance",
    f"{HARD}:BatchHardTripletLossDistanceFunction.cosine_distance",
    f"{UTIL}:cos_sim",
)

OF_PAIRS = "each sentence is compared with one other, and there is no matrix to save"

CLIENT = Client(
    "sentence-transformers",
    (
        Method(
            f"{LOSSES}.multiple_negatives_ranking:MultipleNegativesRankingLoss",
            "compute_loss_from_embeddings",
            "info_nce_loss",
            _of_embeddings,
            settings=RANKING,
            calls=(Case(UNLIKE, _unlike_embeddings), *tensor_cases(_columns)),
            reads=SIMILARITIES,
        ),
        Method(
            f"{LOSSES}.cached_multiple_negatives_ranking:CachedMultipleNegativesRankingLoss",
            "calculate_loss",
            "info_nce_loss",
            _of_mini_batches,
            settings=RANKING,
            calls=(Case(UNLIKE, _unlike_mini_batches), *tensor_cases(_first_parts)),
            reads=SIMILARITIES,
        ),
        Method(
            f"{HARD}:BatchHardTripletLoss",
            "batch_hard_triplet_loss",
            "triplet_margin_loss",
            _with_margin,
            settings=(DISTANCE, MARGIN),
            calls=(*TRIPLETS, *EACH_TWICE),
            uses=MASKS,
            reads=DISTANCES,
        ),
        Method(
            f"{LOSSES}.batch_hard_soft_margin_triplet:BatchHardSoftMarginTripletLoss",
            "batch_hard_triplet_soft_margin_loss",
            "triplet_margin_loss",
            _with_soft_margin,
            settings=(DISTANCE,),
            calls=(*TRIPLETS, *EACH_TWICE),
            uses=MASKS,
            reads=DISTANCES,
        ),
        Method(
            f"{LOSSES}.batch_all_triplet:BatchAllTripletLoss",
            "batch_all_triplet_loss",
            "triplet_margin_loss",
            _all_triplets,
            settings=(DISTANCE, MARGIN),
            calls=TRIPLETS,
            reads=(*DISTANCES, f"{HARD}:BatchHardTripletLoss.get_anchor_positive_triplet_mask"),
        ),
        Method(
            f"{LOSSES}.batch_semi_hard_triplet:BatchSemiHardTripletLoss",
            "batch_semi_hard_triplet_loss",
            "triplet_margin_loss",
            _semi_hard_triplets,
            settings=(DISTANCE, SEMI_HARD_MARGIN),
            calls=(*TRIPLETS, Case(TRACED, traced), Case("only one label occurs", _one_class)),
            uses=("_masked_maximum",),
            reads=DISTANCES,
        ),
    ),
    known={
        "MultipleNegativesRankingLoss.compute_loss_from_embeddings": ("8fad5c3012a9", "2ac11a42fae2"),
        "CachedMultipleNegativesRankingLoss.calculate_loss": ("aa42a75d8af0", "6cf01fa10ea1"),
        "BatchHardTripletLoss.batch_hard_triplet_loss": ("c8996d65b3a0",),
        "BatchHardSoftMarginTripletLoss.batch_hard_triplet_soft_margin_loss": ("8544d61c3b5b",),
        "BatchAllTripletLoss.batch_all_triplet_loss": ("58b4ebfeb5f0",),
        "BatchSemiHardTripletLoss.batch_semi_hard_triplet_loss": ("9a151b53cb51",),
    },
    left={
        "GISTEmbedLoss": "a second model says which negatives count",
        "CachedGISTEmbedLoss": "a second model says which negatives count",
        "MegaBatchMarginLoss": "each pair has the hardest negative of a mega-batch",
        "ContrastiveLoss": OF_PAIRS,
        "OnlineContrastiveLoss": OF_PAIRS,
        "TripletLoss": OF_PAIRS,
        "CoSENTLoss": OF_PAIRS,
        "CosineSimilarityLoss": OF_PAIRS,
    },
)

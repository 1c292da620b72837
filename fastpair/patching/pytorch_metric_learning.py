"""pytorch-metric-learning's losses. What is replaced is ``compute_loss``, so that regularizers, reducers, wrappers and
records go on as they do: it returns one loss an anchor for any reducer, or one that is reduced, where the reducer is a
mean or a sum that the kernels make."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastpair import functional
from fastpair.losses import options
from fastpair.losses.from_pml import metric_of
from fastpair.patching.core import Case, Client, Method
from fastpair.patching.tensors import TRACED, tensor_cases, traced

LOSSES = "pytorch_metric_learning.losses"

Settings = Callable[[object], dict]


# ---- distances and reducers


def _distance(loss) -> str | None:
    """The name of a loss's distance object, None for one that has none."""
    from pytorch_metric_learning import distances

    of = loss.distance
    # Not those that are derived from these.
    own = type(of) in (distances.CosineSimilarity, distances.DotProductSimilarity, distances.LpDistance)
    return metric_of(of) if own else None


def _reduction(loss, *parts: str) -> str | None:
    """How the reducers of a loss's parts reduce, if all do in one way: "mean", "sum", "divisor", or "nonzero", the mean
    of the losses above zero."""
    from pytorch_metric_learning import reducers

    of = loss.reducer
    by_part = [of]
    if type(of) is reducers.MultipleReducers:
        by_part = [dict(of.reducers.items()).get(part, of.default_reducer) for part in parts]
    elif len(parts) > 1:
        return None
    kinds = {_kind(reducer) for reducer in by_part}
    return kinds.pop() if len(kinds) == 1 else None


def _kind(reducer) -> str | None:
    from pytorch_metric_learning import reducers

    if type(reducer) in (reducers.ThresholdReducer, reducers.AvgNonZeroReducer):
        return "nonzero" if reducer.low == 0 and reducer.high is None else None
    kinds = {reducers.MeanReducer: "mean", reducers.SumReducer: "sum", reducers.DivisorReducer: "divisor"}
    return kinds.get(type(reducer))


def _reduced(value: Tensor) -> dict:
    return {"losses": value, "indices": None, "reduction_type": "already_reduced"}


def _of_elements(losses: Tensor) -> dict:
    indices = torch.arange(len(losses), device=losses.device)
    return {"losses": losses, "indices": indices, "reduction_type": "element"}


# ---- losses of pairs


def _pairs_of(embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor, exclude_self: bool) -> dict:
    """The arguments for references, of which ``forward`` makes the embeddings themselves where none are given."""
    if ref_emb is embeddings and ref_labels is labels and exclude_self:
        return {"embeddings": embeddings, "labels": labels}
    references = {"ref_emb": ref_emb, "ref_labels": ref_labels, "exclude_self": exclude_self}
    return {"embeddings": embeddings, "labels": labels, **references}


def _element_loss(name: str, settings: Settings, column: bool = False) -> Callable:
    """One loss an anchor, whatever the reducer, or their sum, where it makes a mean or a sum of them. ``column``: if
    they are (n, 1), which is how some reducers see them there."""
    function = getattr(functional, f"{name}_loss")

    def compute(loss, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        pairs = _pairs_of(embeddings, labels, ref_emb, ref_labels, ref_labels is labels)
        how = _reduction(loss, "loss")
        if how in ("mean", "sum"):
            total = function(**pairs, **settings(loss), reduction="sum")
            return {"loss": _reduced(total / len(embeddings) if how == "mean" else total)}
        losses = function(**pairs, **settings(loss), reduction="none")
        return {"loss": _of_elements(losses.unsqueeze(1) if column else losses)}

    return compute


def _reduced_loss(name: str, settings: Settings, *parts: str) -> Callable:
    """The mean or the sum that the reducer makes, as the first of the parts."""
    function = getattr(functional, f"{name}_loss")

    def compute(loss, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        own = ref_emb is embeddings if name == "nca" else ref_labels is labels
        pairs = _pairs_of(embeddings, labels, ref_emb, ref_labels, own)
        reduction = "sum" if _reduction(loss, *parts) == "sum" else "mean"
        value = _reduced(function(**pairs, **settings(loss), reduction=reduction))
        return {part: value if part == parts[0] else loss.zero_loss() for part in parts}

    return compute


def _embeddings(embeddings, labels, indices_tuple, ref_emb, ref_labels):
    return embeddings, ref_emb


def _listed(loss, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> bool:
    return indices_tuple is not None


def _odd_labels(loss, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> bool:
    return any(
        not isinstance(of, Tensor)
        or of.shape != x.shape[:1]
        or of.is_floating_point()
        or of.dtype == torch.bool
        or of.device != x.device
        for of, x in ((labels, embeddings), (ref_labels, ref_emb))
    )


def _few_pairs(loss, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> bool:
    return len(embeddings) * len(ref_emb) < 3


def _no_positive(loss, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> bool:
    if ref_emb is embeddings:
        return len(labels.unique()) == len(labels)
    return not bool(torch.isin(labels, ref_labels).any())


def _one_label(loss, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> bool:
    return bool((labels == labels[0]).all() and (ref_labels == labels[0]).all())


def _lone(loss, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> bool:
    """Whether some anchor has no positive or no negative."""
    kinds, counts = ref_labels.unique(return_counts=True)
    needed = 2 if ref_labels is labels else 1
    return len(kinds) < 2 or not bool(torch.isin(labels, kinds[counts >= needed]).all())


def _settings_case(name: str, settings: Settings) -> Case:
    def holds(loss) -> bool:
        try:
            options.check_settings(name, settings(loss))
        except (TypeError, ValueError):
            return True
        return False

    return Case("a margin, a scale or a temperature is none that fastpair takes, or the distance is not for it", holds)


def _collects(loss) -> bool:
    parts = (loss, loss.distance, loss.reducer, *getattr(loss.reducer, "reducers", {}).values())
    return any(getattr(part, "collect_stats", False) for part in parts)


def _another_reducer(*parts: str, known: tuple[str, ...]) -> Case:
    return Case("the reducer has no equal here", lambda loss: _reduction(loss, *parts) not in known)


def _another_method(loss) -> bool:
    return loss.loss_method not in (loss.mat_based_loss, loss.pair_based_loss)


def _another_cross_entropy(loss) -> bool:
    ce = loss.cross_entropy
    return type(ce) is not torch.nn.CrossEntropyLoss or (
        (ce.weight, ce.ignore_index, ce.reduction, ce.label_smoothing) != (None, -100, "none", 0.0)
    )


METHOD = Case("loss_method is another", _another_method)
CROSS_ENTROPY = Case("cross_entropy is another, or has weights or smoothing", _another_cross_entropy)
COLLECTS = Case("statistics are collected", _collects)
DISTANCE = Case("the distance is none that fastpair has", lambda loss: _distance(loss) is None)
PAIR_CALLS = (
    Case("a miner, a memory or indices_tuple lists the pairs", _listed),
    *tensor_cases(_embeddings),
    Case("labels are not one integer a row, on its device", _odd_labels),
    Case("there are fewer than three pairs", _few_pairs),
)
NEEDS_POSITIVES = (Case(TRACED, traced), Case("no anchor has a positive", _no_positive))
NEEDS_NEGATIVES = (Case(TRACED, traced), Case("no two labels differ", _one_label))
NEEDS_BOTH = (Case(TRACED, traced), Case("an anchor has no positive or no negative", _lone))

UTILS = "pytorch_metric_learning.utils.loss_and_miner_utils"
DISTANCES = "pytorch_metric_learning.distances"
REDUCERS = "pytorch_metric_learning.reducers"
READS = (
    f"{LOSSES}:BaseMetricLossFunction.forward",
    f"{LOSSES}:BaseMetricLossFunction.zero_loss",
    f"{DISTANCES}:BaseDistance.forward",
    f"{DISTANCES}:BaseDistance.normalize",
    f"{DISTANCES}:BaseDistance.margin",
    f"{DISTANCES}:DotProductSimilarity.compute_mat",
    f"{DISTANCES}:LpDistance.compute_mat",
    f"{REDUCERS}:BaseReducer.forward",
    f"{REDUCERS}:BaseReducer.reduce_the_loss",
    f"{REDUCERS}:BaseReducer.already_reduced_reduction",
    f"{REDUCERS}:MeanReducer.element_reduction",
    f"{REDUCERS}:SumReducer.element_reduction",
    f"{REDUCERS}:ThresholdReducer.element_reduction_helper",
    f"{REDUCERS}:MultipleReducers.forward",
    f"{REDUCERS}:MultipleReducers.sub_loss_reduction",
    f"{UTILS}:get_all_pairs_indices",
    f"{UTILS}:get_matches_and_diffs",
    f"{UTILS}:convert_to_pairs",
    f"{UTILS}:convert_to_triplets",
    f"{UTILS}:convert_to_weights",
    f"{UTILS}:logsumexp",
)
GENERIC = ("_compute_loss", "mat_based_loss", "pair_based_loss")


def _named(*names: str) -> Settings:
    """The settings that have the same names there."""
    return lambda loss: {name: getattr(loss, name) for name in names}


def _with_distance(*names: str) -> Settings:
    return lambda loss: {"distance": _distance(loss), **_named(*names)(loss)}


def _pair_method(
    cls: str,
    name: str,
    settings: Settings,
    *,
    compute: Callable | None = None,
    column: bool = False,
    cases: tuple[Case, ...] = (METHOD,),
    calls: tuple[Case, ...] = (),
    uses: tuple[str, ...] = GENERIC,
) -> Method:
    return Method(
        f"{LOSSES}:{cls}",
        "compute_loss",
        f"{name}_loss",
        compute or _element_loss(name, settings, column),
        settings=(DISTANCE, *cases, _settings_case(name, settings), COLLECTS),
        calls=(*PAIR_CALLS, *calls),
        uses=uses,
        reads=READS,
    )


MARGINS = _with_distance("pos_margin", "neg_margin")
TEMPERATURE = _with_distance("temperature")
SOFTMAX_SCALE = _with_distance("softmax_scale")
TRIPLETS = _with_distance("margin", "smooth_loss")
PAIR_METHODS = (
    _pair_method(
        "ContrastiveLoss",
        "contrastive",
        MARGINS,
        compute=_reduced_loss("contrastive", MARGINS, "pos_loss", "neg_loss"),
        cases=(METHOD, _another_reducer("pos_loss", "neg_loss", known=("nonzero", "sum"))),
        uses=(*GENERIC, "get_per_pair_loss", "pos_calc", "neg_calc"),
    ),
    _pair_method("SupConLoss", "supcon", TEMPERATURE, calls=NEEDS_NEGATIVES),
    _pair_method(
        "NTXentLoss",
        "ntxent",
        TEMPERATURE,
        compute=_reduced_loss("ntxent", TEMPERATURE, "loss"),
        cases=(METHOD, _another_reducer("loss", known=("mean", "sum"))),
    ),
    _pair_method(
        "NCALoss",
        "nca",
        SOFTMAX_SCALE,
        compute=_reduced_loss("nca", SOFTMAX_SCALE, "loss"),
        cases=(_another_reducer("loss", known=("mean", "sum")),),
        calls=NEEDS_POSITIVES,
        uses=("nca_computation",),
    ),
    _pair_method("MultiSimilarityLoss", "multi_similarity", _with_distance("alpha", "beta", "base"), column=True),
    _pair_method("CircleLoss", "circle", _with_distance("m", "gamma"), column=True),
    _pair_method(
        "GeneralizedLiftedStructureLoss", "generalized_lifted_structure", MARGINS, column=True, calls=NEEDS_BOTH
    ),
    _pair_method(
        "TripletMarginLoss",
        "triplet_margin",
        TRIPLETS,
        compute=_reduced_loss("triplet_margin", TRIPLETS, "loss"),
        cases=(
            _another_reducer("loss", known=("nonzero", "sum")),
            Case("swap is on", lambda loss: loss.swap),
            Case("triplets_per_anchor is not 'all'", lambda loss: loss.triplets_per_anchor != "all"),
        ),
        uses=(),
    ),
)


# ---- losses on one vector a class


def _class_loss(name: str, settings: Settings, weight: str, of_weight: Callable[[object], Tensor]) -> Callable:
    function = getattr(functional, f"{name}_loss")

    def compute(loss, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        loss.cast_types(embeddings.dtype, embeddings.device)
        vectors = of_weight(loss)
        how = _reduction(loss, "loss")
        of_batch = {"embeddings": embeddings, weight: vectors, "labels": labels, **settings(loss)}
        if name == "proxy_anchor":
            losses = {"pos_loss": _reduced(function(**of_batch)), "neg_loss": loss.zero_loss()}
        elif how in ("mean", "sum"):
            losses = {"loss": _reduced(function(**of_batch, reduction=how))}
        else:
            losses = {"loss": _of_elements(function(**of_batch, reduction="none"))}
        loss.add_weight_regularization_to_loss_dict(losses, vectors)
        return losses

    return compute


def _referred(loss, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> bool:
    return ref_emb is not embeddings or ref_labels is not labels


def _class_method(
    cls: str,
    name: str,
    settings: Settings,
    *,
    weight: str = "weight",
    of_weight: Callable[[object], Tensor] = lambda loss: loss.W.t(),
    distance: str = "cosine",
    cases: tuple[Case, ...] = (CROSS_ENTROPY,),
    uses: tuple[str, ...],
) -> Method:
    return Method(
        f"{LOSSES}:{cls}",
        "compute_loss",
        f"{name}_loss",
        _class_loss(name, settings, weight, of_weight),
        settings=(
            Case("the distance is not that of the definition", lambda loss: _distance(loss) != distance),
            *cases,
            _settings_case(name, settings),
            COLLECTS,
        ),
        calls=(
            Case("indices_tuple weights the samples", _listed),
            Case("there are references", _referred),
            *tensor_cases(_embeddings),
            Case("labels are not one integer a row, on its device", _odd_labels),
        ),
        uses=uses,
        reads=READS,
    )


def _proxies(loss) -> Tensor:
    return loss.proxies


MARGIN_SOFTMAX = ("get_cosine", "get_angles", "get_target_mask", "modify_cosine_of_target_classes", "scale_logits")
CLASS_METHODS = (
    _class_method("NormalizedSoftmaxLoss", "normalized_softmax", _named("temperature"), uses=("get_logits",)),
    _class_method("CosFaceLoss", "cosface", _named("margin", "scale"), uses=MARGIN_SOFTMAX),
    _class_method(
        "ArcFaceLoss",
        "arcface",
        lambda loss: {"margin": math.degrees(loss.margin), "scale": loss.scale},
        uses=MARGIN_SOFTMAX,
    ),
    _class_method(
        "ProxyNCALoss",
        "proxy_nca",
        _named("softmax_scale"),
        weight="proxies",
        of_weight=_proxies,
        distance="unit_sqeuclidean",
        cases=(_another_reducer("loss", known=("mean", "sum")),),
        uses=("nca_computation",),
    ),
    _class_method(
        "ProxyAnchorLoss",
        "proxy_anchor",
        _named("margin", "alpha"),
        weight="proxies",
        of_weight=_proxies,
        cases=(_another_reducer("pos_loss", "neg_loss", known=("divisor",)),),
        uses=("get_logits",),
    ),
)

CLIENT = Client(
    "pytorch-metric-learning",
    (*PAIR_METHODS, *CLASS_METHODS),
    known={
        "ContrastiveLoss.compute_loss": ("ee86d44cb679", "8fb787ca3ac1"),
        "SupConLoss.compute_loss": ("3ffc3632c66d", "bea78767962a"),
        "NTXentLoss.compute_loss": ("4d51fba71d7e", "2804bd958bf4"),
        "NCALoss.compute_loss": ("4fa4c0ab9b47", "8d0870185fc3"),
        "MultiSimilarityLoss.compute_loss": ("86fbdcad425c", "f0a403e54c93"),
        "CircleLoss.compute_loss": ("2bc4ee565bd6", "595b112762ba"),
        "GeneralizedLiftedStructureLoss.compute_loss": ("17a846410f97", "7a96ce7a8e08"),
        "TripletMarginLoss.compute_loss": ("f8a8d9963e97", "4cc777bb72f2"),
        "NormalizedSoftmaxLoss.compute_loss": ("6f7a046d6835", "cc9426449030"),
        "CosFaceLoss.compute_loss": ("f7c3d2c0cbd5", "453c057fa71a"),
        "ArcFaceLoss.compute_loss": ("9f7845482eb8", "77f8ba2dd52e"),
        "ProxyNCALoss.compute_loss": ("6994b3d68d15", "8d087197f172"),
        "ProxyAnchorLoss.compute_loss": ("d0469a595102", "8c4c6c99163f"),
    },
    left={
        "CrossBatchMemory": "it lists the pairs with its memory; fastpair.losses.CrossBatchMemory does not",
        "SubCenterArcFaceLoss": "a class has several vectors",
        "LiftedStructureLoss": "each positive pair has the negatives of both of its samples",
        "NPairsLoss": "it takes one pair a label",
        "InstanceLoss": "its classes are the samples of the batch",
        "MarginLoss": "its boundaries are parameters of each class; docs/losses.md writes it as a loss of your own",
        "TupletMarginLoss": "docs/losses.md writes it as a loss of your own",
        "SignalToNoiseRatioContrastiveLoss": "its distance is a ratio of variances",
    },
)

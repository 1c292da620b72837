"""The losses under test, one line each, and how a result is held against the oracle."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import dense
import pytest
import torch
from forks import Forks

import fastpair.functional as FP
from fastpair.backends import available_backends
from fastpair.backends.call import LabelledPairLossCall, ListedPairLossCall, PairLossCall, PrefixPairLossCall
from fastpair.formulas.pair_losses import DEFINITIONS

# Those that take CPU tensors, save Triton's interpreter, which is slow: see tests/gpu.
BACKENDS = [name for name in ("cpu", "reference") if available_backends()[name] is None]
# What the fused backends of this machine compute is the subject of most tests.
needs_cpu_kernels = pytest.mark.skipif(
    "cpu" not in BACKENDS, reason=f"the cpu backend is {available_backends()['cpu']}"
)

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
REDUCTIONS = ("mean", "sum", "none")
METRICS = ("sqeuclidean", "euclidean", "unit_sqeuclidean", "unit_euclidean", "cosine", "dot")

# Relative error of the norm. For half precision see `assert_matches_oracle`.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
# Losses and gradients that cancel to nothing are held against this instead of against their own norm.
FLOOR = 1e-3


# ---- inputs


def class_labels(pattern: str, n: int, generator: torch.Generator) -> torch.Tensor:
    if pattern == "one":
        return torch.full((n,), 5)
    if pattern == "distinct":
        return torch.randperm(n, generator=generator)
    classes = {"few": 3, "pairs": max(n // 2, 1)}[pattern]
    return torch.randint(classes, (n,), generator=generator)


def embeddings(n: int, d: int, generator: torch.Generator) -> torch.Tensor:
    """Rows of norm about 1, whose distances and cosines spread on both sides of the margins below."""
    return torch.randn(n, d, generator=generator, dtype=torch.float64) / d**0.5


def batch(n, d, pattern, generator):
    return {"embeddings": embeddings(n, d, generator), "labels": class_labels(pattern, n, generator)}


def batch_and_references(n, d, pattern, generator):
    # Fewer references than anchors at one size and more at the next, and rows that both sides share.
    m = n // 2 + 1 if n % 2 else 2 * n + 3
    inputs = batch(n, d, pattern, generator)
    references = embeddings(m, d, generator)
    references[: min(n, m) // 3] = inputs["embeddings"][: min(n, m) // 3]
    return {**inputs, "ref_emb": references, "ref_labels": class_labels(pattern, m, generator)}


def two_views(n, d, pattern, generator):
    return {"embeddings": embeddings(n, d, generator), "ref_emb": embeddings(n, d, generator)}


def view_and_more(n, d, pattern, generator):
    """More rows on the second side, negatives of all."""
    return {"embeddings": embeddings(n, d, generator), "ref_emb": embeddings(n + n // 2 + 1, d, generator)}


def learned(make, n, d, pattern, generator, **values):
    """With parameters of the loss as tensors."""
    values = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    return make(n, d, pattern, generator) | values


def class_vectors(n, d, pattern, generator, *, name="weight"):
    inputs = batch(n, d, pattern, generator)
    classes = int(inputs["labels"].max()) + 3 if n else 4
    return inputs | {name: embeddings(classes, d, generator)}


def classifier(n, d, pattern, generator, *, bias=False, ignored=None):
    inputs = batch(n, d, pattern, generator)
    classes = int(inputs["labels"].max()) + 3 if n else 4
    inputs["weight"] = 2 * torch.randn(classes, d, generator=generator, dtype=torch.float64)
    if bias:
        inputs["bias"] = torch.randn(classes, generator=generator, dtype=torch.float64)
    if ignored is not None:
        inputs["labels"][::3] = ignored
    return inputs


def soft_assignments(n, d, pattern, generator):
    inputs = batch(n, d, pattern, generator)
    logits = torch.randn(n, 7, generator=generator, dtype=torch.float64)
    return {**inputs, "probabilities": logits.softmax(1)}


# ---- the losses


@dataclass(frozen=True)
class Loss:
    fused: Callable  # fused(**inputs, reduction=, backend=)
    dense: Callable  # the same formula in plain PyTorch: dense(**inputs, reduction=)
    inputs: Callable  # inputs(n, d, pattern of labels, generator) -> float64 and int64 tensors by name
    trained: tuple[str, ...]  # the inputs that have gradients
    rows: str = "embeddings"  # the input whose rows reduction="none" has a loss for
    unit: bool = False  # looks at the direction of the rows alone
    totals: bool = False  # has the reduction "totals"

    @property
    def reductions(self) -> tuple[str, ...]:
        return (*REDUCTIONS, "totals") if self.totals else REDUCTIONS

    def shape(self, inputs: dict, reduction: str) -> tuple[int, ...]:
        """Of the value."""
        return {"none": (len(inputs[self.rows]),), "totals": (4,)}.get(reduction, ())


def loss(
    name: str, inputs: Callable, trained: tuple[str, ...], rows: str = "embeddings", totals: bool = False, **settings
) -> Loss:
    fused, plain = partial(getattr(FP, name), **settings), partial(getattr(dense, name), **settings)
    directions = settings.get("distance", "cosine") in ("cosine", "unit_euclidean", "unit_sqeuclidean")
    lengths = ("linear_cross_entropy", "spce_loss", "pce_loss", "center_loss")
    return Loss(fused, plain, inputs, trained, rows, directions and name not in lengths, totals)


def learning_loss(name: str, make: Callable, trained: tuple[str, ...], *, totals=False, distance="cosine", **values):
    """A loss with parameters that learn."""
    inputs = partial(learned, make, **values)
    return loss(name, inputs, (*trained, *values), totals=totals, distance=distance)


def pair_loss(name: str, **settings) -> dict[str, Loss]:
    """A pair loss over the batch's own pairs and against references."""
    label = "-".join([name.removesuffix("_loss"), *(str(v) for v in settings.values() if isinstance(v, str))])
    label += "-p2" if settings.get("power") == 2 else ""
    label += "".join(f"-{name}" for name, value in settings.items() if value is True)
    return {
        label: loss(name, batch, ("embeddings",), totals=True, **settings),
        f"{label}-refs": loss(name, batch_and_references, ("embeddings", "ref_emb"), totals=True, **settings),
    }


LOSSES = {
    **pair_loss("contrastive_loss", distance="euclidean", pos_margin=0.3, neg_margin=1.4),
    **pair_loss("contrastive_loss", distance="sqeuclidean", pos_margin=0.0, neg_margin=2.0),
    **pair_loss("contrastive_loss", distance="cosine", pos_margin=0.9, neg_margin=-0.05),
    **pair_loss("contrastive_loss", distance="dot", pos_margin=0.2, neg_margin=0.01),
    **pair_loss("contrastive_loss", distance="euclidean", power=2, pos_margin=0.0, neg_margin=1.5),
    **pair_loss("contrastive_loss", distance="cosine", power=2, pos_margin=1.0, neg_margin=0.1),
    **pair_loss("snca_loss", distance="cosine", temperature=0.2),
    **pair_loss("nca_loss", distance="unit_sqeuclidean", softmax_scale=2.0),
    **pair_loss("supcon_loss", distance="cosine", temperature=0.1),
    **pair_loss("supcon_loss", distance="euclidean", temperature=0.5),
    **pair_loss("ntxent_loss", distance="cosine", temperature=0.1),
    **pair_loss("ntxent_loss", distance="sqeuclidean", temperature=0.5),
    **{
        f"{name}-{distance}-learned{'-refs' * (len(rows) - 1)}": learning_loss(
            f"{name}_loss",
            batch if len(rows) == 1 else batch_and_references,
            rows,
            totals=True,
            distance=distance,
            **values,
        )
        for name, distance, rows, values in (
            ("snca", "cosine", ("embeddings", "ref_emb"), {"temperature": 0.2}),
            ("nca", "unit_sqeuclidean", ("embeddings",), {"softmax_scale": 2.0}),
            ("supcon", "cosine", ("embeddings",), {"temperature": 0.1}),
            ("supcon", "euclidean", ("embeddings", "ref_emb"), {"temperature": 0.5}),
            ("dcl", "dot", ("embeddings",), {"temperature": 0.3}),
            ("ntxent", "sqeuclidean", ("embeddings", "ref_emb"), {"temperature": 0.5}),
            ("sincere", "unit_euclidean", ("embeddings",), {"temperature": 0.2}),
        )
    },
    **pair_loss("multi_similarity_loss", distance="cosine", beta=20.0),
    **pair_loss("multi_similarity_loss", distance="unit_euclidean", alpha=3.0, beta=10.0, base=1.0),
    **pair_loss("circle_loss", distance="cosine", m=0.3, gamma=5.0),
    **pair_loss("generalized_lifted_structure_loss", distance="unit_euclidean"),
    **pair_loss("generalized_lifted_structure_loss", distance="dot", neg_margin=0.1, pos_margin=0.9),
    **pair_loss("triplet_margin_loss", distance="unit_euclidean", triplets_per_anchor="hard"),
    **pair_loss("triplet_margin_loss", distance="dot", triplets_per_anchor="hard", smooth_loss=True),
    "info_nce": loss("info_nce_loss", two_views, ("embeddings", "ref_emb")),
    "info_nce-euclidean": loss("info_nce_loss", two_views, ("embeddings", "ref_emb"), distance="euclidean"),
    "info_nce-one-sided": loss("info_nce_loss", view_and_more, ("embeddings", "ref_emb"), totals=True, symmetric=False),
    "info_nce-learned": learning_loss("info_nce_loss", two_views, ("embeddings", "ref_emb"), temperature=0.2),
    "siglip": learning_loss("siglip_loss", two_views, ("embeddings", "ref_emb"), totals=True, scale=2.5, bias=-1.5),
    "siglip-dot": learning_loss(
        "siglip_loss", view_and_more, ("embeddings", "ref_emb"), totals=True, distance="dot", scale=2.5, bias=-1.5
    ),
    "proxy_anchor": loss(
        "proxy_anchor_loss",
        partial(class_vectors, name="proxies"),
        ("embeddings", "proxies"),
        rows="proxies",
        totals=True,
        alpha=8.0,
    ),
    "normalized_softmax": loss("normalized_softmax_loss", class_vectors, ("embeddings", "weight"), temperature=0.1),
    "cosface": loss("cosface_loss", class_vectors, ("embeddings", "weight"), scale=12.0),
    "arcface": loss("arcface_loss", class_vectors, ("embeddings", "weight"), scale=12.0),
    "proxy_nca": loss("proxy_nca_loss", partial(class_vectors, name="proxies"), ("embeddings", "proxies")),
    "center": loss("center_loss", partial(class_vectors, name="centers"), ("embeddings", "centers")),
    "linear_cross_entropy": loss("linear_cross_entropy", classifier, ("embeddings", "weight")),
    "linear_cross_entropy-smooth-ignore": loss(
        "linear_cross_entropy",
        partial(classifier, bias=True, ignored=-7),
        ("embeddings", "weight", "bias"),
        label_smoothing=0.2,
        ignore_index=-7,
    ),
    "spce_loss": loss("spce_loss", batch, ("embeddings",)),
    "pce_loss": loss("pce_loss", soft_assignments, ("embeddings",), lam=0.3),
}
# With their own settings those of which no line above says more.
for name in DEFINITIONS:
    if not any(of.fused.func is getattr(FP, f"{name}_loss") for of in LOSSES.values()):
        LOSSES |= pair_loss(f"{name}_loss")
# One loss of every way through the kernels, with all that can say which pairs there are.
WAYS = (
    ("contrastive_loss", {"distance": "cosine", "pos_margin": 0.9, "neg_margin": -0.05}),
    ("contrastive_loss", {"distance": "euclidean", "power": 2, "neg_margin": 1.5}),
    ("supcon_loss", {"distance": "cosine", "temperature": 0.1}),
    ("ntxent_loss", {"distance": "sqeuclidean", "temperature": 0.5}),
    ("multi_similarity_loss", {"distance": "unit_euclidean", "alpha": 3.0, "beta": 10.0, "base": 1.0}),
    ("triplet_margin_loss", {"distance": "unit_euclidean", "triplets_per_anchor": "hard"}),
)
TRIPLETS = tuple(
    ("triplet_margin_loss", {"distance": distance, "triplets_per_anchor": which, "margin": 0.2})
    for distance, which in (("euclidean", "all"), ("cosine", "semihard"), ("unit_euclidean", "facenet"))
)


def related(n, d, pattern, generator, *, by, references):
    """A batch whose pairs are said by ``by``: any of sets, pairs and ids."""
    inputs = (batch_and_references if references else batch)(n, d, pattern, generator)
    sides = {"": n, "ref_": len(inputs["ref_emb"])} if references else {"": n}
    for side, length in sides.items():
        if "sets" in by:
            # More than a word of them, and samples without any.
            inputs[f"{side}labels"] = torch.rand(length, 70, generator=generator) < 0.06
        if "ids" in by:
            inputs[f"{side}ids"] = torch.randint(n // 2 + 1, (length,), generator=generator)
        if "pairs" in by:
            inputs[f"{side}labels"] = None
    if "pairs" in by:
        inputs["pairs"] = torch.randint(-1, 2, (n, sides.get("ref_", n)), generator=generator)
    return {name: t for name, t in inputs.items() if name == "labels" or t is not None}


def with_weights(make, n, d, pattern, generator):
    inputs = make(n, d, pattern, generator)
    # Some count for nothing, and all together may count for less than one.
    weights = torch.rand(n, generator=generator, dtype=torch.float64) / n
    return {**inputs, "weights": weights * (torch.rand(n, generator=generator) < 0.8)}


def has_reduction(known: dict) -> bool:
    """Of values that a covering array puts together."""
    return known.get("reduction", "mean") in known["loss"].reductions


RELATED = {
    "-".join([name, *(str(v) for v in settings.values() if isinstance(v, str)), *by, *(["refs"] * references)]): loss(
        name,
        partial(related, by=by, references=references),
        ("embeddings", "ref_emb") if references else ("embeddings",),
        totals=True,
        **settings,
    )
    for name, settings in WAYS + TRIPLETS
    for by in (("ids",), ("sets",), ("pairs", "ids"), *([("sets", "ids")] if name == "supcon_loss" else []))
    for references in (False, True)
}


def weighted(plain: Callable, *, reduction: str, weights: torch.Tensor, **inputs) -> torch.Tensor:
    """A dense loss whose anchors have weights: each alone against all references, then sums of what their means are
    made of."""
    x, labels, ids = inputs["embeddings"], inputs["labels"], inputs.get("ids")
    own, settings = "ref_emb" not in inputs, {k: v for k, v in inputs.items() if v is not None and v.ndim == 0}
    references = {"ref_emb": x, "ref_labels": labels, "ref_ids": ids} if own else {}
    totals = []
    for i in range(len(x)):
        of_one = {k: v[i : i + 1] for k, v in inputs.items() if k in ("embeddings", "labels", "ids") and v is not None}
        others = {k: v for k, v in {**inputs, **references}.items() if k.startswith("ref_") and v is not None}
        itself = {"exclude_self": torch.tensor([i])} if own else {}
        totals.append(weights[i] * plain(**of_one, **others, **itself, **settings, reduction="totals"))
    totals = torch.stack(totals)
    if reduction == "none":
        return totals[:, ::2].sum(1)
    if reduction == "sum":
        return totals[:, ::2].sum()
    totals = totals.sum(0)
    if reduction == "totals":
        return totals
    return sum(s / c if c > 0 else s for s, c in totals.view(2, 2))


WEIGHTED = {
    name: replace(of, dense=partial(weighted, of.dense), inputs=partial(with_weights, of.inputs))
    for name, of in {**RELATED, **LOSSES}.items()
    if of.dense.func.__name__.removesuffix("_loss") in (*DEFINITIONS, "triplet_margin") and "pairs" not in name
}
# One of every way through the layers above the kernels: an operator's inputs, and which of them have gradients.
LAYERS = [
    "contrastive-euclidean",
    "contrastive-cosine-refs",
    "supcon-euclidean-learned-refs",
    "triplet_margin-unit_euclidean-hard",
    "info_nce",
    "info_nce-learned",
    "siglip",
    "proxy_anchor",
    "arcface",
    "center",
    "linear_cross_entropy-smooth-ignore",
    "spce_loss",
    "pce_loss",
]
every_relation = pytest.mark.parametrize("loss", RELATED.values(), ids=RELATED.keys())
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())


# ---- the operators


def operator_calls():
    """Names and arguments of calls of every operator that has a twin for each backend."""
    generator = torch.Generator().manual_seed(1)
    pair = cast(batch_and_references(9, 4, "few", generator), torch.float32)
    linear = cast(classifier(9, 4, "few", generator, bias=True), torch.float32)
    x, y, labels = pair["embeddings"], pair["ref_emb"], pair["labels"]
    rows, parts = torch.randn(9, generator=generator), torch.randn(4, generator=generator)
    for row_grad, reduction, wanted in (
        (None, "mean", True),
        (None, "sum", False),
        (None, "none", False),
        (rows, "none", True),
        (None, "totals", False),
        (parts, "totals", True),
    ):
        both = {"grad_embeddings": wanted, "grad_ref": wanted, "reduction": reduction, "row_grad": row_grad}
        alone, first = both | {"grad_ref": False}, {"grad_learned": False, "two_sided": False, "learned": None}
        refs = first | {"embeddings": x, "ref_emb": y, "labels": labels, "ref_labels": pair["ref_labels"], **both}
        itself = first | {"embeddings": x, "ref_emb": None, "labels": labels, "ref_labels": None, **alone}
        margins = {"params": [0.1, 1.4], "distance": "euclidean"}
        scale = {"params": [5.0], "distance": "cosine", "self_index": None}
        own = torch.arange(9) % (len(y) + 1) - 1
        sets, ids = (torch.arange(len(t) * 2, dtype=torch.int32).view(-1, 2) % 5 for t in (x, y)), torch.arange(9) % 4
        related = dict(zip(("labels", "ref_labels"), sets)) | {"ids": ids, "ref_ids": ids[: len(y)]}
        pairs = torch.arange(9 * len(y)).view(9, -1).to(torch.int8) % 3 - 1
        calls = [
            refs | margins | {"loss": "contrastive", "self_index": own},
            itself | margins | {"loss": "squared_contrastive", "self_index": None},
            refs | scale | related | {"loss": "snca", "weights": rows.abs()},
            refs | scale | {"loss": "snca", "pairs": pairs},
            refs | scale | {"loss": "supcon", "params": [], "learned": torch.tensor([5.0]), "grad_learned": wanted},
            *(itself | scale | {"loss": loss} for loss in ("ntxent", "hard_triplet")),
            itself | scale | {"loss": "best_positive", "params": []},
            *(refs | scale | {"loss": loss} for loss in ("semihard_triplet", "facenet_triplet")),
        ]
        if reduction != "totals":
            views = refs | {"ref_emb": x.flip(0), "ref_labels": labels, "two_sided": True}
            calls.append(views | scale | {"loss": "supcon", "distance": "dot"})
        for call in calls:
            yield "pair_loss", tuple(PairLossCall(**call))
            if reduction != "totals" and call["distance"] != "euclidean" and "triplet" not in call["loss"]:
                prefixes = {"prefixes": [1, 4], "prefix_weights": [0.5, 2.0]}
                if call["loss"] != "best_positive":
                    yield "prefix_pair_loss", tuple(PrefixPairLossCall(**call, **prefixes))
            if call["learned"] is None and call.keys() <= {*LabelledPairLossCall._fields, "learned", "grad_learned"}:
                yield "labelled_pair_loss", tuple(call[name] for name in LabelledPairLossCall._fields)
        i, j = torch.arange(9), torch.arange(9) % len(y)
        pairs = {"anchors": i, "positives": j, "negative_anchors": i[:5], "negatives": j[1:6]}
        triplets = {"anchors": i, "positives": j, "negative_anchors": None, "negatives": j.flip(0)}
        sides = {"learned": None, "grad_learned": False, "swap": False, "repeats": False, "embeddings": x, **both}
        of_lists = sides | {"ref_emb": y, "params": [5.0], "distance": "cosine"}
        for call in (
            of_lists | pairs | {"loss": "snca", "weights": rows.abs()},
            of_lists | triplets | {"loss": "contrastive", **margins, "repeats": True},
            of_lists | pairs | {"loss": "supcon", "params": [], "learned": torch.tensor([5.0]), "grad_learned": wanted},
            of_lists | triplets | {"loss": "smooth_triplet", "swap": True},
            of_lists | pairs | {"loss": "triplet", "ref_emb": None, "grad_ref": False},
        ):
            yield "listed_pair_loss", tuple(ListedPairLossCall(**call))
        if reduction == "totals":
            continue
        tensors = (linear["embeddings"], linear["weight"], linear["bias"], linear["labels"], row_grad)
        yield "linear_cross_entropy", (*tensors, "linear", 1.0, 0.0, 0.1, -100, reduction, wanted, wanted, wanted)
        tensors = (linear["embeddings"], linear["weight"], None, linear["labels"], row_grad)
        yield "linear_cross_entropy", (*tensors, "arcface", 9.0, 0.3, 0.0, -100, reduction, False, wanted, False)
        yield "spce", (x, labels, row_grad, reduction, wanted)
    yield "pairwise_distance", (x, y, "cosine")
    yield "pairwise_distance", (x.bfloat16(), None, "euclidean")
    yield "pairwise_distance_backward", (torch.randn(9, len(y), generator=generator), x, y, "euclidean", True, True)
    yield "pairwise_distance_backward", (torch.randn(9, 9, generator=generator), x, None, "dot", True, False)


def every_fifth(calls: Iterable[tuple[str, tuple]]) -> Iterator[tuple[str, tuple]]:
    """Of each operator, from its first: in their order settings change slower than what is called."""
    seen = Counter()
    for name, arguments in calls:
        if seen[name] % 5 == 0:
            yield name, arguments
        seen[name] += 1


# ---- comparing


def cast(inputs: dict, dtype: torch.dtype) -> dict:
    """The inputs in a dtype; parameters of the loss, which are single numbers, in float32 where rows are half."""
    floating = {
        name: t.to(dtype if t.ndim else torch.promote_types(dtype, torch.float32))
        for name, t in inputs.items()
        if t is not None and t.is_floating_point()
    }
    return {**inputs, **floating}


def on_cpu(inputs: dict, incoming: torch.Tensor | None) -> tuple[dict, torch.Tensor | None]:
    """Where what the kernels are held against is computed: a GPU would take a launch for each of its operations."""
    return {
        name: None if t is None else t.cpu() for name, t in inputs.items()
    }, None if incoming is None else incoming.cpu()


def value_and_gradients(run: Callable, inputs: dict, trained: tuple[str, ...], incoming=None) -> dict:
    """``run(**inputs)`` and the gradients with respect to its inputs named in ``trained``."""
    leaves = {name: t.detach().requires_grad_() if name in trained else t for name, t in inputs.items()}
    value = run(**leaves)
    incoming = torch.ones_like(value) if incoming is None else incoming.to(value.dtype)
    # A plain formula may come to a result without some input.
    unused = {"allow_unused": True, "materialize_grads": True}
    gradients = torch.autograd.grad(value, [leaves[name] for name in trained], incoming, **unused)
    return {"value": value.detach(), **dict(zip(trained, gradients))}


def oracle(loss: Loss, inputs: dict, reduction: str = "mean", incoming=None) -> dict:
    """The float64 truth for inputs of any dtype."""
    inputs, incoming = on_cpu(inputs, incoming)
    run = partial(loss.fused, reduction=reduction, backend="reference")
    incoming = None if incoming is None else incoming.double()
    return value_and_gradients(run, cast(inputs, torch.float64), loss.trained, incoming)


def strided(t: torch.Tensor) -> torch.Tensor:
    """The same values between others, as slicing leaves them."""
    wide = torch.full([*t.shape[:-1], 2 * t.shape[-1] + 1], 77, dtype=t.dtype, device=t.device)
    wide[..., 1::2] = t
    return wide[..., 1::2]


def equally_hard(n: int) -> dict:
    """Rows with small integers, sorted by label: many of an anchor's pairs are equally hard."""
    inputs = batch(n, 2, "few", torch.Generator().manual_seed(n))
    return {"embeddings": (2 * inputs["embeddings"]).round(), "labels": inputs["labels"].sort().values}


def first_of_the_hardest(embeddings: torch.Tensor, labels: torch.Tensor, margin: float) -> torch.Tensor:
    """The sum of the hinge losses of each anchor's hardest positive and negative, of equals the first."""
    d = (embeddings[:, None] - embeddings[None, :]).square().sum(2)
    same, own, rows = labels[:, None] == labels[None, :], torch.eye(len(d), dtype=torch.bool), torch.arange(len(d))
    # Of numpy's it is documented which of equals they are.
    positive = torch.where(same & ~own, d.detach(), -torch.inf).numpy().argmax(1)
    negative = torch.where(same, torch.inf, d.detach()).numpy().argmin(1)
    return torch.relu(d[rows, positive] - d[rows, negative] + margin).sum()


def off_the_kinks(loss: Loss, inputs: dict) -> Loss:
    """The loss with margins moved by a few 1e-6, so that rounding in float32 takes no score to their other side, where
    a term and its slope of 1 come or go."""
    settings = loss.fused.keywords
    margins = {name: settings[name] for name in ("pos_margin", "neg_margin") if name in settings}
    if not margins:
        return loss
    wide = cast(inputs, torch.float64)
    # Among many more scores some are at any margin but for rounding.
    if len(wide["embeddings"]) * len(wide.get("ref_emb", wide["embeddings"])) > 1 << 21:
        return loss
    scores = dense.scores(wide["embeddings"], wide.get("ref_emb", wide["embeddings"]), settings["distance"])
    for name, margin in margins.items():
        while ((scores - margin).abs() < 1e-6).any() and margin not in (0.0, 1.0):
            margin += 3e-6
        margins[name] = margin
    return replace(loss, fused=partial(loss.fused, **margins), dense=partial(loss.dense, **margins))


def growth_of_memory(forks: Forks, setup: str, small: str, large: str) -> float:
    """By how many MiB the peak of the resident set is higher after ``large`` than after ``small``, in a new process."""
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux counts the peak of the resident set in KiB")
    peak = "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss"
    code = [f"import resource\n{setup}", small, f"before = {peak}", large, f"print(({peak} - before) / 1024)"]
    return float(forks.run("\n".join(code)))


def error(got: torch.Tensor, want: torch.Tensor, floor: float = FLOOR) -> float:
    got = got.to(want.device)
    assert got.shape == want.shape
    assert got.isfinite().all()
    return ((got.double() - want).norm() / want.norm().clamp(min=floor)).item()


def tolerance(inputs: dict, name: str) -> float:
    """The error of a result that rounding explains; in half precision that of the result itself."""
    dtype = inputs["embeddings"].dtype
    if dtype not in TOLERANCE:
        return torch.finfo(dtype).eps
    # The gradient by a parameter is a sum over all pairs, of which little may be left.
    single = name in inputs and inputs[name].ndim == 0
    return TOLERANCE[dtype] * (5 if single else 1)


def assert_matches_oracle(
    loss: Loss,
    inputs: dict,
    reduction: str = "mean",
    incoming=None,
    results: tuple[str, ...] | None = None,
    backend: str = "cpu",
) -> None:
    """Loss and all gradients, or the named ones of these ``results``, of a backend are those of the float64 oracle: up
    to rounding, or in half precision up to twice the error that the dense formula makes in the same dtype."""
    dtype = inputs["embeddings"].dtype
    if dtype == torch.float32:
        loss = off_the_kinks(loss, inputs)
    run = partial(loss.fused, reduction=reduction, backend=backend)
    got = value_and_gradients(run, inputs, loss.trained, incoming)
    want = oracle(loss, inputs, reduction, incoming)
    large = {}
    for name in results or want:
        if name in inputs:
            assert got[name].dtype == inputs[name].dtype
        # Unit vectors of one dimension are 1 or -1: nothing changes with the rows but by rounding, and the direction of
        # a distance that is zero but for rounding is any.
        if loss.unit and inputs["embeddings"].shape[1] == 1 and name in inputs:
            assert got[name].isfinite().all()
            continue
        # Losses are differences of terms of about 1.
        found = error(got[name], want[name], FLOOR if name in inputs else 0.1)
        if not found <= tolerance(inputs, name):
            large[name] = found, tolerance(inputs, name)
    if large and dtype not in TOLERANCE:
        inputs, incoming = on_cpu(inputs, incoming)
        plain = value_and_gradients(partial(loss.dense, reduction=reduction), inputs, loss.trained, incoming)
        of_dense = {name: error(plain[name], want[name]) for name in large if plain[name].isfinite().all()}
        large |= {name: (large[name][0], 2 * of_dense[name]) for name in of_dense}
        large = {name: (found, allowed) for name, (found, allowed) in large.items() if not found <= allowed}
    assert not large, f"{reduction}: errors found and allowed {large}"

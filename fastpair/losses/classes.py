"""The losses on one vector per class: cross-entropy of a linear classifier and its relatives, proxies, centres."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from fastpair import ops
from fastpair.backends import choose_backend
from fastpair.formulas.class_losses import CLASS_LOSSES, ClassDefinition
from fastpair.losses import options
from fastpair.losses.base import FunctionLoss, RegularizedLoss
from fastpair.numerics import accumulate_dtype, reduced
from fastpair.ops import checks

__all__ = ["ClassLoss", "LinearCrossEntropyLoss", "linear_cross_entropy"]

SIZES = dict.fromkeys(("num_classes", "embedding_size"), partial(options.at_least, least=1))
LINEAR = {"label_smoothing": options.fraction, "ignore_index": options.integer, "reduction": options.reduction}


def linear_cross_entropy(
    embeddings: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Cross-entropy of a linear classifier, without the (n, K) logits in memory.

        l_i = -sum_k q_ik log p_ik,   p_i = softmax(weight @ z_i + bias),
        q_ik = (1 - label_smoothing) [k = y_i] + label_smoothing / K

    as ``F.cross_entropy(F.linear(embeddings, weight, bias), labels, ...)`` computes it.

    Args:
        embeddings: z (n, d).
        weight: class weights (K, d), of the embeddings' dtype unless autocast is on, K >= 1.
        labels: integers (n,) in [0, K), or ``ignore_index``. Any other label raises ValueError on the CPU; on a GPU,
            where checking it would wait for the device, it makes the loss NaN.
        bias: (K,) or None.
        label_smoothing: in [0, 1].
        ignore_index: rows with this label have loss 0, no gradient, and do not count in the mean.
        reduction: "mean" over the rows that count (0 where there are none, unlike the NaN of ``F.cross_entropy``),
            "sum" or "none".

    Source: Boudiaf et al., ECCV 2020 (arXiv 2003.08983), eq. for L_CE.
    """
    settings = {"label_smoothing": label_smoothing, "ignore_index": ignore_index, "reduction": reduction}
    options.check(LINEAR, **settings)
    return ops.linear_cross_entropy(embeddings, weight, labels, bias, **settings, backend=backend)


class LinearCrossEntropyLoss(FunctionLoss):
    """Cross-entropy of a linear classifier that the loss holds: see :func:`fastpair.functional.linear_cross_entropy`.

    ``weight`` (num_classes, embedding_size) and ``bias`` (num_classes,) are parameters, initialised as ``nn.Linear``
    does: give ``loss.parameters()`` to the optimiser.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        bias: bool = True,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        settings = {"label_smoothing": label_smoothing, "ignore_index": ignore_index, "reduction": reduction}
        options.check(SIZES, num_classes=num_classes, embedding_size=embedding_size)
        options.check(LINEAR, **settings)
        super().__init__(linear_cross_entropy, **settings)
        self.weight = nn.Parameter(torch.empty(num_classes, embedding_size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_classes, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.weight.shape[1])
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return self._function(embeddings, self.weight, labels, self.bias, **self.settings())

    def extra_repr(self) -> str:
        classes, size = self.weight.shape
        return f"num_classes={classes}, embedding_size={size}, bias={self.bias is not None}, {super().extra_repr()}"


class ClassLoss(RegularizedLoss):
    """The base of the losses on one vector per class, called ``loss(embeddings, labels)``.

    The vectors (num_classes, embedding_size) are a parameter, named by ``vectors``, which keeps its own dtype: give
    ``loss.parameters()`` to the optimiser. They are drawn from a normal distribution, whose variance is 1, or with
    ``fan_out`` 2 / num_classes. Settings are checked when the loss is made. ``load_state_dict`` takes the state of the
    loss of the same name of pytorch-metric-learning too.

    Args:
        reducer, embedding_regularizer, embedding_reg_weight: see :class:`RegularizedLoss`.
        weight_regularizer, weight_reg_weight: the same for the vectors.
    """

    definition: ClassDefinition

    def __init__(
        self,
        function: Callable,
        num_classes: int,
        embedding_size: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        *,
        weight_regularizer: Callable[[Tensor], Tensor] | None = None,
        weight_reg_weight: float = 1.0,
        **others,
    ):
        super().__init__(function, **others)
        options.check(SIZES, num_classes=num_classes, embedding_size=embedding_size)
        self.vectors = self.definition.vectors
        parameter = nn.Parameter(torch.empty(num_classes, embedding_size, device=device, dtype=dtype))
        self.register_parameter(self.vectors, parameter)
        self.set_regularizer("weight", weight_regularizer, weight_reg_weight)
        self.reset_parameters()

    @property
    def num_classes(self) -> int:
        return getattr(self, self.vectors).shape[0]

    @property
    def embedding_size(self) -> int:
        return getattr(self, self.vectors).shape[1]

    @property
    def W(self) -> Tensor:
        """The name in pytorch-metric-learning of what is ``weight`` here: its transpose (embedding_size, num_classes),
        a view. The parameter, which optimisers take and whose ``data`` can be replaced, is ``weight``."""
        return self.weight.T

    def get_logits(self, embeddings: Tensor) -> Tensor:
        """The logits (n, num_classes) of embeddings (n, d), in their dtype: the cosines with the vectors, times the
        scale of the loss if it is a cross-entropy, without a margin."""
        if self.definition.formula == "center":
            raise TypeError(f"{type(self).__name__} has no logits: it compares samples with their own centre alone")
        checks.matrix("embeddings", embeddings)
        vectors = getattr(self, self.vectors).to(embeddings.dtype)
        cosines = ops.pairwise_distance(embeddings, vectors, "cosine", None)
        return self.definition.params(self.settings()).get("scale", 1.0) * cosines

    def reset_parameters(self) -> None:
        vectors = getattr(self, self.vectors)
        if self.definition.fan_out:
            nn.init.kaiming_normal_(vectors, mode="fan_out")
        else:
            nn.init.normal_(vectors)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: None = None,
        ref_emb: None = None,
        ref_labels: None = None,
    ) -> Tensor:
        checks.no_pairs(indices_tuple, ref_emb, ref_labels)
        vectors = getattr(self, self.vectors)
        loss = self._function(embeddings=embeddings, labels=labels, **{self.vectors: vectors}, **self.settings())
        if self.embedding_regularizer is not None:
            loss = self.regularized(loss, "embedding", embeddings)
        return loss if self.weight_regularizer is None else self.regularized(loss, "weight", vectors)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *others) -> None:
        there, here = prefix + "W", prefix + "weight"
        if self.vectors == "weight" and there in state_dict and here not in state_dict:
            state_dict[here] = state_dict.pop(there).T.contiguous()
        super()._load_from_state_dict(state_dict, prefix, *others)

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, embedding_size={self.embedding_size}, {super().extra_repr()}"


def class_loss(
    name: str, settings: dict, embeddings: Tensor, vectors: Tensor, labels: Tensor, backend: str | None
) -> Tensor:
    """A loss of ``CLASS_LOSSES``."""
    options.check_settings(name, settings)
    of = CLASS_LOSSES[name]
    if of.formula == "proxy_anchor":
        return proxy_anchor(embeddings, vectors, labels, **settings, backend=backend)
    if of.formula == "center":
        return center(embeddings, vectors, labels, **settings, backend=backend)
    return ops.linear_cross_entropy(
        embeddings,
        vectors,
        labels,
        logits=of.formula,
        **of.params(settings),
        reduction=settings["reduction"],
        backend=backend,
        weight_name=of.vectors,
    )


def proxy_anchor(
    embeddings: Tensor,
    proxies: Tensor,
    labels: Tensor,
    margin: float,
    alpha: float,
    reduction: str,
    backend: str | None = None,
    anchors: slice | None = None,
) -> Tensor:
    """The loss of the proxies in the slice ``anchors``, by default of all."""
    labels = checks.embeddings_and_labels(embeddings, labels)
    checks.matrix("proxies", proxies, "d")
    embeddings, proxies = checks.both_sides(embeddings, proxies, "proxies")
    checks.class_range(labels, proxies.shape[0])
    classes = torch.arange(proxies.shape[0], device=labels.device, dtype=labels.dtype)
    if anchors is not None:
        proxies, classes = proxies[anchors], classes[anchors]
    return ops.pair_loss(
        "proxy_anchor",
        [float(alpha), float(margin)],
        proxies,
        ops.relation(proxies, classes, embeddings, labels, False),
        distance="cosine",
        reduction=reduction,
        backend=backend,
    )


def center(embeddings: Tensor, centers: Tensor, labels: Tensor, reduction: str, backend: str | None) -> Tensor:
    """Half the squared distance of each embedding to its centre, in plain PyTorch."""
    labels = checks.embeddings_and_labels(embeddings, labels)
    checks.matrix("centers", centers, "d")
    checks.same_columns("centers", centers, "embeddings", embeddings)
    checks.class_range(labels, len(centers))
    if backend is not None:
        choose_backend(embeddings.device.type, backend)  # all backends compute the same, but a wrong name is an error
    with torch.autocast(embeddings.device.type, enabled=False):
        dtype = accumulate_dtype(embeddings.dtype)
        # The way of indexing whose gradient is summed in a fixed order, for the same bits every time.
        wide, index = centers.to(dtype), labels.long()
        own = wide[index] if wide.is_cuda else wide.index_select(0, index)
        per_row = (embeddings.to(dtype) - own).square().sum(1) / 2
    return reduced(per_row, per_row.sum() / max(len(per_row), 1), reduction)

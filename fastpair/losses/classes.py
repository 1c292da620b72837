"""The losses on one vector per class: cross-entropy of a linear classifier and its relatives, proxies, centres."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from fastpair import ops
from fastpair.backends import choose_backend
from fastpair.losses import options
from fastpair.losses.base import FunctionLoss
from fastpair.numerics import accumulate_dtype, reduced
from fastpair.ops import checks

__all__ = [
    "ArcFaceLoss",
    "CenterLoss",
    "ClassLoss",
    "CosFaceLoss",
    "LinearCrossEntropyLoss",
    "NormalizedSoftmaxLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "arcface_loss",
    "center_loss",
    "cosface_loss",
    "linear_cross_entropy",
    "normalized_softmax_loss",
    "proxy_anchor_loss",
    "proxy_nca_loss",
]

SIZES = dict.fromkeys(("num_classes", "embedding_size"), partial(options.at_least, least=1))
LINEAR = {"label_smoothing": options.fraction, "ignore_index": options.integer, "reduction": options.reduction}
NORMALIZED_SOFTMAX = {"temperature": options.positive, "reduction": options.reduction}
COSFACE = {"margin": options.finite, "scale": options.positive, "reduction": options.reduction}
ARCFACE = {**COSFACE, "margin": options.degrees}
PROXY_NCA = {"softmax_scale": options.positive, "reduction": options.reduction}
PROXY_ANCHOR = {"margin": options.finite, "alpha": options.positive, "reduction": options.pair_reduction}
CENTER = {"reduction": options.reduction}


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


class LinearCrossEntropyLoss(nn.Module):
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
        super().__init__()
        options.check(SIZES, num_classes=num_classes, embedding_size=embedding_size)
        options.check(LINEAR, label_smoothing=label_smoothing, ignore_index=ignore_index, reduction=reduction)
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.weight = nn.Parameter(torch.empty(num_classes, embedding_size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_classes, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.weight.shape[1])
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return linear_cross_entropy(
            embeddings,
            self.weight,
            labels,
            self.bias,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return (
            f"num_classes={self.weight.shape[0]}, embedding_size={self.weight.shape[1]}, bias={self.bias is not None}, "
            f"label_smoothing={self.label_smoothing}, ignore_index={self.ignore_index}, reduction={self.reduction!r}"
        )


class ClassLoss(FunctionLoss):
    """The base of the losses on one vector per class, called ``loss(embeddings, labels)``.

    The vectors (num_classes, embedding_size) are a parameter, named by ``vectors``, which keeps its own dtype: give
    ``loss.parameters()`` to the optimiser. Settings are checked when the loss is made.
    """

    vectors = "weight"

    rules: Mapping[str, options.Rule]

    def __init__(self, function: Callable, num_classes: int, embedding_size: int, device, dtype, **settings):
        super().__init__(function, **settings)
        options.check(SIZES, num_classes=num_classes, embedding_size=embedding_size)
        options.check(self.rules, **settings)
        parameter = nn.Parameter(torch.empty(num_classes, embedding_size, device=device, dtype=dtype))
        self.register_parameter(self.vectors, parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(getattr(self, self.vectors))

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: None = None,
        ref_emb: None = None,
        ref_labels: None = None,
    ) -> Tensor:
        checks.no_pairs(indices_tuple, ref_emb, ref_labels)
        vectors = {self.vectors: getattr(self, self.vectors)}
        return self._function(embeddings=embeddings, labels=labels, **vectors, **self.settings())

    def extra_repr(self) -> str:
        classes, size = getattr(self, self.vectors).shape
        return f"num_classes={classes}, embedding_size={size}, {super().extra_repr()}"


def normalized_softmax_loss(
    embeddings: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.05,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Cross-entropy of cosines: logits cos(z_i, w_k) / temperature.

    Args:
        embeddings: z (n, d).
        weight: class weights w (K, d), of the embeddings' dtype unless autocast is on.
        labels: integers (n,) in [0, K), none of which is ignored; any other as in :func:`linear_cross_entropy`.
        temperature: positive.
        reduction: "mean", "sum" or "none".

    Source: Zhai and Wu, BMVC 2019 (arXiv 1811.12649), eq. 3.
    """
    options.check(NORMALIZED_SOFTMAX, temperature=temperature, reduction=reduction)
    logits = {"logits": "cosface", "scale": 1 / temperature, "margin": 0.0}
    return ops.linear_cross_entropy(embeddings, weight, labels, **logits, reduction=reduction, backend=backend)


class NormalizedSoftmaxLoss(ClassLoss):
    """Cross-entropy of cosines: see :func:`fastpair.functional.normalized_softmax_loss`."""

    rules = NORMALIZED_SOFTMAX

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        temperature: float = 0.05,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        sizes = (num_classes, embedding_size, device, dtype)
        super().__init__(normalized_softmax_loss, *sizes, temperature=temperature, reduction=reduction)


def cosface_loss(
    embeddings: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.35,
    scale: float = 64.0,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Cross-entropy of cosines with a margin: logits scale (cos(z_i, w_k) - margin [k = y_i]).

    Args:
        embeddings, weight, labels, reduction: as for :func:`normalized_softmax_loss`.
        margin: in units of the cosine.
        scale: positive.

    Source: Wang et al., CVPR 2018 (arXiv 1801.09414), eq. 4.
    """
    options.check(COSFACE, margin=margin, scale=scale, reduction=reduction)
    logits = {"logits": "cosface", "scale": float(scale), "margin": float(margin)}
    return ops.linear_cross_entropy(embeddings, weight, labels, **logits, reduction=reduction, backend=backend)


class CosFaceLoss(ClassLoss):
    """Cross-entropy of cosines with a margin: see :func:`fastpair.functional.cosface_loss`."""

    rules = COSFACE

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 0.35,
        scale: float = 64.0,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        sizes = (num_classes, embedding_size, device, dtype)
        super().__init__(cosface_loss, *sizes, margin=margin, scale=scale, reduction=reduction)


def arcface_loss(
    embeddings: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    margin: float = 28.6,
    scale: float = 64.0,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Cross-entropy of cosines with a margin on the angle: logits scale cos(theta_ik + margin [k = y_i]).

    Where theta + margin exceeds 180 degrees the target's logit is scale (cos theta - m sin m), m being the margin in
    radians, so that it keeps falling with the angle. The gradient is finite at theta = 0 too, where
    pytorch-metric-learning's is NaN: within 0.06 degrees of it sin theta is replaced by a straight line.

    Args:
        embeddings, weight, labels, reduction: as for :func:`normalized_softmax_loss`.
        margin: in degrees, at least 0 and below 180.
        scale: positive.

    Source: Deng et al., CVPR 2019 (arXiv 1801.07698), eq. 3.
    """
    options.check(ARCFACE, margin=margin, scale=scale, reduction=reduction)
    logits = {"logits": "arcface", "scale": float(scale), "margin": margin * math.pi / 180}
    return ops.linear_cross_entropy(embeddings, weight, labels, **logits, reduction=reduction, backend=backend)


class ArcFaceLoss(ClassLoss):
    """Cross-entropy of cosines with a margin in degrees: see :func:`fastpair.functional.arcface_loss`."""

    rules = ARCFACE

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 28.6,
        scale: float = 64.0,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        sizes = (num_classes, embedding_size, device, dtype)
        super().__init__(arcface_loss, *sizes, margin=margin, scale=scale, reduction=reduction)


def proxy_nca_loss(
    embeddings: Tensor,
    proxies: Tensor,
    labels: Tensor,
    *,
    softmax_scale: float = 1.0,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Neighbourhood components analysis with one proxy per class.

        l_i = -log( exp(-softmax_scale d_{i y_i}) / sum_k exp(-softmax_scale d_ik) ),  d_ik = |z_i/|z_i| - p_k/|p_k||^2

    With d = 2 - 2 cos it is the cross-entropy of cosines at scale 2 ``softmax_scale``. As in pytorch-metric-learning,
    and unlike the paper, a sample's own proxy is in the denominator.

    Args:
        embeddings, labels, reduction: as for :func:`normalized_softmax_loss`.
        proxies: p (K, d).
        softmax_scale: positive.

    Source: Movshovitz-Attias et al., ICCV 2017 (arXiv 1703.07464), eq. 4.
    """
    options.check(PROXY_NCA, softmax_scale=softmax_scale, reduction=reduction)
    logits = {"logits": "cosface", "scale": 2.0 * softmax_scale, "margin": 0.0}
    return ops.linear_cross_entropy(
        embeddings, proxies, labels, **logits, reduction=reduction, backend=backend, weight_name="proxies"
    )


class ProxyNCALoss(ClassLoss):
    """Neighbourhood components analysis with proxies: see :func:`fastpair.functional.proxy_nca_loss`."""

    rules = PROXY_NCA
    vectors = "proxies"

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        softmax_scale: float = 1.0,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        sizes = (num_classes, embedding_size, device, dtype)
        super().__init__(proxy_nca_loss, *sizes, softmax_scale=softmax_scale, reduction=reduction)


def proxy_anchor_loss(
    embeddings: Tensor,
    proxies: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.1,
    alpha: float = 32.0,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Proxy-anchor loss: a pair loss whose anchors are the proxies of the classes.

        l_k = log(1 + sum_{i: y_i = k} exp(-alpha (s_ik - margin)))
            + log(1 + sum_{i: y_i != k} exp(alpha (s_ik + margin)))

    with s_ik the cosine of embedding i and proxy k.

    Args:
        embeddings: (n, d).
        proxies: (K, d), of the embeddings' dtype unless autocast is on.
        labels: integers (n,) in [0, K).
        margin: in units of the cosine.
        alpha: positive.
        reduction: "mean": the first part averaged over the proxies with samples in the batch, the second over all K;
            "sum"; "none": (K,); "totals" as for the pair losses.

    Source: Kim et al., CVPR 2020 (arXiv 2003.13911), eq. 4.
    """
    options.check(PROXY_ANCHOR, margin=margin, alpha=alpha, reduction=reduction)
    return proxy_anchor(embeddings, proxies, labels, margin, alpha, reduction, backend)


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
    checks.embeddings_and_labels(embeddings, labels)
    checks.matrix("proxies", proxies, "d")
    device = embeddings.device.type
    if torch.is_autocast_enabled(device) and embeddings.dtype != proxies.dtype:
        # The embeddings come in the autocast dtype; the proxies and their gradients keep their own.
        embeddings = embeddings.to(proxies.dtype)
    checks.like("proxies", proxies, "embeddings", embeddings)
    checks.class_range(labels, proxies.shape[0])
    classes = torch.arange(proxies.shape[0], device=labels.device, dtype=labels.dtype)
    if anchors is not None:
        proxies, classes = proxies[anchors], classes[anchors]
    return ops.pair_loss(
        "proxy_anchor",
        [float(alpha), float(margin)],
        proxies,
        classes,
        embeddings,
        labels,
        distance="cosine",
        reduction=reduction,
        backend=backend,
        exclude_self=False,
    )


class ProxyAnchorLoss(ClassLoss):
    """Proxy-anchor loss: see :func:`fastpair.functional.proxy_anchor_loss`."""

    rules = PROXY_ANCHOR
    vectors = "proxies"

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 0.1,
        alpha: float = 32.0,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        sizes = (num_classes, embedding_size, device, dtype)
        super().__init__(proxy_anchor_loss, *sizes, margin=margin, alpha=alpha, reduction=reduction)

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")


def center_loss(
    embeddings: Tensor, labels: Tensor, centers: Tensor, *, reduction: str = "mean", backend: str | None = None
) -> Tensor:
    r"""Center loss: l_i = 1/2 |z_i - c_{y_i}|^2, O(nd), plain PyTorch.

    Args:
        embeddings: z (n, d).
        labels: integers (n,) in [0, K).
        centers: c (K, d), of any floating dtype.
        reduction: "mean", "sum" or "none".

    Source: Wen et al., ECCV 2016, eq. 2; Boudiaf et al., ECCV 2020 (arXiv 2003.08983), Table 1.
    """
    checks.embeddings_and_labels(embeddings, labels)
    checks.matrix("centers", centers, "d")
    checks.same_columns("centers", centers, "embeddings", embeddings)
    checks.class_range(labels, len(centers))
    options.check(CENTER, reduction=reduction)
    if backend is not None:
        choose_backend(embeddings.device.type, backend)  # all backends compute the same, but a wrong name is an error
    with torch.autocast(embeddings.device.type, enabled=False):
        dtype = accumulate_dtype(embeddings.dtype)
        # The way of indexing whose gradient is summed in a fixed order, for the same bits every time.
        wide, index = centers.to(dtype), labels.long()
        own = wide[index] if wide.is_cuda else wide.index_select(0, index)
        per_row = (embeddings.to(dtype) - own).square().sum(1) / 2
    return reduced(per_row, per_row.sum() / max(len(per_row), 1), reduction)


class CenterLoss(ClassLoss):
    """The pull of samples towards the centre of their class: see :func:`fastpair.functional.center_loss`."""

    rules = CENTER
    vectors = "centers"

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        sizes = (num_classes, embedding_size, device, dtype)
        super().__init__(center_loss, *sizes, reduction=reduction)

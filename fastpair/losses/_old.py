"""The losses as modules: twins of :mod:`fastpair.functional`, whose functions give the formulas and the errors raised.

Pair losses are called ``loss(embeddings, labels, indices_tuple=None, ref_emb=None, ref_labels=None)``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastpair import functional
from fastpair.ops import checks

__all__ = [
    "ArcFaceLoss",
    "CenterLoss",
    "CircleLoss",
    "ContrastiveLoss",
    "CosFaceLoss",
    "CrossBatchMemory",
    "GeneralizedLiftedStructureLoss",
    "InfoNCELoss",
    "LinearCrossEntropyLoss",
    "MultiSimilarityLoss",
    "NCALoss",
    "NTXentLoss",
    "NormalizedSoftmaxLoss",
    "PCELoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "SNCALoss",
    "SPCELoss",
    "SigLIPLoss",
    "SupConLoss",
    "TripletMarginLoss",
]


class _FunctionLoss(nn.Module):
    """A loss without parameters: a function of :mod:`fastpair.functional` and its settings, which are attributes."""

    def __init__(self, function: Callable, **settings):
        super().__init__()
        self._function = function
        self._settings = tuple(settings)
        for name, value in settings.items():
            setattr(self, name, value)

    def settings(self) -> dict:
        return {name: getattr(self, name) for name in self._settings}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.settings().items())


class PairLoss(_FunctionLoss):
    """What the pair losses have in common: ``loss(embeddings, labels, indices_tuple=None, ref_emb=None,
    ref_labels=None, exclude_self=None)``, arguments as described in :mod:`fastpair.functional`.

    Settings are checked when the loss is made.
    """

    def __init__(self, function: Callable, **settings):
        super().__init__(function, **settings)
        no_triplets = (torch.empty(0, dtype=torch.int64),) * 3
        function(torch.empty(0, 1), None, indices_tuple=no_triplets, **settings, backend="reference")

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        exclude_self: bool | Tensor | None = None,
    ) -> Tensor:
        return self._function(
            embeddings,
            labels,
            ref_emb,
            ref_labels,
            indices_tuple=indices_tuple,
            exclude_self=exclude_self,
            **self.settings(),
        )


class ContrastiveLoss(PairLoss):
    """Contrastive loss over all pairs: see :func:`fastpair.functional.contrastive_loss` for formula and arguments."""

    def __init__(
        self,
        pos_margin: float = 0.0,
        neg_margin: float = 1.0,
        distance: str = "unit_euclidean",
        power: int = 1,
        reduction: str = "mean",
    ):
        super().__init__(
            functional.contrastive_loss,
            pos_margin=pos_margin,
            neg_margin=neg_margin,
            distance=distance,
            power=power,
            reduction=reduction,
        )


class SNCALoss(PairLoss):
    """Scalable neighbourhood component analysis: see :func:`fastpair.functional.snca_loss`."""

    def __init__(self, temperature: float = 0.1, distance: str = "cosine", reduction: str = "mean"):
        super().__init__(functional.snca_loss, temperature=temperature, distance=distance, reduction=reduction)


class NCALoss(PairLoss):
    """Neighbourhood components analysis: see :func:`fastpair.functional.nca_loss`."""

    def __init__(self, softmax_scale: float = 1.0, distance: str = "unit_sqeuclidean", reduction: str = "mean"):
        super().__init__(functional.nca_loss, softmax_scale=softmax_scale, distance=distance, reduction=reduction)


class SupConLoss(PairLoss):
    """Supervised contrastive loss: see :func:`fastpair.functional.supcon_loss`."""

    def __init__(self, temperature: float = 0.1, distance: str = "cosine", reduction: str = "mean"):
        super().__init__(functional.supcon_loss, temperature=temperature, distance=distance, reduction=reduction)


class NTXentLoss(PairLoss):
    """Normalised temperature-scaled cross-entropy: see :func:`fastpair.functional.ntxent_loss`."""

    def __init__(self, temperature: float = 0.07, distance: str = "cosine", reduction: str = "mean"):
        super().__init__(functional.ntxent_loss, temperature=temperature, distance=distance, reduction=reduction)


class MultiSimilarityLoss(PairLoss):
    """Multi-similarity loss: see :func:`fastpair.functional.multi_similarity_loss`."""

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        distance: str = "cosine",
        reduction: str = "mean",
    ):
        super().__init__(
            functional.multi_similarity_loss, alpha=alpha, beta=beta, base=base, distance=distance, reduction=reduction
        )


class CircleLoss(PairLoss):
    """Circle loss with pairwise labels: see :func:`fastpair.functional.circle_loss`."""

    def __init__(self, m: float = 0.4, gamma: float = 80.0, distance: str = "cosine", reduction: str = "mean"):
        super().__init__(functional.circle_loss, m=m, gamma=gamma, distance=distance, reduction=reduction)


class GeneralizedLiftedStructureLoss(PairLoss):
    """Lifted structure loss: see :func:`fastpair.functional.generalized_lifted_structure_loss`."""

    def __init__(
        self,
        neg_margin: float = 1.0,
        pos_margin: float = 0.0,
        distance: str = "unit_euclidean",
        reduction: str = "mean",
    ):
        super().__init__(
            functional.generalized_lifted_structure_loss,
            neg_margin=neg_margin,
            pos_margin=pos_margin,
            distance=distance,
            reduction=reduction,
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
        super().__init__(
            functional.triplet_margin_loss,
            margin=margin,
            swap=swap,
            smooth_loss=smooth_loss,
            triplets_per_anchor=triplets_per_anchor,
            distance=distance,
            reduction=reduction,
        )


class InfoNCELoss(_FunctionLoss):
    """InfoNCE of two views, ``loss(embeddings, ref_emb)``: see :func:`fastpair.functional.info_nce_loss`.

    ``learn_temperature=True`` makes the temperature a parameter: the loss holds ``log_temperature``.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        symmetric: bool = True,
        distance: str = "cosine",
        reduction: str = "mean",
        learn_temperature: bool = False,
    ):
        super().__init__(functional.info_nce_loss, symmetric=symmetric, distance=distance, reduction=reduction)
        checks.positive("temperature", temperature)
        checks.one_of("distance", distance, checks.SIMILARITIES if learn_temperature else checks.METRICS)
        checks.one_of("reduction", reduction, checks.REDUCTIONS)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature))) if learn_temperature else None
        self.initial_temperature = temperature

    @property
    def temperature(self) -> float | Tensor:
        return self.initial_temperature if self.log_temperature is None else self.log_temperature.exp()

    def forward(self, embeddings: Tensor, ref_emb: Tensor) -> Tensor:
        return self._function(embeddings, ref_emb, temperature=self.temperature, **self.settings())

    def extra_repr(self) -> str:
        learned = ", learn_temperature=True" if self.log_temperature is not None else ""
        return f"temperature={self.initial_temperature}, {super().extra_repr()}{learned}"


class SigLIPLoss(nn.Module):
    """Sigmoid loss of two views, ``loss(embeddings, ref_emb)``: see :func:`fastpair.functional.siglip_loss`.

    ``log_scale`` and ``bias`` are parameters, initialised as in the paper by default.
    """

    def __init__(self, scale: float = 10.0, bias: float = -10.0, reduction: str = "mean"):
        super().__init__()
        checks.positive("scale", scale)
        checks.finite("bias", bias)
        checks.one_of("reduction", reduction, checks.REDUCTIONS)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(float(bias)))
        self.reduction = reduction

    def forward(self, embeddings: Tensor, ref_emb: Tensor) -> Tensor:
        return functional.siglip_loss(embeddings, ref_emb, self.log_scale.exp(), self.bias, reduction=self.reduction)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


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
        checks.at_least("num_classes", num_classes, 1)
        checks.at_least("embedding_size", embedding_size, 1)
        checks.one_of("reduction", reduction, checks.REDUCTIONS)
        checks.fraction("label_smoothing", label_smoothing)
        checks.integer("ignore_index", ignore_index)
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
        return functional.linear_cross_entropy(
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


class ClassLoss(_FunctionLoss):
    """What the losses on one vector a class have in common: ``loss(embeddings, labels)``.

    The vectors (num_classes, embedding_size) are a parameter, named in ``vectors``, which keeps its own dtype: give
    ``loss.parameters()`` to the optimiser. Settings are checked when the loss is made.
    """

    vectors = "weight"

    def __init__(self, function: Callable, num_classes: int, embedding_size: int, device, dtype, **settings):
        super().__init__(function, **settings)
        checks.at_least("num_classes", num_classes, 1)
        checks.at_least("embedding_size", embedding_size, 1)
        self._call(torch.empty(0, 1), torch.empty(0, dtype=torch.int64), torch.empty(1, 1))
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
        return self._call(embeddings, labels, getattr(self, self.vectors))

    def _call(self, embeddings: Tensor, labels: Tensor, vectors: Tensor) -> Tensor:
        return self._function(embeddings=embeddings, labels=labels, **{self.vectors: vectors}, **self.settings())

    def extra_repr(self) -> str:
        classes, size = getattr(self, self.vectors).shape
        return f"num_classes={classes}, embedding_size={size}, {super().extra_repr()}"


class NormalizedSoftmaxLoss(ClassLoss):
    """Cross-entropy of cosines: see :func:`fastpair.functional.normalized_softmax_loss`."""

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
        super().__init__(functional.normalized_softmax_loss, *sizes, temperature=temperature, reduction=reduction)


class CosFaceLoss(ClassLoss):
    """Cross-entropy of cosines with a margin: see :func:`fastpair.functional.cosface_loss`."""

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
        super().__init__(functional.cosface_loss, *sizes, margin=margin, scale=scale, reduction=reduction)


class ArcFaceLoss(ClassLoss):
    """Cross-entropy of cosines with a margin in degrees: see :func:`fastpair.functional.arcface_loss`."""

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
        super().__init__(functional.arcface_loss, *sizes, margin=margin, scale=scale, reduction=reduction)


class ProxyNCALoss(ClassLoss):
    """Neighbourhood components analysis with proxies: see :func:`fastpair.functional.proxy_nca_loss`."""

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
        super().__init__(functional.proxy_nca_loss, *sizes, softmax_scale=softmax_scale, reduction=reduction)


class ProxyAnchorLoss(ClassLoss):
    """Proxy-anchor loss: see :func:`fastpair.functional.proxy_anchor_loss`."""

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
        super().__init__(functional.proxy_anchor_loss, *sizes, margin=margin, alpha=alpha, reduction=reduction)

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")


class CenterLoss(ClassLoss):
    """The pull of samples to a centre of their class: see :func:`fastpair.functional.center_loss`."""

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
        super().__init__(functional.center_loss, *sizes, reduction=reduction)


class SPCELoss(nn.Module):
    """Simplified pairwise cross-entropy: see :func:`fastpair.functional.spce_loss`."""

    def __init__(self, reduction: str = "mean"):
        super().__init__()
        checks.one_of("reduction", reduction, checks.REDUCTIONS)
        self.reduction = reduction

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return functional.spce_loss(embeddings, labels, reduction=self.reduction)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


class PCELoss(nn.Module):
    """Pairwise cross-entropy: see :func:`fastpair.functional.pce_loss`.

    Called ``loss(embeddings, labels, probabilities)``.
    """

    def __init__(self, lam: float | None = None, reduction: str = "mean"):
        super().__init__()
        checks.one_of("reduction", reduction, checks.REDUCTIONS)
        checks.positive_or_none("lam", lam)
        self.lam = lam
        self.reduction = reduction

    def forward(self, embeddings: Tensor, labels: Tensor, probabilities: Tensor) -> Tensor:
        return functional.pce_loss(embeddings, labels, probabilities, lam=self.lam, reduction=self.reduction)

    def extra_repr(self) -> str:
        return f"lam={self.lam}, reduction={self.reduction!r}"


class CrossBatchMemory(nn.Module):
    """A pair loss against the embeddings of past batches: ``loss(embeddings, ref_emb=memory)``.

    The batch is enqueued first, in place of the oldest embeddings once the memory is full, and then compared with all
    that is in the memory, itself included: an anchor's own copy is no pair of it. Gradients reach the batch alone. The
    memory keeps its own dtype, float32 unless it is converted, and all of its state, the position in the ring included,
    is in ``state_dict``: a resumed run goes on as if it had not stopped. Call backward before the next batch comes, as
    that overwrites what the gradient may need (autograd raises an error otherwise).

    Args:
        loss: called ``loss(embeddings, labels, indices_tuple, ref_emb, ref_labels, exclude_self)``, as a
            :class:`PairLoss` is.
        embedding_size: d.
        memory_size: how many embeddings are kept, not fewer than a batch has.
        miner: called ``miner(embeddings, labels, ref_emb, ref_labels)``, makes the indices_tuple of each batch and the
            memory; pairs of a sample with its own copy are dropped from it.

    Source: Wang et al., CVPR 2020 (arXiv 1912.06798).
    """

    def __init__(self, loss: nn.Module, embedding_size: int, memory_size: int = 1024, miner: Callable | None = None):
        super().__init__()
        checks.at_least("embedding_size", embedding_size, 1)
        checks.at_least("memory_size", memory_size, 1)
        arguments = ("embeddings", "labels", "indices_tuple", "ref_emb", "ref_labels", "exclude_self")
        try:
            inspect.signature(loss.forward).bind(*arguments)
        except (AttributeError, TypeError):
            raise TypeError(
                f"loss must be called as a PairLoss is, loss({', '.join(arguments)}), got {type(loss).__name__}"
            ) from None
        self.loss = loss
        self.miner = miner
        self.register_buffer("embedding_memory", torch.zeros(memory_size, embedding_size, dtype=torch.float32))
        self.register_buffer("label_memory", torch.zeros(memory_size, dtype=torch.int64))
        self.reset_queue()

    def reset_queue(self) -> None:
        """Forget everything."""
        self.embedding_memory.zero_()
        self.label_memory.zero_()
        self.queue_idx = 0
        self.filled = 0

    def get_extra_state(self) -> dict[str, int]:
        return {"queue_idx": self.queue_idx, "filled": self.filled}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.queue_idx, self.filled = state["queue_idx"], state["filled"]

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: tuple[Tensor, ...] | None = None,
        enqueue_mask: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch, which is enqueued.

        Args:
            embeddings, labels: (n, d) and (n,).
            indices_tuple: pairs or triplets within the batch, row numbers of ``embeddings`` on both sides, that count
                in addition to those with the memory.
            enqueue_mask: booleans (n,). The samples where it is true are enqueued and are no anchors; the others are
                anchors and are not enqueued. Default: all are both.
        """
        checks.embeddings_and_labels(embeddings, labels)
        memory_size, d = self.embedding_memory.shape
        if embeddings.shape[1] != d:
            raise ValueError(f"embeddings must have embedding_size = {d} columns, got {embeddings.shape[1]}")
        if enqueue_mask is None:
            queued, queued_labels = embeddings, labels
        else:
            if indices_tuple is not None:
                raise ValueError("indices_tuple must be None where enqueue_mask is given, got both")
            checks.tensor("enqueue_mask", enqueue_mask, "a tensor of booleans")
            if enqueue_mask.dtype != torch.bool or enqueue_mask.shape != labels.shape:
                raise ValueError(
                    f"enqueue_mask must be booleans of shape {tuple(labels.shape)}, got {enqueue_mask.dtype} "
                    f"{tuple(enqueue_mask.shape)}"
                )
            queued, queued_labels = embeddings[enqueue_mask], labels[enqueue_mask]
            embeddings, labels = embeddings[~enqueue_mask], labels[~enqueue_mask]
        if len(queued) > memory_size:
            raise ValueError(f"embeddings must have at most memory_size = {memory_size} rows, got {len(queued)}")
        if indices_tuple is not None:
            checks.indices_tuple(indices_tuple, embeddings, embeddings)

        places = self._enqueue(queued, queued_labels)
        ref_emb = self.embedding_memory[: self.filled].to(embeddings.dtype)
        ref_labels = self.label_memory[: self.filled]
        own = places if enqueue_mask is None else torch.full_like(labels, -1, dtype=torch.int64)
        if self.miner is None and indices_tuple is None:
            return self.loss(embeddings, labels, None, ref_emb, ref_labels, own)
        pairs = self._pairs(embeddings, labels, ref_emb, ref_labels, own)
        if indices_tuple is not None:
            pairs = _joined(pairs, indices_tuple, places)
        return self.loss(embeddings, labels, pairs, ref_emb, ref_labels)

    @torch.no_grad()
    def _enqueue(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        n, memory_size = len(embeddings), len(self.embedding_memory)
        places = torch.arange(self.queue_idx, self.queue_idx + n, device=embeddings.device) % memory_size
        self.embedding_memory[places] = embeddings.to(self.embedding_memory.dtype)
        self.label_memory[places] = labels.to(self.label_memory.dtype)
        self.queue_idx = (self.queue_idx + n) % memory_size
        self.filled = min(self.filled + n, memory_size)
        return places

    def _pairs(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor, own: Tensor
    ) -> tuple[Tensor, ...]:
        """Those of the miner, or all, without the anchors' own copies."""
        if self.miner is not None:
            anchor, positive, *negatives = self.miner(embeddings, labels, ref_emb, ref_labels)
        else:
            same = labels[:, None] == ref_labels[None, :]
            (anchor, positive), negatives = same.nonzero(as_tuple=True), (~same).nonzero(as_tuple=True)
        another = own[anchor] != positive
        if len(negatives) == 1:  # triplets
            negatives = [negatives[0][another]]
        return anchor[another], positive[another], *negatives


def _joined(with_memory: tuple[Tensor, ...], of_batch: tuple[Tensor, ...], places: Tensor) -> tuple[Tensor, ...]:
    """Pairs or triplets with the memory, and those within the batch, which has gone to ``places`` of the memory."""
    anchor, *others = of_batch
    moved = (anchor, places[others[0]], *others[1:-1], places[others[-1]])
    if len(with_memory) != len(moved):
        with_memory, moved = ((t[0], t[1], t[-2] if len(t) == 4 else t[0], t[-1]) for t in (with_memory, moved))
    return tuple(torch.cat(both) for both in zip(with_memory, moved))

"""Losses of the first columns of the embeddings, for several numbers of columns at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fastpair.losses import options
from fastpair.losses.base import PairLoss
from fastpair.losses.info_nce import InfoNCELoss
from fastpair.losses.siglip import SigLIPLoss
from fastpair.ops import checks
from fastpair.ops.prefixes import NotInOneSweep, sum_over_prefixes

__all__ = ["MatryoshkaLoss"]


class MatryoshkaLoss(nn.Module):
    """A loss of embeddings that are to be cut: the weighted sum of the losses of their first D columns.

        L = sum_k weights_k loss(z[:, :dims_k]),   cosines and unit vectors being those of the first dims_k columns

    It is called as ``loss`` is. References are cut like the embeddings; labels, ids, lists of pairs and all other
    arguments are the same for every k. Columns beyond the largest of ``dims`` have gradient 0. In a
    :class:`CrossBatchMemory` it compares with whole embeddings of the past;
    :class:`fastpair.distributed.GlobalBatchLoss` takes it as it takes ``loss``.

    On CPU tensors one sweep computes all prefixes of a similarity, for every loss but those over triplets and listed
    pairs: their products are partial sums of those of all columns. Elsewhere, with ``ignore_above``, with arguments of
    :class:`InfoNCELoss` that take more than one sweep, and in ``torch.compile``, each prefix is a call of ``loss``.

    Args:
        loss: a :class:`PairLoss`, :class:`CustomPairLoss` among them, an :class:`InfoNCELoss` or a
            :class:`SigLIPLoss`. "none" of its ``reduction`` gives the sums for each anchor, "totals" a matrix
            (len(dims), 4), the totals of each k, the sums multiplied by its weight.
        dims: different numbers of columns, at most d.
        weights: a number for each of ``dims``, not negative and finite in float32 too. Default: 1 each.

    Raises:
        TypeError: ``loss`` is none of these, ``dims`` are no integers or ``weights`` no numbers.
        ValueError: ``dims`` or ``weights`` are not as above, or the embeddings have fewer than max(dims) columns.

    Source: Kusupati et al., NeurIPS 2022 (arXiv 2205.13147), eq. 1, where the loss is a softmax on classes.
    """

    def __init__(
        self, loss: nn.Module, dims: Sequence[int] = (64, 128, 256, 768), weights: Sequence[float] | None = None
    ):
        super().__init__()
        if not isinstance(loss, (PairLoss, InfoNCELoss, SigLIPLoss)):
            raise TypeError(
                f"loss must be a PairLoss, an InfoNCELoss or a SigLIPLoss, got {type(loss).__name__}; a "
                "CrossBatchMemory or a GlobalBatchLoss is put around a MatryoshkaLoss"
            )
        self.loss = loss
        self.dims = _sequence("dims", dims)
        if not self.dims:
            raise ValueError("dims must have one number of columns or more, got none")
        for dim in self.dims:
            options.at_least("dims", dim, 1)
        if len(set(self.dims)) < len(self.dims):
            raise ValueError(f"dims must be different from each other, got {self.dims}")
        self.weights = (1.0,) * len(self.dims) if weights is None else _sequence("weights", weights)
        if len(self.weights) != len(self.dims):
            raise ValueError(f"weights must be {len(self.dims)} numbers, one for each of dims, got {len(self.weights)}")
        for weight in self.weights:
            options.not_negative("weights", weight)

    def forward(self, embeddings: Tensor, *args, **kwargs) -> Tensor:
        self._check(embeddings)
        if not torch.compiler.is_compiling():
            with contextlib.suppress(NotInOneSweep), sum_over_prefixes(self.dims, self.weights):
                return self.loss(embeddings, *args, **kwargs)
        return self.summed(self.loss, embeddings, *args, **kwargs)

    def _check(self, embeddings: Tensor) -> None:
        checks.matrix("embeddings", embeddings)
        if embeddings.shape[1] < max(self.dims):
            raise ValueError(
                f"embeddings must have max(dims) = {max(self.dims)} columns or more, got {embeddings.shape[1]}"
            )

    def summed(self, loss: Callable, embeddings: Tensor, *args, **kwargs) -> Tensor:
        """The weighted sum of what ``loss``, which has the arguments of ``self.loss``, gives for each of ``dims``."""
        self._check(embeddings)
        of_references = 2 if isinstance(self.loss, PairLoss) else 0  # the place of ref_emb in args
        ref_emb = args[of_references] if len(args) > of_references else kwargs.get("ref_emb")
        if isinstance(ref_emb, Tensor):
            checks.second_side(embeddings, ref_emb)
        hard_negatives = kwargs.get("hard_negatives")

        def of_prefix(dim: int) -> Tensor:
            x = embeddings[:, :dim]

            def cut(value):
                if value is embeddings:  # losses leave out self-pairs where both sides are the same tensor
                    return x
                rows = value is not None and (value is ref_emb or value is hard_negatives)
                return value[..., :dim] if rows else value

            return loss(x, *map(cut, args), **{name: cut(value) for name, value in kwargs.items()})

        if getattr(self.loss, "reduction", None) == "totals":
            return torch.stack([_weighted(weight, of_prefix(dim)) for dim, weight in zip(self.dims, self.weights)])
        return sum(weight * of_prefix(dim) for dim, weight in zip(self.dims, self.weights))

    def extra_repr(self) -> str:
        return f"dims={self.dims}, weights={self.weights}"


def _sequence(name: str, values: Sequence) -> tuple:
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise TypeError(f"{name} must be a sequence of numbers, got {type(values).__name__}")
    return tuple(values)


def _weighted(weight: float, totals: Tensor) -> Tensor:
    """Totals, sums beside counts, with the sums multiplied by a weight."""
    return totals * totals.new_tensor((weight, 1, weight, 1))

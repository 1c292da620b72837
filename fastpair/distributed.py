"""Losses of a batch spread over several processes: the value and every gradient are those of one large batch.

With R processes ("ranks"), rows z_1 ... z_N of the whole batch, and its loss L, which is the same on every rank:

    an embedding on its rank gets    R dL/dz_i
    a parameter of the loss gets       dL/dw     on every rank

The model that makes the embeddings is wrapped in DistributedDataParallel (DDP), which averages over the ranks:
(1/R) sum_r R dL/dtheta|_r = dL/dtheta. Averaging equal gradients changes nothing: those of the loss's parameters are
right whether or not DDP wraps the loss as well, alone or in one module with the model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fastpair import losses
from fastpair.losses.bounds import grouped_sums, pce_rows, spce_rows
from fastpair.losses.classes import proxy_anchor
from fastpair.numerics import accumulate_dtype, average
from fastpair.ops import checks
from fastpair.ops.autograd import once

__all__ = ["GlobalBatchLoss"]


class GlobalBatchLoss(nn.Module):
    """A loss of :mod:`fastpair.losses` over the rows of all ranks: called like ``loss``, with this rank's rows.

    The ranks may have different numbers of rows, or none. Each computes the losses of its own n anchors against all
    N rows; in units of 2nNd flops a pair loss costs 1 in forward, and in backward 1 for the scores again and 2 for the
    gradients. Embeddings are gathered in their dtype, and the gradients from the other ranks' anchors come back by a
    reduce-scatter in the accumulation dtype. :class:`~fastpair.losses.ProxyAnchorLoss`, whose anchors are the proxies,
    gives each rank a share of them. The losses on classes compare n rows with the classes and gather nothing; SPCE and
    PCE sum their class means over the ranks and gather only the labels. A MatryoshkaLoss gathers the first columns once
    for each of its numbers of columns.

    Without a process group, or in one of a single process, this is ``loss`` itself.

    Args:
        loss: its ``reduction`` "mean" and "sum" are those of the whole batch; "none" gives each rank the losses of its
            own anchors, with the gradients of sum_i w_i l_i for incoming gradients w_i.
        group: the processes; by default all.

    Every rank has to make the same calls, backward included, with embeddings of one dtype and dimension. Where rows or
    labels are gathered, the host waits for the sizes of the other ranks' shards.

    Raises:
        TypeError: ``loss`` is not of :mod:`fastpair.losses`, or a CrossBatchMemory, whose memory is one process's.
        ValueError: ``indices_tuple``, ``ref_emb``, ``ref_labels``, ``exclude_self``, ``pairs`` or ``ref_ids`` is given,
            PCE has no ``lam``, or ``loss`` has a regularizer, which may be any function of all rows.
    """

    def __init__(self, loss: nn.Module, group: dist.ProcessGroup | None = None):
        super().__init__()
        _family(loss)
        for name in ("embedding_regularizer", "weight_regularizer"):
            if getattr(loss, name, None) is not None:
                raise ValueError(
                    f"{name} must be None, it may be any function of the rows of all ranks: add its term to what this "
                    f"loss returns; got {type(getattr(loss, name)).__name__}"
                )
        self.loss = loss
        self.group = group

    def forward(self, *args, **kwargs) -> Tensor:
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(self.group) == 1:
            return self.loss(*args, **kwargs)
        return _family(self.loss)(_Ranks(self.group), self.loss, *args, **kwargs)


# ---- communication between the ranks


class _Gather(torch.autograd.Function):
    """The rows of all ranks, this rank's first and then those of its successors. Backward returns the sum over the
    ranks of the gradients by this rank's rows."""

    @staticmethod
    def forward(ctx, x, sizes, group):
        ctx.sizes, ctx.group, ctx.rank = sizes, group, dist.get_rank(group)
        parts = [x.new_empty(max(*sizes, 1), *x.shape[1:]) for _ in sizes]
        dist.all_gather(parts, _padded(x, len(parts[0])), group)
        parts = [part[:n] for part, n in zip(parts, sizes)]
        return torch.cat(parts[ctx.rank :] + parts[: ctx.rank])

    @staticmethod
    def backward(ctx, grad):
        sizes, rank = ctx.sizes, ctx.rank
        wide = grad.detach().to(accumulate_dtype(grad.dtype))
        parts = wide.split(sizes[rank:] + sizes[:rank])
        parts = [_padded(part, max(*sizes, 1)) for part in parts[len(sizes) - rank :] + parts[: len(sizes) - rank]]
        own = torch.empty_like(parts[0])
        dist.reduce_scatter(own, parts, group=ctx.group)
        return once(own[: sizes[rank]].to(grad.dtype), grad), None, None


class _Sum(torch.autograd.Function):
    """The sum over the ranks. Backward returns this rank's gradient by it, not the sum over the ranks."""

    @staticmethod
    def forward(ctx, t, group):
        return _summed(t, group)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class _Identity(torch.autograd.Function):
    """The same tensor. Backward returns ``turned(gradient)``."""

    @staticmethod
    def forward(ctx, x, turned):
        ctx.turned = turned
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return ctx.turned(grad), None


def _padded(x: Tensor, rows: int) -> Tensor:
    return F.pad(x, (0, 0) * (x.ndim - 1) + (0, rows - len(x))).contiguous()


def _summed(t: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    wide = t.new_empty(t.shape, dtype=accumulate_dtype(t.dtype)).copy_(t.detach())
    dist.all_reduce(wide, group=group)
    return wide.to(t.dtype)


class _Ranks:
    """The ranks of a group in one call of a loss: all that a rank gathers in it has the same number of rows."""

    def __init__(self, group: dist.ProcessGroup | None):
        self.group = group
        self.rank, self.count = dist.get_rank(group), dist.get_world_size(group)
        self.sizes: list[int] | None = None

    def gather(self, x: Tensor) -> Tensor:
        if x.dtype == torch.bool:  # which not every library of collectives takes
            return self.gather(x.byte()).bool()
        if self.sizes is None:
            (self.sizes,) = self.numbers_of_rows(x)
        return _Gather.apply(x, self.sizes, self.group)

    def numbers_of_rows(self, *sides: Tensor) -> list[list[int]]:
        """For each of the tensors how many rows every rank has of it."""
        own = torch.tensor([len(x) for x in sides], device=sides[0].device)
        of_ranks = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(of_ranks, own, self.group)
        return torch.stack(of_ranks, 1).tolist()

    def scalars(self, argument: str, given: Mapping[str, Tensor], embeddings: Tensor) -> dict[str, Tensor]:
        """Numbers of the rows of all ranks."""
        names = tuple(sorted(given))
        own = checks.scalars(argument, given, names, "embeddings", embeddings)
        return {} if own is None else dict(zip(names, self.gather(own.T).T))

    def sum(self, t: Tensor) -> Tensor:
        return _Sum.apply(t, self.group)

    def whole(self, t: Tensor | float | None) -> Tensor | float | None:
        """A tensor that all ranks share, whose gradient is the sum over the ranks of those by it."""
        if not (isinstance(t, Tensor) and t.requires_grad):
            return t
        return _Identity.apply(t, lambda grad: once(_summed(grad, self.group), grad))

    def scaled(self, x: Tensor) -> Tensor:
        """Rows whose gradient DDP will average."""
        return _Identity.apply(x, lambda grad: grad * self.count)

    def call(self, loss: nn.Module, args: tuple, kwargs: dict | None = None, **settings) -> Tensor:
        """``loss(*args, **kwargs)`` with other settings, and gradients of its parameters summed over the ranks."""
        loss = copy.copy(loss)
        for name, value in vars(loss).items():
            if isinstance(value, Tensor):  # a setting that learns and is no parameter of the module
                setattr(loss, name, self.whole(value))
        for name, value in settings.items():
            setattr(loss, name, value)
        return functional_call(loss, {name: self.whole(p) for name, p in loss.named_parameters()}, args, kwargs)

    def reduced(self, run: Callable[[str], Tensor], reduction: str, count: int | Tensor | None = None) -> Tensor:
        """The loss of the whole batch, ``run(reduction)`` being that of this rank's anchors. ``count``: how many of
        them are in the mean; None: taken from ``run("totals")``."""
        if reduction == "none":
            return run("none")
        if reduction == "sum":
            return self.sum(run("sum"))
        if count is None:
            totals = run("totals")
        else:
            total = run("sum")
            totals = torch.stack([total, torch.as_tensor(count, dtype=total.dtype, device=total.device)])
        totals = self.sum(totals)
        if reduction == "totals":
            return F.pad(totals, (0, 4 - len(totals)))
        return average(totals[::2], totals[1::2]).sum()


# ---- the losses, one function per family


def _pair_loss(
    ranks: _Ranks,
    loss: losses.PairLoss,
    embeddings: Tensor,
    labels: Tensor | None = None,
    indices_tuple: None = None,
    ref_emb: None = None,
    ref_labels: None = None,
    exclude_self: None = None,
    *,
    ids: Tensor | None = None,
    weights: Tensor | None = None,
    ref_bias: Tensor | None = None,
    ignore_above: float | None = None,
    anchor_scalars: Mapping[str, Tensor] | None = None,
    ref_scalars: Mapping[str, Tensor] | None = None,
    **unused: None,
) -> Tensor:
    given = {"indices_tuple": indices_tuple, "ref_emb": ref_emb, "ref_labels": ref_labels, "exclude_self": exclude_self}
    for name, value in {**given, **unused}.items():
        if value is not None:
            raise ValueError(
                f"{name} must be None: the anchors are compared with the rows of all ranks but themselves, "
                f"got {type(value).__name__}"
            )
    labels, ids = checks.samples(embeddings, labels, ids)
    x = ranks.scaled(embeddings)
    # The first references are the anchors themselves.
    args = (x, labels, None, ranks.gather(x), ranks.gather(labels), True)
    further = {"weights": weights, "ignore_above": ignore_above, "anchor_scalars": anchor_scalars}
    further |= {"ids": ids, "ref_ids": None if ids is None else ranks.gather(ids)}
    if ref_bias is not None:
        further["ref_bias"] = ranks.scalars("ref_bias", {"ref_bias": ref_bias}, embeddings)["ref_bias"]
    if ref_scalars is not None:
        further["ref_scalars"] = ranks.scalars("ref_scalars", ref_scalars, embeddings)
    further = {name: given for name, given in further.items() if given is not None}
    return ranks.reduced(lambda reduction: ranks.call(loss, args, further, reduction=reduction), loss.reduction)


def _class_loss(
    ranks: _Ranks,
    loss: losses.LinearCrossEntropyLoss | losses.ClassLoss,
    embeddings: Tensor,
    labels: Tensor,
    *pairs: None,
    **named_pairs: None,
) -> Tensor:
    checks.no_pairs(*pairs, **named_pairs)
    labels = checks.embeddings_and_labels(embeddings, labels)
    args = (ranks.scaled(embeddings), labels)
    counted = (labels != loss.ignore_index).sum() if hasattr(loss, "ignore_index") else len(labels)
    return ranks.reduced(lambda reduction: ranks.call(loss, args, reduction=reduction), loss.reduction, counted)


def _proxy_anchor(
    ranks: _Ranks, loss: losses.ProxyAnchorLoss, embeddings: Tensor, labels: Tensor, *pairs: None, **named_pairs: None
) -> Tensor:
    checks.no_pairs(*pairs, **named_pairs)
    labels = checks.embeddings_and_labels(embeddings, labels)
    proxies = ranks.whole(loss.proxies)
    share = slice(*(len(proxies) * rank // ranks.count for rank in (ranks.rank, ranks.rank + 1)))
    args = (ranks.gather(ranks.scaled(embeddings)), proxies, ranks.gather(labels), loss.margin, loss.alpha)
    return ranks.reduced(lambda reduction: proxy_anchor(*args, reduction, anchors=share), loss.reduction)


def _views(
    ranks: _Ranks,
    loss: losses.InfoNCELoss | losses.SigLIPLoss,
    embeddings: Tensor,
    ref_emb: Tensor,
    *numbers: float | Tensor | None,
    **named: float | Tensor | None,
) -> Tensor:
    """``numbers``, ``named``: the temperature, or the scale and bias, where they are given in the call."""
    if unknown := named.keys() - {"temperature", "scale", "bias"}:
        raise ValueError(f"{min(unknown)} must be None: it would belong to the rows of all ranks")
    numbers = tuple(map(ranks.whole, numbers))
    named = {name: ranks.whole(x) for name, x in named.items()}
    embeddings, ref_emb = checks.both_sides(embeddings, ref_emb)
    if len(ref_emb) < len(embeddings):
        raise ValueError(f"ref_emb must have {len(embeddings)} rows or more like embeddings, got {len(ref_emb)}")
    for name, allowed in (
        ("directions", (None,)),
        ("partition_mode", ("per_direction",)),
        ("hardness_mode", (None, "all_negatives")),
        ("positive_sigma", (None,)),
    ):
        if getattr(loss, name, allowed[0]) not in allowed:
            raise ValueError(
                f"{name} of the loss must be {' or '.join(map(repr, allowed))}, got {getattr(loss, name)!r}"
            )
    x, y = ranks.scaled(embeddings), ranks.scaled(ref_emb)
    if getattr(loss, "decoupled", False) and loss.ignore_above is not None:
        raise ValueError(
            "ignore_above of the loss must be None where it is decoupled: no rank knows which anchors count"
        )
    # Row i of either side belongs to reference i: this rank's references come before the other ranks'.
    of_queries, of_documents = ranks.numbers_of_rows(x, y)
    sides = [((x, _Gather.apply(y, of_documents, ranks.group)), {})]
    if getattr(loss, "symmetric", False):
        sides[0][1]["symmetric"] = False
        # Hardness is one of queries' softmaxes.
        settings = {"symmetric": False, "hardness_mode": None, "hardness_strength": 0.0}
        sides.append(((y[: len(x)], _Gather.apply(x, of_queries, ranks.group)), settings))

    def run(reduction: str) -> Tensor:
        values = [ranks.call(loss, (*side, *numbers), named, reduction=reduction, **of) for side, of in sides]
        return sum(values) / len(values)

    return ranks.reduced(run, loss.reduction, len(x))


def _matryoshka(ranks: _Ranks, loss: losses.MatryoshkaLoss, embeddings: Tensor, *args, **kwargs) -> Tensor:
    return loss.summed(partial(_family(loss.loss), ranks, loss.loss), embeddings, *args, **kwargs)


def _spce(ranks: _Ranks, loss: losses.SPCELoss, embeddings: Tensor, labels: Tensor) -> Tensor:
    labels = checks.embeddings_and_labels(embeddings, labels)
    with torch.autocast(embeddings.device.type, enabled=False):
        x = ranks.scaled(embeddings)
        group, means, _ = _class_means(ranks, x.to(accumulate_dtype(x.dtype)), labels)
        args = (x, group, means.to(x.dtype), None)
        return ranks.reduced(lambda reduction: spce_rows(*args, reduction, None), loss.reduction, len(x))


def _pce(ranks: _Ranks, loss: losses.PCELoss, embeddings: Tensor, labels: Tensor, probabilities: Tensor) -> Tensor:
    labels = checks.embeddings_and_labels(embeddings, labels)
    checks.probabilities(probabilities, embeddings)
    if loss.lam is None:
        raise ValueError("lam must be given: its default is an eigenvalue of the whole batch, which no rank has")
    with torch.autocast(embeddings.device.type, enabled=False):
        x = ranks.scaled(embeddings)
        z = x.to(accumulate_dtype(x.dtype))
        group, means, rows = _class_means(ranks, z, labels)
        centers = ranks.whole(ranks.sum(probabilities.detach().to(z.dtype).T @ z)) / rows
        per_anchor = pce_rows(z, group, means, centers, loss.lam, None)
        return ranks.reduced(
            lambda reduction: per_anchor if reduction == "none" else per_anchor.sum(), loss.reduction, len(z)
        )


def _class_means(ranks: _Ranks, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int]:
    """The classes of this rank's rows, as indices into those of the whole batch; the sum of each class's rows, divided
    by the size of the batch; that size."""
    everywhere = ranks.gather(labels)
    classes, group = everywhere.unique(return_inverse=True)
    group, rows = group[: len(labels)], max(len(everywhere), 1)
    sums = grouped_sums(z, group, max(len(classes), 1))
    return group, ranks.whole(ranks.sum(sums)) / rows, rows


FAMILIES: dict[type | tuple[type, ...], Callable] = {
    losses.PairLoss: _pair_loss,
    losses.ProxyAnchorLoss: _proxy_anchor,  # a ClassLoss too
    (losses.ClassLoss, losses.LinearCrossEntropyLoss): _class_loss,
    (losses.InfoNCELoss, losses.SigLIPLoss): _views,
    losses.MatryoshkaLoss: _matryoshka,
    losses.SPCELoss: _spce,
    losses.PCELoss: _pce,
}


def _family(loss: nn.Module) -> Callable:
    for kinds, family in FAMILIES.items():
        if isinstance(loss, kinds):
            return family
    raise TypeError(
        f"loss must be one of fastpair.losses other than CrossBatchMemory, whose memory is one process's, "
        f"got {type(loss).__name__}"
    )

"""Pair losses against the embeddings of past batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastpair.backends import dense
from fastpair.losses import options
from fastpair.ops import checks
from fastpair.ops.relation import relation

__all__ = ["CrossBatchMemory"]

LISTED = ("embeddings", "labels", "indices_tuple", "ref_emb", "ref_labels")
ARGUMENTS = (*LISTED, "exclude_self")


def takes(loss: nn.Module, arguments: tuple[str, ...]) -> bool:
    try:
        inspect.signature(loss.forward).bind(*arguments)
    except (AttributeError, TypeError):
        return False
    return True


class CrossBatchMemory(nn.Module):
    """A pair loss against the embeddings of past batches: ``loss(embeddings, ref_emb=memory)``.

    The batch is enqueued first, in place of the oldest embeddings once the memory is full, and then compared with the
    whole memory, itself included; an anchor's own copy makes no pair with it. Only the batch receives gradients. The
    memory keeps its own dtype, float32 unless it is converted, and all of its state, the position in the ring included,
    is in ``state_dict``: a resumed run goes on as if it had not stopped. Call backward before the next batch, which
    overwrites what the gradient may need (autograd raises an error otherwise).

    ``load_state_dict`` takes the state of pytorch-metric-learning's module of this name too, which has the embeddings
    and labels alone: its trailing rows of zeros count as empty, and of a full memory the first row as the oldest.

    Args:
        loss: called ``loss(embeddings, labels, indices_tuple, ref_emb, ref_labels, exclude_self)``, like a
            :class:`PairLoss`. One without the last argument, as those of pytorch-metric-learning are, gets the list of
            all pairs with the memory but for the anchors' own copies.
        embedding_size: d.
        memory_size: how many embeddings are kept, at least as many as a batch has.
        miner: called ``miner(embeddings, labels, ref_emb, ref_labels)``, returns the indices_tuple of a batch and the
            memory, from which pairs of a sample with its own copy are dropped.
        label_sets: L, where samples have sets of labels, boolean (n, L); by default they have one each.
        keep_ids: whether batches come with ids, which the memory keeps: samples with equal ids are no pair.

    Source: Wang et al., CVPR 2020 (arXiv 1912.06798).
    """

    def __init__(
        self,
        loss: nn.Module,
        embedding_size: int,
        memory_size: int = 1024,
        miner: Callable | None = None,
        *,
        label_sets: int | None = None,
        keep_ids: bool = False,
    ):
        super().__init__()
        options.at_least("embedding_size", embedding_size, 1)
        options.at_least("memory_size", memory_size, 1)
        if not takes(loss, ARGUMENTS) and not takes(loss, LISTED):
            raise TypeError(
                f"loss must be called as a PairLoss is, loss({', '.join(ARGUMENTS)}), or without the last, got "
                f"{type(loss).__name__}"
            )
        self._lists_pairs = not takes(loss, ARGUMENTS)
        self.loss = loss
        self.miner = miner
        self.register_buffer("embedding_memory", torch.zeros(memory_size, embedding_size, dtype=torch.float32))
        if label_sets is None:
            label_memory = torch.zeros(memory_size, dtype=torch.int64)
        else:
            options.at_least("label_sets", label_sets, 1)
            label_memory = torch.zeros(memory_size, label_sets, dtype=torch.bool)
        self.register_buffer("label_memory", label_memory)
        self.register_buffer("id_memory", torch.zeros(memory_size, dtype=torch.int64) if keep_ids else None)
        self.reset_queue()

    @property
    def memory_size(self) -> int:
        return self.embedding_memory.shape[0]

    @property
    def embedding_size(self) -> int:
        return self.embedding_memory.shape[1]

    @property
    def has_been_filled(self) -> bool:
        """Whether every row of the memory is in use."""
        return self.filled == self.memory_size

    def reset_queue(self) -> None:
        """Forget everything."""
        self.embedding_memory.zero_()
        self.label_memory.zero_()
        if self.id_memory is not None:
            self.id_memory.zero_()
        self.queue_idx = 0
        self.filled = 0
        # The rows of the memory that the last batch lies in.
        self.curr_batch_idx = torch.arange(0)

    def get_extra_state(self) -> dict[str, int]:
        return {"queue_idx": self.queue_idx, "filled": self.filled}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.queue_idx, self.filled = state["queue_idx"], state["filled"]

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *others) -> None:
        rows, key = state_dict.get(f"{prefix}embedding_memory"), f"{prefix}_extra_state"
        if rows is not None and key not in state_dict:
            used = (rows != 0).any(1).nonzero()
            filled = int(used[-1]) + 1 if len(used) else 0
            state_dict[key] = {"queue_idx": filled % len(rows), "filled": filled}
        super()._load_from_state_dict(state_dict, prefix, *others)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: tuple[Tensor, ...] | None = None,
        enqueue_mask: Tensor | None = None,
        *,
        ids: Tensor | None = None,
    ) -> Tensor:
        """Enqueue a batch and return its loss.

        Args:
            embeddings, labels: (n, d) and (n,), or (n, label_sets).
            indices_tuple: pairs or triplets within the batch, row numbers of ``embeddings`` on both sides, that count
                in addition to those with the memory.
            enqueue_mask: booleans (n,). The samples where it is true are enqueued but are no anchors; the others are
                anchors but are not enqueued. Default: all samples are both.
            ids: integers (n,), where the memory keeps ids: samples with equal ids are no pair.
        """
        labels, ids = checks.samples(embeddings, labels, ids)
        if labels.shape[1:] != self.label_memory.shape[1:]:
            expected = (
                f"sets of label_sets = {self.label_memory.shape[1]} labels" if self.label_memory.ndim == 2 else "(n,)"
            )
            raise ValueError(f"labels must be {expected}, got {labels.dtype} {tuple(labels.shape)}")
        if (ids is None) != (self.id_memory is None):
            raise ValueError(
                f"ids must be given if and only if keep_ids is true, got {type(ids).__name__} with keep_ids = "
                f"{self.id_memory is not None}"
            )
        if ids is not None and not (self.miner is None and indices_tuple is None):
            raise ValueError("ids must be None where a miner or indices_tuple lists the pairs, got Tensor")
        if embeddings.shape[1] != self.embedding_size:
            raise ValueError(
                f"embeddings must have embedding_size = {self.embedding_size} columns, got {embeddings.shape[1]}"
            )
        if enqueue_mask is None:
            queued, queued_labels, queued_ids = embeddings, labels, ids
        else:
            if indices_tuple is not None:
                raise ValueError("indices_tuple must be None where enqueue_mask is given, got both")
            checks.tensor("enqueue_mask", enqueue_mask, "a tensor of booleans")
            if enqueue_mask.dtype != torch.bool or enqueue_mask.shape != labels.shape[:1]:
                raise ValueError(
                    f"enqueue_mask must be booleans of shape {tuple(labels.shape[:1])}, got {enqueue_mask.dtype} "
                    f"{tuple(enqueue_mask.shape)}"
                )
            (queued, embeddings), (queued_labels, labels), (queued_ids, ids) = (
                (None, None) if t is None else (t[enqueue_mask], t[~enqueue_mask]) for t in (embeddings, labels, ids)
            )
        if len(queued) > self.memory_size:
            raise ValueError(f"embeddings must have at most memory_size = {self.memory_size} rows, got {len(queued)}")
        if indices_tuple is not None:
            checks.indices_tuple(indices_tuple, embeddings, embeddings)
            checks.listed_rows(indices_tuple, embeddings, embeddings)

        self.curr_batch_idx = places = self._enqueue(queued, queued_labels, queued_ids)
        ref_emb = self.embedding_memory[: self.filled].to(embeddings.dtype)
        ref_labels = self.label_memory[: self.filled]
        own = places if enqueue_mask is None else torch.full((len(labels),), -1, device=labels.device)
        of_ids = {} if ids is None else {"ids": ids, "ref_ids": self.id_memory[: self.filled]}
        if self.miner is None and indices_tuple is None and not self._lists_pairs:
            return self.loss(embeddings, labels, None, ref_emb, ref_labels, own, **of_ids)
        pairs = self._pairs(embeddings, labels, ref_emb, ref_labels, own, of_ids)
        if indices_tuple is not None:
            pairs = _joined(pairs, indices_tuple, places)
        return self.loss(embeddings, labels, pairs, ref_emb, ref_labels)

    @torch.no_grad()
    def _enqueue(self, embeddings: Tensor, labels: Tensor, ids: Tensor | None) -> Tensor:
        n = len(embeddings)
        places = torch.arange(self.queue_idx, self.queue_idx + n, device=embeddings.device) % self.memory_size
        self.embedding_memory[places] = embeddings.to(self.embedding_memory.dtype)
        self.label_memory[places] = labels.to(self.label_memory.dtype)
        if ids is not None:
            self.id_memory[places] = ids.to(self.id_memory.dtype)
        self.queue_idx = (self.queue_idx + n) % self.memory_size
        self.filled = min(self.filled + n, self.memory_size)
        return places

    def _pairs(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor,
        ref_labels: Tensor,
        own: Tensor,
        of_ids: dict[str, Tensor],
    ) -> tuple[Tensor, ...]:
        """The pairs of the miner, or all pairs, without those with the anchors' own copies."""
        if self.miner is None:
            kinds = dense.kinds(relation(embeddings, labels, ref_emb, ref_labels, own, **of_ids))
            return tuple(index for kind in kinds for index in kind.nonzero(as_tuple=True))
        anchor, positive, *negatives = self.miner(embeddings, labels, ref_emb, ref_labels)
        another = own[anchor] != positive
        if len(negatives) == 1:  # triplets
            negatives = [negatives[0][another]]
        return anchor[another], positive[another], *negatives


def _joined(with_memory: tuple[Tensor, ...], of_batch: tuple[Tensor, ...], places: Tensor) -> tuple[Tensor, ...]:
    """Pairs or triplets with the memory, then those within the batch, whose rows lie at ``places`` of the memory."""
    anchor, *others = of_batch
    moved = (anchor, places[others[0]], *others[1:-1], places[others[-1]])
    if len(with_memory) != len(moved):
        with_memory, moved = ((t[0], t[1], t[-2] if len(t) == 4 else t[0], t[-1]) for t in (with_memory, moved))
    return tuple(torch.cat(both) for both in zip(with_memory, moved))

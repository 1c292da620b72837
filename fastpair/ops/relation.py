"""Which pairs of samples are positive, negative or none: from what users give to what the operator takes."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastpair.backends import dense
from fastpair.ops import checks

# Labels in a word of a packed set, whose sign stays unused.
WORD = 31


class Relation(NamedTuple):
    """The references, and the tensors of a :class:`fastpair.backends.call.PairLossCall` that say what pairs are."""

    ref_emb: Tensor | None
    labels: Tensor
    ref_labels: Tensor | None
    self_index: Tensor | None
    ids: Tensor | None
    ref_ids: Tensor | None
    pairs: Tensor | None

    @property
    def by_labels(self) -> bool:
        """Whether single labels decide, as for all kernels they may."""
        return self.ids is None and self.pairs is None and self.labels.ndim == 1

    def as_pairs(self, embeddings: Tensor) -> Relation:
        """The same as a matrix without more. Operators do not read its labels."""
        positive, negative = dense.kinds(self)
        ref_emb = embeddings if self.ref_emb is None else self.ref_emb
        # Masks have the strides of what users give, for which kernels do not ask.
        pairs = (positive.to(torch.int8) - negative.to(torch.int8)).contiguous()
        return Relation(ref_emb, *unlabelled(embeddings, ref_emb), None, None, None, pairs)


def relation(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    exclude_self: bool | Tensor | None = None,
    pairs: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
) -> Relation:
    """Checks the arguments, which are those of the pair losses."""
    checks.matrix("embeddings", embeddings)
    labels, ref_labels, pairs, ids, ref_ids = checks.beside(embeddings, labels, ref_labels, pairs, ids, ref_ids)
    if ref_emb is ref_labels is exclude_self is pairs is ids is ref_ids is None:  # by far the most frequent call
        checks.labels_or_sets("labels", labels, "embeddings", embeddings)
        return Relation(None, labels if labels.ndim == 1 else packed(labels), None, None, None, None, None)
    if pairs is None:
        checks.labels_or_sets("labels", labels, "embeddings", embeddings)
        checks.references(embeddings, ref_emb, ref_labels, labels)
    else:
        checks.pairs(pairs, embeddings, ref_emb, labels, ref_labels)
    checks.ids(ids, ref_ids, embeddings, ref_emb)
    same = pairs is None and (ref_labels is None or ref_labels is labels) and (ref_ids is None or ref_ids is ids)
    ref_emb, self_index = _references(embeddings, ref_emb, exclude_self, same)
    if pairs is not None:
        unread = unlabelled(embeddings, ref_emb)
        return Relation(ref_emb, *unread, self_index, ids, ref_ids, pairs).as_pairs(embeddings)
    if ref_emb is None:
        ref_labels = ref_ids = None
    else:
        ref_labels, ref_ids = labels if ref_labels is None else ref_labels, ids if ref_ids is None else ref_ids
    if labels.ndim == 2:
        labels, ref_labels = packed(labels), None if ref_labels is None else packed(ref_labels)
    return Relation(ref_emb, labels, ref_labels, self_index, ids, ref_ids, None)


def unlabelled(*sides: Tensor) -> list[Tensor]:
    """Labels, all equal, of samples whose pairs something else says."""
    return [torch.zeros(len(x), dtype=torch.int64, device=x.device) for x in sides]


def packed(sets: Tensor) -> Tensor:
    """Sets of labels, boolean (n, L), as the bits of int32 words (n, at least 1)."""
    words = max(-(-sets.shape[1] // WORD), 1)
    bits = F.pad(sets, (0, words * WORD - sets.shape[1])).unflatten(1, (words, WORD))
    return (bits.int() << torch.arange(WORD, dtype=torch.int32, device=sets.device)).sum(2, dtype=torch.int32)


def _references(
    embeddings: Tensor, ref_emb: Tensor | None, exclude_self: bool | Tensor | None, same: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The references and each anchor's own row among them; None for the batch's own pairs. ``same``: whether labels and
    ids of references that are the embeddings are the anchors'."""
    own = ref_emb is None or ref_emb is embeddings
    if exclude_self is None:
        exclude_self = own
    if isinstance(exclude_self, bool):
        if own:
            if exclude_self and same:
                return None, None
            ref_emb = embeddings
        if not exclude_self:
            return ref_emb, None
        if ref_emb.shape[0] < embeddings.shape[0]:
            raise ValueError(
                "exclude_self=True says that the first rows of ref_emb are the embeddings, but it has "
                f"{len(ref_emb)} rows for {len(embeddings)} embeddings"
            )
        return ref_emb, torch.arange(embeddings.shape[0], device=embeddings.device)
    if ref_emb is None:
        raise ValueError("exclude_self must be True, False or None without ref_emb, got a tensor")
    checks.self_index(embeddings, ref_emb, exclude_self)
    return ref_emb, exclude_self

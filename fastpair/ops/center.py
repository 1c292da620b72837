"""The center loss: no pairs, no kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpair.backends import reference
from fastpair.config import choose_backend


def center(embeddings: Tensor, labels: Tensor, centers: Tensor, reduction: str, backend: str | None) -> Tensor:
    if backend is not None:
        choose_backend(embeddings.device.type, backend)  # the same for all, but a wrong name is an error
    with torch.autocast(embeddings.device.type, enabled=False):
        dtype = reference.accumulate_dtype(embeddings.dtype)
        # The way to index whose gradient is added up in order, for the same bits every time.
        wide, index = centers.to(dtype), labels.long()
        own = wide[index] if wide.is_cuda else wide.index_select(0, index)
        per_row = (embeddings.to(dtype) - own).square().sum(1) / 2
    return reference.reduced(per_row, per_row.sum() / max(len(per_row), 1), reduction)

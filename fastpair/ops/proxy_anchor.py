"""The proxy-anchor loss: a pair loss whose anchors are the proxies of the classes, and whose references the samples."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpair.ops import checks
from fastpair.ops.pair_loss import pair_loss


def proxy_anchor(
    embeddings: Tensor,
    proxies: Tensor,
    labels: Tensor,
    margin: float,
    alpha: float,
    reduction: str,
    backend: str | None,
    anchors: slice | None = None,
) -> Tensor:
    """``anchors``: which of the proxies are, all by default."""
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
    return pair_loss(
        "proxy_anchor",
        [alpha, margin],
        proxies,
        classes,
        embeddings,
        labels,
        distance="cosine",
        reduction=reduction,
        backend=backend,
        exclude_self=False,
    )

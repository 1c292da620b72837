"""Losses of two views, whose rows i belong together: pair losses between one and the other."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpair.backends.reference import SIMILARITIES, accumulate_dtype, unit_rows
from fastpair.ops import checks
from fastpair.ops.pair_loss import pair_loss


def info_nce(
    embeddings: Tensor,
    ref_emb: Tensor,
    temperature: float | Tensor,
    symmetric: bool,
    distance: str,
    reduction: str,
    backend: str | None,
) -> Tensor:
    checks.matrix("embeddings", embeddings)
    checks.like("ref_emb", ref_emb, "embeddings", embeddings)
    n, m = embeddings.shape[0], ref_emb.shape[0]
    if m < n or (symmetric and m > n):
        raise ValueError(f"ref_emb must have {n} rows{'' if symmetric else ' or more'} like embeddings, got {m}")
    if isinstance(temperature, Tensor):
        checks.single("temperature", temperature)
        checks.one_of("distance", distance, SIMILARITIES)
        # A row divided by the temperature passes on its gradient.
        dtype = accumulate_dtype(embeddings.dtype)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings, ref_emb = embeddings.to(dtype), ref_emb.to(dtype)
            if distance == "cosine":
                embeddings, ref_emb, distance = unit_rows(embeddings), unit_rows(ref_emb), "dot"
            embeddings, temperature = embeddings / temperature.to(dtype), 1.0
    checks.positive("temperature", temperature)
    return _views_loss("supcon", [1 / temperature], embeddings, ref_emb, distance, reduction, backend, symmetric)


def siglip(
    embeddings: Tensor,
    ref_emb: Tensor,
    scale: float | Tensor,
    bias: float | Tensor,
    reduction: str,
    backend: str | None,
) -> Tensor:
    checks.matrix("embeddings", embeddings)
    checks.like("ref_emb", ref_emb, "embeddings", embeddings)
    if ref_emb.shape[0] < embeddings.shape[0]:
        raise ValueError(f"ref_emb must have {len(embeddings)} rows or more like embeddings, got {len(ref_emb)}")
    dtype = accumulate_dtype(embeddings.dtype)
    with torch.autocast(embeddings.device.type, enabled=False):
        x, y = unit_rows(embeddings.to(dtype)), unit_rows(ref_emb.to(dtype))
        scale, bias = (_number_or_single(name, value, x) for name, value in (("scale", scale), ("bias", bias)))
        # The scale lengthens the rows of one view, the bias is one more feature: the kernel knows neither.
        x = torch.cat([x * scale, torch.ones_like(x[:, :1])], dim=1)
        y = torch.cat([y, bias.expand(y.shape[0], 1)], dim=1)
    return _views_loss("sigmoid", [], x, y, "dot", reduction, backend, False)


def _number_or_single(name: str, value: float | Tensor, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        checks.single(name, value)
        return value.reshape(()).to(like)
    checks.finite(name, value)
    # Made where it is used: a copy to the device would wait for it.
    return torch.full((), float(value), dtype=like.dtype, device=like.device)


def _views_loss(loss, params, x, y, distance, reduction, backend, two_sided) -> Tensor:
    n, m = x.shape[0], y.shape[0]
    labels = torch.arange(m, device=x.device)
    return pair_loss(
        loss,
        params,
        x,
        labels[:n],
        y,
        labels,
        distance=distance,
        reduction=reduction,
        backend=backend,
        exclude_self=False,
        two_sided=two_sided,
    )

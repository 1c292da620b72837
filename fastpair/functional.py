"""The losses as functions. Every tensor argument may be float32, float64, bfloat16 or float16, of any strides.

Sums are kept in float32 (float64 for float64 inputs) and losses are returned in that dtype. An empty batch, or one
without the pairs that a loss is made of, has loss zero and zero gradients. Losses can be differentiated once. Arguments
of a wrong type raise TypeError, of a wrong shape or value ValueError.

NaN and infinity reach the anchors and references that meet them, and no others: what is finite in dense PyTorch is
finite here, with the same value. What is NaN there because of a NaN is NaN here; where it is the difference of two
infinities, a loss may be its limit, and a gradient may meet less than a matrix product does, in which NaN times zero is
NaN.

Tensors are dense (``torch.strided``) and whole: no sparse, nested or mkldnn tensors, no DTensor. ``torch.compile`` and
``torch.export`` take every loss but those of listed pairs; the transforms of ``torch.func`` (grad, vmap, jacrev) take
``backend="reference"``.

``backend`` overrides the kernel that is chosen for the tensors' device: see :func:`fastpair.use_backend`.
"""

from __future__ import annotations

from torch import Tensor

from fastpair import ops
from fastpair.losses import generated_functions, options
from fastpair.losses.bounds import pce_loss, spce_loss
from fastpair.losses.classes import (
    arcface_loss,
    center_loss,
    cosface_loss,
    linear_cross_entropy,
    normalized_softmax_loss,
    proxy_anchor_loss,
    proxy_nca_loss,
)
from fastpair.losses.generated_functions import *  # noqa: F403
from fastpair.losses.triplet import triplet_margin_loss
from fastpair.losses.two_views import info_nce_loss, siglip_loss

__all__ = [
    "arcface_loss",
    "center_loss",
    "cosface_loss",
    "info_nce_loss",
    "linear_cross_entropy",
    "normalized_softmax_loss",
    "pairwise_distance",
    "pce_loss",
    "proxy_anchor_loss",
    "proxy_nca_loss",
    "siglip_loss",
    "spce_loss",
    "triplet_margin_loss",
]
__all__ += generated_functions.__all__


def pairwise_distance(
    x: Tensor, y: Tensor | None = None, metric: str = "sqeuclidean", *, backend: str | None = None
) -> Tensor:
    r"""Scores of all pairs of rows of ``x`` (n, d) and ``y`` (m, d; default: ``x``), as a matrix (n, m).

    ================== ======================== ==================================================
    metric             s_ij                     at the edge
    ================== ======================== ==================================================
    "sqeuclidean"      |x_i - y_j|^2            never below 0
    "euclidean"        |x_i - y_j|              gradient 0 where the distance is 0 (see below)
    "unit_sqeuclidean" the same of x_i / |x_i|  a zero row stays zero and has gradient 0
    "unit_euclidean"   and y_j / |y_j|
    "cosine"           x_i.y_j / (|x_i| |y_j|)  a zero row has cosine 0 and gradient 0
    "dot"              x_i.y_j
    ================== ======================== ==================================================

    Returns the dtype of ``x``, with gradients to both sides. ``y`` must share the dtype, device and d of ``x``.

    Distances that are small beside the norms are computed from the differences of the rows. The kernels' *gradient* of
    "euclidean", and of losses on it, is a sum of rows over distances: what close pairs add to it has a relative error
    of about eps |x| / distance, eps being 1e-7 in float32.
    """
    options.distance("metric", metric)
    return ops.pairwise_distance(x, y, metric, backend)

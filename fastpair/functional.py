"""The losses as functions. Floating-point tensors may be float32, float64, bfloat16 or float16, with any strides.

Sums are kept in float32 (float64 for float64 inputs) and losses are returned in that dtype. An empty batch, or one
without the pairs that a loss needs, has loss zero and zero gradients. Losses can be differentiated once. Arguments of
the wrong type raise TypeError, those of a wrong shape or value ValueError.

NaN and infinity affect only the anchors and references that meet them: whatever is finite in dense PyTorch is finite
here, with the same value. A result that is NaN there because of a NaN is NaN here too; where it is NaN as a difference
of two infinities, a loss may be its limit, and a gradient may lack a NaN that a matrix product brings in as NaN times
zero.

Tensors must be dense (``torch.strided``) and whole: no sparse, nested or mkldnn tensors, no DTensor. ``torch.compile``
and ``torch.export`` support every loss except those over listed pairs; the transforms of ``torch.func`` (grad, vmap,
jacrev) need ``backend="reference"``.

``backend`` overrides the kernel that is chosen for the tensors' device: see :func:`fastpair.use_backend`.
"""

from __future__ import annotations

from torch import Tensor

from fastpair import ops
from fastpair.losses import generated_functions, options
from fastpair.losses.bounds import pce_loss, spce_loss
from fastpair.losses.classes import linear_cross_entropy
from fastpair.losses.generated_functions import *  # noqa: F403
from fastpair.losses.info_nce import info_nce_loss
from fastpair.losses.rows import row_logsumexp
from fastpair.losses.siglip import siglip_loss

__all__ = [
    "info_nce_loss",
    "linear_cross_entropy",
    "pairwise_distance",
    "pce_loss",
    "row_logsumexp",
    "siglip_loss",
    "spce_loss",
]
__all__ += generated_functions.__all__


def pairwise_distance(
    x: Tensor, y: Tensor | None = None, metric: str = "sqeuclidean", *, backend: str | None = None
) -> Tensor:
    r"""Scores of all pairs of rows of ``x`` (n, d) and ``y`` (m, d; default: ``x``), as a matrix (n, m).

    ================== ======================== ==================================================
    metric             s_ij                     edge cases
    ================== ======================== ==================================================
    "sqeuclidean"      |x_i - y_j|^2            never below 0
    "euclidean"        |x_i - y_j|              gradient 0 where the distance is 0 (see below)
    "unit_sqeuclidean" the same of x_i / |x_i|  a zero row stays zero and has gradient 0
    "unit_euclidean"   and y_j / |y_j|
    "cosine"           x_i.y_j / (|x_i| |y_j|)  a zero row has cosine 0 and gradient 0
    "dot"              x_i.y_j
    ================== ======================== ==================================================

    Returns the dtype of ``x``, with gradients to both sides. ``y`` must share the dtype, device and d of ``x``.

    Distances that are small compared with the norms are computed from the differences of the rows. The kernels'
    *gradient* of "euclidean", and of losses on it, is a sum of rows divided by distances: the part of close pairs has a
    relative error of about eps |x| / distance, with eps = 1e-7 in float32.
    """
    options.distance("metric", metric)
    return ops.pairwise_distance(x, y, metric, backend)

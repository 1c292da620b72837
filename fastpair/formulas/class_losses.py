"""The definitions of the losses on one vector per class, from which their functions and modules are printed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from .pair_losses import FORMULAS, Definition, Setting, temperature

VECTORS = "{} (K, d), of the embeddings' dtype unless autocast is on."
SOFTMAX_LABELS = "integers (n,) in [0, K), none of which is ignored; any other as in :func:`linear_cross_entropy`."
WEIGHT = {"embeddings": "z (n, d).", "weight": VECTORS.format("class weights w"), "labels": SOFTMAX_LABELS}
PROXIES = {"embeddings": "z (n, d).", "proxies": VECTORS.format("p"), "labels": SOFTMAX_LABELS}


@dataclass(frozen=True)
class ClassDefinition(Definition):
    """A loss on one vector per class. ``formula``: the logits of a cross-entropy, a key of ``FORMULAS``, or ``name``.

    Attributes:
        tensors: the tensors that the function takes, in this order, and what they are.
        fan_out: see ``ClassLoss``.
        vectors: the name of the class vectors.
    """

    tensors: Mapping[str, str] = field(default_factory=lambda: WEIGHT)
    fan_out: bool = False
    vectors: str = field(init=False)

    def __post_init__(self):
        (vectors,) = self.tensors.keys() - {"embeddings", "labels"}
        object.__setattr__(self, "vectors", vectors)

    @property
    def arguments(self) -> tuple[Setting, ...]:
        """All settings, in the order in which functions and modules take them."""
        check = "pair_reduction" if self.formula in FORMULAS else "reduction"
        return (*self.settings, Setting("reduction", "mean", self.mean, check))

    def params(self, settings: Mapping[str, float]) -> dict[str, float]:
        """The parameters of the formula."""
        return {x.parameter: x.value(settings[x.name], similarity=True) for x in self.settings}


SCALE = Setting("scale", 64.0, "positive.", "positive")
EACH = '"mean", "sum" or "none".'

CLASS_LOSSES = {
    loss.name: loss
    for loss in (
        ClassDefinition(
            "normalized_softmax",
            "NormalizedSoftmaxLoss",
            "Cross-entropy of cosines",
            "logits cos(z_i, w_k) / temperature",
            "Zhai and Wu, BMVC 2019 (arXiv 1811.12649), eq. 3",
            "cosface",
            (temperature(0.05, "positive."),),
            EACH,
        ),
        ClassDefinition(
            "cosface",
            "CosFaceLoss",
            "Cross-entropy of cosines with a margin",
            "logits scale (cos(z_i, w_k) - margin [k = y_i])",
            "Wang et al., CVPR 2018 (arXiv 1801.09414), eq. 4",
            "cosface",
            (Setting("margin", 0.35, "in units of the cosine."), SCALE),
            EACH,
        ),
        ClassDefinition(
            "arcface",
            "ArcFaceLoss",
            "Cross-entropy of cosines with a margin on the angle",
            "logits scale cos(theta_ik + margin [k = y_i])",
            "Deng et al., CVPR 2019 (arXiv 1801.07698), eq. 3",
            "arcface",
            (
                Setting(
                    "margin",
                    28.6,
                    "in degrees, at least 0 and below 180.",
                    "degrees",
                    converted=lambda degrees: degrees * math.pi / 180,
                ),
                SCALE,
            ),
            EACH,
            "Where theta + margin exceeds 180 degrees the target's logit is scale (cos theta - m sin m), m being the "
            "margin in radians, so that it keeps falling with the angle. The gradient is finite at theta = 0 too, "
            "where pytorch-metric-learning's is NaN: within 0.06 degrees of it sin theta is replaced by a straight "
            "line.",
        ),
        ClassDefinition(
            "proxy_nca",
            "ProxyNCALoss",
            "Neighbourhood components analysis with one proxy per class",
            "l_i = -log( exp(-softmax_scale d_{i y_i}) / sum_k exp(-softmax_scale d_ik) ),  "
            "d_ik = |z_i/|z_i| - p_k/|p_k||^2",
            "Movshovitz-Attias et al., ICCV 2017 (arXiv 1703.07464), eq. 4",
            "cosface",
            (Setting("softmax_scale", 1.0, "positive.", "positive", gives="scale", converted=lambda x: 2.0 * x),),
            EACH,
            "With d = 2 - 2 cos it is the cross-entropy of cosines at scale 2 ``softmax_scale``. As in "
            "pytorch-metric-learning, and unlike the paper, a sample's own proxy is in the denominator.",
            tensors=PROXIES,
        ),
        ClassDefinition(
            "proxy_anchor",
            "ProxyAnchorLoss",
            "Proxy-anchor loss: a pair loss whose anchors are the proxies of the classes",
            "l_k = log(1 + sum_{i: y_i = k} exp(-alpha (s_ik - margin)))\n"
            "    + log(1 + sum_{i: y_i != k} exp(alpha (s_ik + margin)))",
            "Kim et al., CVPR 2020 (arXiv 2003.13911), eq. 4",
            "proxy_anchor",
            (
                Setting("margin", 0.1, "in units of the cosine."),
                Setting("alpha", 32.0, "positive.", "positive"),
            ),
            '"mean": the first part averaged over the proxies with samples in the batch, the second over all K; "sum"; '
            '"none": (K,); "totals" as for the pair losses.',
            "s_ik is the cosine of embedding i and proxy k.",
            tensors={**PROXIES, "labels": "integers (n,) in [0, K)."},
            fan_out=True,
        ),
        ClassDefinition(
            "center",
            "CenterLoss",
            "Center loss: the pull of samples towards the centre of their class",
            "l_i = 1/2 |z_i - c_{y_i}|^2",
            "Wen et al., ECCV 2016, eq. 2; Boudiaf et al., ECCV 2020 (arXiv 2003.08983), Table 1",
            "center",
            (),
            EACH,
            "O(nd), plain PyTorch.",
            tensors={
                "embeddings": "z (n, d).",
                "labels": "integers (n,) in [0, K).",
                "centers": "c (K, d), of any floating dtype.",
            },
        ),
    )
}

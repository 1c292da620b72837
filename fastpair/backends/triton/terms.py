"""The formulas of the pair losses as device functions: what ``csrc/terms.h`` is to the C++ kernels.

An anchor's positives have terms u(s), its negatives terms v(s); each kind is reduced to a sum, a log-sum-exp or a
maximum. ``terms(s, given, sign, p0, p1, p2)`` returns (u, du/ds, v, dv/ds), where ``sign`` is 1 for a similarity and -1
for a distance, the p are the parameters as :mod:`fastpair.formulas` has them, and ``given`` is the anchor's log-sum-exp
over its negatives for the losses whose positives need it. ``anchor(positives, negatives, p0, p1, p2)`` makes the loss
of what both kinds came to:

    (loss, count, loss of the negatives, their count, slope of the positives' terms, slope of the negatives')

A kind comes as (how many pairs, value, log_sum, aux, slope by ``given``). A log-sum-exp is value + log_sum, its maximum
and the logarithm of the sum relative to it: beside large scores their sum has lost the second. aux is the number of
terms that are not zero for a sum, and the sum of the terms for a log-sum-exp. A slope (factor, constant) says that the
derivative of the loss by a term u is factor times the share of u in the log-sum-exp, plus constant. The loss and the
count of the negatives are apart where their mean is (``separate_means``), and zero elsewhere. Anchors are made in
float64.

Terms are rounded before a shift is taken from them, as the kernels are compiled to fuse no product with a sum but by
``tl.fma`` (see ``launch.COMPILED``): what is exponentiated is the very number whose maximum was taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import triton
import triton.language as tl
from triton.runtime import JITFunction

# Logarithms of the smallest and of the largest numbers in float32 are beyond these.
MOST, MOST_OF_SUM = 76.0, 88.0
# Reductions, as constants of the kernels.
SUM, LOG_SUM_EXP, MAX = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@dataclass(frozen=True)
class Loss:
    """``terms`` and ``anchor`` as the module says; ``params`` is how many p there are. ``most`` of the p: how large the
    terms of cosines that are exponentiated get, in either direction; None where nothing is known of it."""

    terms: JITFunction
    anchor: JITFunction
    params: int
    positives: int = LOG_SUM_EXP.value
    negatives: int = LOG_SUM_EXP.value
    given: bool = False
    separate_means: bool = False
    most: Callable[..., float] | None = None

    @property
    def sums(self) -> bool:
        """The derivative by a pair's score needs nothing of the anchor's other pairs."""
        return self.positives == self.negatives == SUM.value

    @property
    def simple(self) -> bool:
        """Log-sum-exps and no more: the slopes that want the fewest registers."""
        return not (self.sums or self.given or self.separate_means)

    def bounded(self, params: list[float], cosines: bool, count: int) -> bool:
        """Whether no exponential of a term comes to nothing, and not even ``count`` of them overflow: they need no
        shift then."""
        if self.sums or not cosines or self.most is None:
            return self.sums
        most = self.most(*params)
        return most <= MOST and most + math.log(max(count, 1)) <= MOST_OF_SUM


# ---- elementary functions. NaN stays NaN.


@triton.jit
def relu(x):
    return tl.where(x < 0, 0.0, x)


@triton.jit
def softplus(x):
    """log(1 + exp(x)). log(1 + y) for y in [0, 1] is 2 atanh(y / (2 + y)), whose terms beyond z^15 are below 1e-9 of
    the sum: the logarithm of 1 + y would lose the small ones."""
    y = tl.exp(tl.where(x < 0, x, -x))
    z = y / (2 + y)
    q = z * z
    p = q / 15 + 1 / 13
    for divisor in tl.static_range(11, 0, -2):
        p = tl.fma(p, q, tl.full(p.shape, 1 / divisor, p.dtype))
    return relu(x) + 2 * z * p


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp(-x))


# ---- terms


@triton.jit
def contrastive_terms(s, given, sign, pos_margin, neg_margin, unused):
    """[d - pos_margin]_+ and [neg_margin - d]_+; signs flipped for a similarity."""
    pull = pos_margin - sign * s
    push = sign * s - neg_margin
    return relu(pull), tl.where(pull <= 0, 0.0, -sign), relu(push), tl.where(push <= 0, 0.0, sign)


@triton.jit
def squared_contrastive_terms(s, given, sign, pos_margin, neg_margin, unused):
    pull = relu(pos_margin - sign * s)
    push = relu(sign * s - neg_margin)
    return pull * pull, -2 * sign * pull, push * push, 2 * sign * push


@triton.jit
def scaled_terms(s, given, sign, scale, unused1, unused2):
    u = sign * scale * s
    return u, sign * scale, u, sign * scale


@triton.jit
def ntxent_terms(s, given, sign, scale, unused1, unused2):
    """softplus(log sum_N exp(scale s) - scale s) on positives."""
    v = sign * scale * s
    return softplus(given - v), -sign * scale * sigmoid(given - v), v, sign * scale


@triton.jit
def sigmoid_terms(s, given, sign, unused0, unused1, unused2):
    return softplus(-s), -sigmoid(-s), softplus(s), sigmoid(s)


@triton.jit
def multi_similarity_terms(s, given, sign, alpha, base, beta):
    excess = sign * s - base
    return -alpha * excess, -alpha * sign, beta * excess, beta * sign


@triton.jit
def proxy_anchor_terms(s, given, sign, alpha, margin, unused):
    return -alpha * (s - margin), -alpha, alpha * (s + margin), alpha


@triton.jit
def circle_terms(s, given, sign, gamma, m, unused):
    pull = -gamma * relu(1 + m - s)
    push = gamma * relu(s + m)
    return pull * (s - 1 + m), pull, push * (s - m), push


@triton.jit
def lifted_structure_terms(s, given, sign, pos_margin, neg_margin, unused):
    return pos_margin - sign * s, -sign, sign * s - neg_margin, sign


@triton.jit
def hard_triplet_terms(s, given, sign, margin, unused1, unused2):
    return -sign * s, -sign, sign * s, sign


# ---- anchors


@triton.jit
def log_sum_exp(kind):
    return kind[1] + kind[2]


@triton.jit
def log_of_ratio(a, b):
    return (a[1] - b[1]) + (a[2] - b[2])


@triton.jit
def sums_apart_anchor(pos, neg, p0, p1, p2):
    """Each kind a sum with a mean of its own over its non-zero terms. Hadsell et al., CVPR 2006."""
    zero = tl.zeros_like(pos[1])
    return pos[1], pos[3], neg[1], neg[3], (zero, zero + 1), (zero, zero + 1)


@triton.jit
def sums_anchor(pos, neg, p0, p1, p2):
    """Boudiaf et al., ECCV 2020, Table 1 (contrastive); Zhai et al., ICCV 2023, eq. 1 (sigmoid)."""
    zero = tl.zeros_like(pos[1])
    return pos[1] + neg[1], zero + 1, zero, zero, (zero, zero + 1), (zero, zero + 1)


@triton.jit
def snca_anchor(pos, neg, scale, p1, p2):
    """log sum_{P and N} exp(u) - log sum_P exp(u). Wu et al., ECCV 2018; Goldberger et al., NeurIPS 2004."""
    counts = pos[0] > 0
    excess = tl.where(counts, log_of_ratio(neg, pos), 0.0)
    zero = tl.zeros_like(excess)
    among_all = tl.where(counts, sigmoid(excess), 0.0)
    loss = tl.where(counts, softplus(excess), 0.0)
    return loss, counts.to(excess.dtype), zero, zero, (-among_all, zero), (among_all, zero)


@triton.jit
def supcon_anchor(pos, neg, scale, p1, p2):
    """log sum_{P and N} exp(u) - (1/|P|) sum_P u. Khosla et al., NeurIPS 2020, eq. 2."""
    counts = pos[0] > 0
    pairs = tl.where(counts, pos[0], 1.0)
    excess = tl.where(counts, log_of_ratio(neg, pos), 0.0)
    zero = tl.zeros_like(excess)
    loss = tl.where(counts, (pos[1] - pos[3] / pairs) + pos[2] + softplus(excess), 0.0)
    pull = (tl.where(counts, sigmoid(-excess), 0.0), tl.where(counts, -1 / pairs, 0.0))
    return loss, counts.to(excess.dtype), zero, zero, pull, (tl.where(counts, sigmoid(excess), 0.0), zero)


@triton.jit
def ntxent_anchor(pos, neg, scale, p1, p2):
    """sum_P softplus(log sum_N exp(v) - u), averaged over the positive pairs. Sohn, NeurIPS 2016."""
    zero = tl.zeros_like(pos[1])
    return pos[1], pos[0], zero, zero, (zero, zero + 1), (pos[4], zero)


@triton.jit
def multi_similarity_anchor(pos, neg, alpha, base, beta):
    """softplus(A) / alpha + softplus(B) / beta. Wang et al., CVPR 2019, eq. 16."""
    zero = tl.zeros_like(pos[1])
    pull, push = log_sum_exp(pos), log_sum_exp(neg)
    loss = softplus(pull) / alpha + softplus(push) / beta
    return loss, zero + 1, zero, zero, (sigmoid(pull) / alpha, zero), (sigmoid(push) / beta, zero)


@triton.jit
def proxy_anchor_anchor(pos, neg, alpha, margin, p2):
    """softplus(A), averaged over the proxies with positives, and softplus(B) over all. Kim et al., CVPR 2020, eq. 4."""
    zero = tl.zeros_like(pos[1])
    pull, push = log_sum_exp(pos), log_sum_exp(neg)
    slopes = (sigmoid(pull), zero), (sigmoid(push), zero)
    return softplus(pull), (pos[0] > 0).to(zero.dtype), softplus(push), zero + 1, slopes[0], slopes[1]


@triton.jit
def circle_anchor(pos, neg, gamma, m, p2):
    """softplus(A + B), the [.]_+ constants of the gradient. Sun et al., CVPR 2020, eq. 6 and 8."""
    counts = (pos[0] > 0) & (neg[0] > 0)
    total = tl.where(counts, log_sum_exp(pos) + log_sum_exp(neg), 0.0)
    zero = tl.zeros_like(total)
    slope = tl.where(counts, sigmoid(total), 0.0)
    loss = tl.where(counts, softplus(total), 0.0)
    return loss, counts.to(zero.dtype), zero, zero, (slope, zero), (slope, zero)


@triton.jit
def lifted_structure_anchor(pos, neg, pos_margin, neg_margin, p2):
    """[A + B]_+. Hermans et al., 2017, eq. 8."""
    counts = (pos[0] > 0) & (neg[0] > 0)
    total = tl.where(counts, log_sum_exp(pos) + log_sum_exp(neg), 0.0)
    zero = tl.zeros_like(total)
    slope = tl.where(total > 0, 1.0, zero)
    return relu(total), counts.to(zero.dtype), zero, zero, (slope, zero), (slope, zero)


@triton.jit
def hard_triplet_anchor(pos, neg, margin, p1, p2):
    """[max_P d - min_N d + margin]_+, averaged over the anchors where it is not zero. Hermans et al., 2017, eq. 5."""
    counts = (pos[0] > 0) & (neg[0] > 0)
    excess = tl.where(counts, pos[1] + neg[1] + margin, 0.0)
    zero = tl.zeros_like(excess)
    loss = relu(excess)
    slope = (zero, tl.where(excess <= 0, 0.0, zero + 1))
    return loss, (loss != 0).to(zero.dtype), zero, zero, slope, slope


@triton.jit
def smooth_hard_triplet_anchor(pos, neg, margin, p1, p2):
    """softplus(max_P d - min_N d + margin), averaged over the anchors where it is not zero."""
    counts = (pos[0] > 0) & (neg[0] > 0)
    excess = tl.where(counts, pos[1] + neg[1] + margin, 0.0)
    zero = tl.zeros_like(excess)
    loss = tl.where(counts, softplus(excess), 0.0)
    slope = (zero, tl.where(counts, sigmoid(excess), 0.0))
    return loss, (loss != 0).to(zero.dtype), zero, zero, slope, slope


def most_of_multi_similarity(alpha: float, base: float, beta: float) -> float:
    return max(abs(alpha), abs(beta)) * (1 + abs(base))


def most_of_proxy_anchor(alpha: float, margin: float) -> float:
    return abs(alpha) * (1 + abs(margin))


LOSSES = {
    "contrastive": Loss(contrastive_terms, sums_apart_anchor, 2, SUM.value, SUM.value, separate_means=True),
    "squared_contrastive": Loss(squared_contrastive_terms, sums_anchor, 2, SUM.value, SUM.value),
    "snca": Loss(scaled_terms, snca_anchor, 1, most=abs),
    "supcon": Loss(scaled_terms, supcon_anchor, 1, most=abs),
    "ntxent": Loss(ntxent_terms, ntxent_anchor, 1, positives=SUM.value, given=True, most=abs),
    "sigmoid": Loss(sigmoid_terms, sums_anchor, 0, SUM.value, SUM.value),
    "multi_similarity": Loss(multi_similarity_terms, multi_similarity_anchor, 3, most=most_of_multi_similarity),
    "proxy_anchor": Loss(proxy_anchor_terms, proxy_anchor_anchor, 2, separate_means=True, most=most_of_proxy_anchor),
    "circle": Loss(circle_terms, circle_anchor, 2),
    "lifted_structure": Loss(lifted_structure_terms, lifted_structure_anchor, 2),
    "hard_triplet": Loss(hard_triplet_terms, hard_triplet_anchor, 1, MAX.value, MAX.value),
    "smooth_hard_triplet": Loss(hard_triplet_terms, smooth_hard_triplet_anchor, 1, MAX.value, MAX.value),
}

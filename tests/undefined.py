"""NaN and infinity reach the anchors and references that meet them, and no others: what is finite in dense PyTorch is
finite, and its values are no others than there.

Against the formulas of dense.py in float64. Gradients are told by rows. A kernel may meet less than matrix products do,
which multiply NaN by zero.
"""

from functools import partial

import dense
import torch
from support import LOSSES, cast, pair_loss, value_and_gradients

SPREAD = {
    **LOSSES,
    **pair_loss("nca_loss", distance="dot"),
    **pair_loss("supcon_loss", distance="dot"),
    **pair_loss("triplet_margin_loss", distance="euclidean", triplets_per_anchor="all"),
    **pair_loss("triplet_margin_loss", distance="cosine", triplets_per_anchor="semihard"),
    **pair_loss("triplet_margin_loss", distance="sqeuclidean", triplets_per_anchor="semihard", smooth_loss=True),
    **pair_loss("triplet_margin_loss", distance="euclidean", triplets_per_anchor="facenet"),
}
NAN, INFINITY = float("nan"), float("inf")
# What is bad, and whether as a whole row or as an element.
CASES = [(bad, whole) for bad in (NAN, INFINITY, -INFINITY) for whole in (True, False)]
FEW = [(NAN, True), (INFINITY, False)]
BY_ROWS = ("none", "totals")


# Relative and absolute.
TOLERANCE = {torch.float64: (1e-9, 1e-9), torch.float32: (1e-4, 1e-5), torch.bfloat16: (4e-2, 2e-2)}


def faults(loss, case, n, backend, reduction="none", dtype=torch.float32, device="cpu", d=6):
    bad, whole = case
    clean = cast(loss.inputs(n, d, "few", torch.Generator().manual_seed(0)), dtype)
    run, plain = (partial(of, reduction=reduction) for of in (loss.fused, loss.dense))
    for name in clean.keys() & {"embeddings", "ref_emb", "weight", "proxies", "centers"}:
        inputs = clean | {name: clean[name].clone()}
        inputs[name][min(4, len(clean[name]) - 1), slice(None) if whole else 2] = bad
        want = value_and_gradients(plain, cast(inputs, torch.float64), loss.trained)
        moved = {k: t.to(device) for k, t in inputs.items()}
        got = value_and_gradients(partial(run, backend=backend), moved, loss.trained)
        for fault in compared({k: t.cpu() for k, t in got.items()}, want, bad, loss):
            yield f"{bad} in {'a row' if whole else 'an element'} of {name}, {reduction}: {fault}"


def compared(got, want, bad, loss):
    value = got.pop("value")
    usual = want["value"].to(value.dtype)
    # A difference of infinities, NaN in dense PyTorch, may be its limit. Sums over classes, which are made first, meet
    # infinities of either sign where the formula has one alone.
    known = torch.ones_like(usual, dtype=torch.bool) if bad != bad else ~usual.isnan()
    if bad == bad and loss.dense.func in (dense.spce_loss, dense.pce_loss):
        known = usual.isfinite()
    if not torch.allclose(value[known], usual[known], *TOLERANCE[value.dtype], equal_nan=True):
        yield f"value {value.tolist()}, dense PyTorch's {usual.tolist()}"
    for name, gradient in got.items():
        if gradient.ndim == 2:
            spoilt = gradient.isfinite().all(1) < want[name].isfinite().all(1)
            if spoilt.any():
                yield f"gradient of {name}: rows {spoilt.nonzero().flatten().tolist()} are not finite"

"""Embeddings of every length: rows from 1e-12 to 1e12 long and temperatures from 1e-3 to 10 leave the kernels no less
accurate than dense PyTorch in the same dtype, and finite where that is.

What is exponentiated has to be the very number whose maximum was taken: scores may be in the millions. Both are held
against the reference in float64, of the same rounded inputs.
"""

from functools import partial

import torch
from support import cast, value_and_gradients

import fastpair.functional as FP

SIMILARITIES = ("cosine", "dot")
DISTANCES = (*SIMILARITIES, "sqeuclidean", "euclidean", "unit_sqeuclidean", "unit_euclidean")
TEMPERATURES = (1e-3, 0.03, 1.0, 10.0)
SCALES = (1e-12, 1e-6, 1e-3, 1.0, 1e2, 1e3, 1e4, 1e6, 1e12)
HALF_SCALES = (1e-3, 1e-1, 1.0, 1e2, 1e3)
# A result that dense PyTorch happens to get right to the last bit is no yardstick. And float64 has nothing wider to be
# held against: terms in the thousands are rounded on both sides.
FLOOR = {torch.float64: 1e-12, torch.float32: 8e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def pairs(function, settings=lambda t: {}, distances=DISTANCES, temperatures=TEMPERATURES):
    return [
        (partial(function, **settings(t), distance=distance), ("embeddings",), f"{distance} {t:g}")
        for distance in distances
        for t in temperatures
    ]


def temperature(t):
    return {"temperature": t}


def classes(function, name, settings):
    return [(partial(function, **settings(t)), ("embeddings", name), f"{t:g}") for t in TEMPERATURES]


ONCE = (1.0,)
GRID = {
    "contrastive": pairs(FP.contrastive_loss, temperatures=ONCE),
    "contrastive-squared": pairs(FP.contrastive_loss, lambda t: {"power": 2}, temperatures=ONCE),
    "snca": pairs(FP.snca_loss, temperature),
    "supcon": pairs(FP.supcon_loss, temperature),
    "ntxent": pairs(FP.ntxent_loss, temperature),
    "multi_similarity": pairs(FP.multi_similarity_loss, lambda t: {"alpha": 1 / t, "beta": 3 / t}),
    "circle": pairs(FP.circle_loss, lambda t: {"gamma": 1 / t}, SIMILARITIES),
    "lifted_structure": pairs(FP.generalized_lifted_structure_loss, temperatures=ONCE),
    "triplet": pairs(FP.triplet_margin_loss, temperatures=ONCE),
    "triplet-hard": pairs(FP.triplet_margin_loss, lambda t: {"triplets_per_anchor": "hard"}, temperatures=ONCE),
    # A sum: its mean is over the terms that are not zero, of which rounding makes or unmakes those of 1e-320.
    "triplet-smooth": pairs(
        FP.triplet_margin_loss, lambda t: {"smooth_loss": True, "reduction": "sum"}, temperatures=ONCE
    ),
    "info_nce": [
        (partial(FP.info_nce_loss, temperature=t, distance=distance), ("embeddings", "ref_emb"), f"{distance} {t:g}")
        for distance in DISTANCES
        for t in TEMPERATURES
    ],
    "siglip": [(partial(FP.siglip_loss, scale=1 / t), ("embeddings", "ref_emb"), f"{t:g}") for t in TEMPERATURES],
    "proxy_anchor": classes(FP.proxy_anchor_loss, "proxies", lambda t: {"alpha": 1 / t}),
    "normalized_softmax": classes(FP.normalized_softmax_loss, "weight", temperature),
    "cosface": classes(FP.cosface_loss, "weight", lambda t: {"scale": 1 / t}),
    "arcface": classes(FP.arcface_loss, "weight", lambda t: {"scale": 1 / t}),
    "proxy_nca": classes(FP.proxy_nca_loss, "proxies", lambda t: {"softmax_scale": 1 / t}),
    "linear_cross_entropy": [
        (partial(FP.linear_cross_entropy, label_smoothing=s), ("embeddings", "weight"), f"{s:g}") for s in (0, 0.1)
    ],
    "spce": [(FP.spce_loss, ("embeddings",), "")],
    "pce": [(partial(FP.pce_loss, lam=0.3), ("embeddings",), "")],
}


def inputs_for(function, trained, scale, dtype, n, d):
    generator = torch.Generator().manual_seed(3)
    classes = n // 4

    def rows(count):
        return (torch.randn(count, d, generator=generator, dtype=torch.float64) * scale).to(dtype)

    tensors = {"embeddings": rows(n)}
    name = function.func.__name__ if isinstance(function, partial) else function.__name__
    if name not in ("info_nce_loss", "siglip_loss"):
        tensors["labels"] = torch.arange(n) * 7 % classes
    for other in trained[1:]:
        tensors[other] = rows(n if other == "ref_emb" else classes)
    if name == "pce_loss":
        tensors["probabilities"] = torch.rand(n, classes, generator=generator).softmax(1).to(dtype)
    return tensors


def relative_error(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


def rounded(inputs, seed):
    """The inputs moved by two units in the last place, as rounding moves the products that scores are made of."""
    generator = torch.Generator().manual_seed(seed)
    for name, t in inputs.items():
        if t.is_floating_point():
            signs = torch.randint(0, 2, t.shape, generator=generator) * 2 - 1
            t = t * (1 + signs.to(t.dtype) * 2 * torch.finfo(t.dtype).eps)
        yield name, t


def faults(calls, scales, dtype, backend, n, d, device="cpu"):
    """What a backend gets wrong in the ``calls`` of a loss, a line each."""
    found = []
    for function, trained, label in calls:
        for scale in scales:
            inputs = inputs_for(function, trained, scale, dtype, n, d)
            faults = faults_of_one(function, trained, inputs, backend, device)
            found += [f"{label}, scale {scale:g}: {fault}" for fault in faults]
    return "\n".join(found)


def faults_of_one(function, trained, inputs, backend, device):
    dtype = inputs["embeddings"].dtype
    reference = partial(function, backend="reference")
    truth = value_and_gradients(reference, cast(inputs, torch.float64), trained)
    # In float64, which has nothing wider, what rounding makes of the inputs.
    measured = [inputs] if dtype != torch.float64 else [dict(rounded(inputs, seed)) for seed in range(4)]
    dense = [value_and_gradients(reference, each, trained) for each in measured]
    moved = {name: t.to(device) for name, t in inputs.items()}
    got = value_and_gradients(partial(function, backend=backend), moved, trained)
    got = {name: t.cpu() for name, t in got.items()}
    for name, want in truth.items():
        if not (want.isfinite().all() and all(each[name].isfinite().all() for each in dense)):
            continue
        if not got[name].isfinite().all():
            yield f"{name} is not finite"
        elif want.norm() > 0:
            found = relative_error(got[name], want)
            theirs = max(relative_error(each[name], want) for each in dense)
            if not found <= max(2 * theirs, FLOOR[got[name].dtype]):
                yield f"{name}: error {found:.2g}, dense PyTorch's {theirs:.2g}"

"""Embeddings of every length: rows from 1e-12 to 1e12 long and temperatures from 1e-3 to 10 leave the kernels no less
accurate than dense PyTorch in the same dtype, and finite where that is.

What is exponentiated has to be the very number whose maximum was taken: scores may be in the millions. Both are held
against the reference in float64, of the same rounded inputs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from allpairspy import AllPairs
from support import cast, value_and_gradients

import fastpair.functional as FP

SIMILARITIES = ("cosine", "dot")
DISTANCES = (*SIMILARITIES, "sqeuclidean", "euclidean", "unit_sqeuclidean", "unit_euclidean")
TEMPERATURES = (1e-3, 0.03, 1.0, 10.0)
SCALES = (1e-12, 1e-3, 1.0, 1e3, 1e6, 1e12)
HALF_SCALES = (1e-3, 1e-1, 1.0, 1e2, 1e3)
WIDE = (torch.float64, torch.float32, torch.bfloat16)
EVERY_SCALE = [(dtype, scale) for dtype in WIDE for scale in SCALES] + [(torch.float16, s) for s in HALF_SCALES]
# A result that dense PyTorch happens to get right to the last bit is no yardstick. And float64 has nothing wider to be
# held against: terms in the thousands are rounded on both sides.
FLOOR = {torch.float64: 1e-12, torch.float32: 8e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@dataclass(frozen=True)
class Swept:
    """A loss, with distances and temperatures to try."""

    function: Callable
    settings: Callable = lambda t: {}
    trained: tuple[str, ...] = ("embeddings",)
    distances: tuple[str | None, ...] = DISTANCES
    temperatures: tuple[float, ...] = TEMPERATURES

    def call(self, distance, t):
        more = {} if distance is None else {"distance": distance}
        return partial(self.function, **self.settings(t), **more)


def temperature(t):
    return {"temperature": t}


def classes(function, name, settings):
    return Swept(function, settings, ("embeddings", name), (None,))


ONCE, VIEWS = (1.0,), ("embeddings", "ref_emb")
PLAIN = {"distances": (None,), "temperatures": ONCE}
GRID = {
    "contrastive": Swept(FP.contrastive_loss, temperatures=ONCE),
    "contrastive-squared": Swept(FP.contrastive_loss, lambda t: {"power": 2}, temperatures=ONCE),
    "snca": Swept(FP.snca_loss, temperature),
    "supcon": Swept(FP.supcon_loss, temperature),
    "ntxent": Swept(FP.ntxent_loss, temperature),
    "multi_similarity": Swept(FP.multi_similarity_loss, lambda t: {"alpha": 1 / t, "beta": 3 / t}),
    "circle": Swept(FP.circle_loss, lambda t: {"gamma": 1 / t}, distances=SIMILARITIES),
    "lifted_structure": Swept(FP.generalized_lifted_structure_loss, temperatures=ONCE),
    "triplet": Swept(FP.triplet_margin_loss, temperatures=ONCE),
    "triplet-hard": Swept(FP.triplet_margin_loss, lambda t: {"triplets_per_anchor": "hard"}, temperatures=ONCE),
    # A sum: its mean is over the terms that are not zero, of which rounding makes or unmakes those of 1e-320.
    "triplet-smooth": Swept(
        FP.triplet_margin_loss, lambda t: {"smooth_loss": True, "reduction": "sum"}, temperatures=ONCE
    ),
    "info_nce": Swept(FP.info_nce_loss, temperature, VIEWS),
    "siglip": Swept(FP.siglip_loss, lambda t: {"scale": 1 / t}, VIEWS, (None,)),
    "proxy_anchor": classes(FP.proxy_anchor_loss, "proxies", lambda t: {"alpha": 1 / t}),
    "normalized_softmax": classes(FP.normalized_softmax_loss, "weight", temperature),
    "cosface": classes(FP.cosface_loss, "weight", lambda t: {"scale": 1 / t}),
    "arcface": classes(FP.arcface_loss, "weight", lambda t: {"scale": 1 / t}),
    "proxy_nca": classes(FP.proxy_nca_loss, "proxies", lambda t: {"softmax_scale": 1 / t}),
    "linear_cross_entropy": Swept(FP.linear_cross_entropy, trained=("embeddings", "weight"), **PLAIN),
    "linear_cross_entropy-smooth": Swept(
        FP.linear_cross_entropy, lambda t: {"label_smoothing": 0.1}, ("embeddings", "weight"), **PLAIN
    ),
    "spce": Swept(FP.spce_loss, **PLAIN),
    "pce": Swept(FP.pce_loss, lambda t: {"lam": 0.3}, **PLAIN),
}


def inputs_for(function, trained, scale, dtype, n, d):
    generator = torch.Generator().manual_seed(3)
    classes = n // 4

    def rows(count):
        return (torch.randn(count, d, generator=generator, dtype=torch.float64) * scale).to(dtype)

    tensors = {"embeddings": rows(n)}
    name = function.func.__name__
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


def faults(of, scales, backend, n, d, device="cpu"):
    """What a backend gets wrong of a loss, a line each. ``scales``: pairs of a dtype and a scale. These, distances and
    temperatures meet each other in pairs, not in all combinations."""
    found = []
    for (dtype, scale), distance, t in AllPairs([scales, of.distances, of.temperatures]):
        function = of.call(distance, t)
        inputs = inputs_for(function, of.trained, scale, dtype, n, d)
        faults = faults_of_one(function, of.trained, inputs, backend, device)
        found += [f"{distance}, temperature {t:g}, {dtype}, scale {scale:g}: {fault}" for fault in faults]
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

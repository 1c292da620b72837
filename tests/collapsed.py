"""Collapsed classes, where training ends: the samples of a class are as close as rounding allows, and gradients through
their distances are no worse than those of dense PyTorch, which takes distances from differences."""

from functools import partial

import torch
from scales import relative_error
from support import cast, value_and_gradients

import fastpair.functional as FP

DISTANCES = ("euclidean", "unit_euclidean", "sqeuclidean", "unit_sqeuclidean")
SHAPES = ((64, 32, 1e-6), (64, 32, 1e-3), (132, 16, 1e-6), (64, 3, 1e-6), (64, 2, 1e-6), (64, 1, 1e-2))
FLOOR = 4e-6  # where dense PyTorch is right to the last bit


def weighted_distances(embeddings, labels, distance, backend):
    """Of all samples to the first half."""
    d = FP.pairwise_distance(embeddings, embeddings[: len(embeddings) // 2], distance, backend=backend)
    return (d * torch.arange(d.numel(), device=d.device, dtype=d.dtype).cos().view_as(d)).sum()


CALLS = {
    "pairwise_distance": weighted_distances,
    "supcon": FP.supcon_loss,
    "contrastive": partial(FP.contrastive_loss, neg_margin=1.0),
    "lifted_structure": FP.generalized_lifted_structure_loss,
    "triplet": partial(FP.triplet_margin_loss, margin=0.5),
    "triplet-hard": partial(FP.triplet_margin_loss, triplets_per_anchor="hard", margin=0.5),
}


def gradient(call, inputs, dtype, distance, backend, device="cpu"):
    inputs = {k: t.to(device) for k, t in cast(inputs, dtype).items()}
    run = partial(call, distance=distance, backend=backend)
    return value_and_gradients(run, inputs, ("embeddings",))["embeddings"].cpu()


def faults(distance, shape, backend, device="cpu", names=CALLS):
    n, d, gap = shape
    generator = torch.Generator().manual_seed(n + d)
    labels = torch.arange(n) // 4
    centers = torch.randn(n // 4, d, generator=generator, dtype=torch.float64)
    x = centers[labels] + gap * torch.randn(n, d, generator=generator, dtype=torch.float64)
    shuffled = torch.randperm(n, generator=generator)
    inputs = {"embeddings": x[shuffled].float(), "labels": labels[shuffled]}
    for name in names:
        call = CALLS[name]
        # Which of them is the hardest, rounding decides.
        if name == "triplet-hard" and gap < 1e-3:
            continue
        if name == "triplet" and backend == "cuda":  # Triton's, or the reference's
            continue
        want = gradient(call, inputs, torch.float64, distance, "reference")
        dense = relative_error(gradient(call, inputs, torch.float32, distance, "reference"), want)
        found = relative_error(gradient(call, inputs, torch.float32, distance, backend, device), want)
        if not found <= max(2 * dense, FLOOR) and want.norm() > 0:
            yield f"{name}: error {found:.2g}, dense PyTorch's {dense:.2g}"

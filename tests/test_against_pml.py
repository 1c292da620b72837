"""pytorch-metric-learning where its definition agrees: the contrastive loss over all pairs."""

import dense
import pytest
import torch
from support import error, needs_cpu_kernels, value_and_gradients

from fastpair.losses import ContrastiveLoss

distances = pytest.importorskip("pytorch_metric_learning.distances")
losses = pytest.importorskip("pytorch_metric_learning.losses")
pytestmark = needs_cpu_kernels

CASES = {
    "euclidean": lambda: distances.LpDistance(normalize_embeddings=False),
    "sqeuclidean": lambda: distances.LpDistance(normalize_embeddings=False, power=2),
    "cosine": distances.CosineSimilarity,
    "dot": lambda: distances.DotProductSimilarity(normalize_embeddings=False),
}


@pytest.mark.parametrize("distance", CASES)
@pytest.mark.parametrize("references", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_contrastive_loss(distance, references, seed):
    generator = torch.Generator().manual_seed(seed)
    n, m, d, classes = (int(torch.randint(2, limit, (), generator=generator)) for limit in (150, 150, 40, 12))
    low, high = torch.rand(2, generator=generator).sort().values.tolist()
    margins = {"pos_margin": low, "neg_margin": 1 + high}
    if distance in ("cosine", "dot"):
        margins = {"pos_margin": high, "neg_margin": low - 0.5}
    inputs = {
        "embeddings": torch.randn(n, d, generator=generator, dtype=torch.float64) / d**0.5,
        "labels": torch.randint(classes, (n,), generator=generator),
    }
    trained = ("embeddings",)
    if references:
        inputs["ref_emb"] = torch.randn(m, d, generator=generator, dtype=torch.float64) / d**0.5
        inputs["ref_labels"] = torch.randint(classes, (m,), generator=generator)
        trained = ("embeddings", "ref_emb")
    # Rounding must not take a score to the other side of a margin.
    scores = dense.scores(inputs["embeddings"], inputs.get("ref_emb", inputs["embeddings"]), distance)
    for name in margins:
        while ((scores - margins[name]).abs() < 1e-6).any():
            margins[name] += 3e-6
    theirs = losses.ContrastiveLoss(distance=CASES[distance](), **margins)
    ours = ContrastiveLoss(distance=distance, **margins)
    for dtype in (torch.float64, torch.float32):
        typed = {k: t.to(dtype) if t.is_floating_point() else t for k, t in inputs.items()}
        got = value_and_gradients(ours, typed, trained)
        # Theirs in float64 only: their float32 distances lose more digits than are compared here.
        want = value_and_gradients(theirs, {k: t.double() if k in trained else t for k, t in typed.items()}, trained)
        assert max(error(got[name], want[name]) for name in want) <= 1e-5

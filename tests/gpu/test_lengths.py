"""Embeddings of every length on the GPU backends: see ../scales.py."""

from dataclasses import replace

import pytest
import torch
from scales import GRID, faults

SCALES = {
    torch.float32: (1e-12, 1e-3, 1.0, 1e3, 1e6, 1e12),
    torch.bfloat16: (1e-12, 1.0, 1e3, 1e12),
    torch.float16: (1e-3, 1.0, 1e3),
}


@pytest.mark.parametrize("dtype", SCALES, ids=str)
@pytest.mark.parametrize("loss", GRID)
def test_lengths(loss, dtype, backend, device):
    if backend == "cuda" and loss in ("triplet", "triplet-smooth"):
        pytest.skip("Triton's, or the reference's")
    of, scales = GRID[loss], SCALES[dtype]
    if device == "cpu":  # slowly, in the emulator or the interpreter: every other distance, temperature and scale
        at = list(GRID).index(loss) % 2
        of = replace(of, distances=of.distances[at::2] or of.distances, temperatures=of.temperatures[at::2] or (1.0,))
        scales = scales[at::2]
    if device == "cpu" and backend == "triton":  # milliseconds a launch
        if dtype != torch.float32 and (dtype, loss) != (torch.bfloat16, "multi_similarity"):
            pytest.skip("on a GPU")
        scales = (1e6,) if dtype == torch.float32 else (1e-12,)
    # Kernels that make products want rows of 16 elements, or 32.
    d = 6 if device == "cpu" else 16
    found = faults(of, [(dtype, scale) for scale in scales], backend, 24, d, device)
    assert not found, found

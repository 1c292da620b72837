"""What an installed wheel has to do wherever it is installed: its kernels load and compute what the formulas say.

    python tests/smoke.py

Needs torch and the wheel alone. ``make test-wheels`` runs it in clean environments without a compiler, under several
releases of torch.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import fastpair
import fastpair.functional as FP
from fastpair.backends import available_backends, choose_backend

ROOT = Path(__file__).resolve().parents[1]


def supcon(x: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    scores = F.normalize(x) @ F.normalize(x).T / temperature
    others = ~torch.eye(len(x), dtype=torch.bool)
    positive = (labels[:, None] == labels) & others
    log_shares = scores - scores.masked_fill(~others, -torch.inf).logsumexp(1, keepdim=True)
    counted = positive.any(1)
    return -((log_shares * positive).sum(1)[counted] / positive.sum(1)[counted]).mean()


def cross_entropy(x: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(x @ weight.T, labels)


def check(ours: torch.Tensor, formula: torch.Tensor, inputs: list[torch.Tensor]) -> None:
    torch.testing.assert_close(ours, formula, rtol=1e-5, atol=1e-6)
    gradients = (torch.autograd.grad(value, inputs) for value in (ours, formula))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def main() -> None:
    assert Path(fastpair.__file__).resolve().parent != ROOT / "fastpair", "this is the source tree, not the wheel"
    assert available_backends()["cpu"] is None, available_backends()["cpu"]
    assert choose_backend("cpu") == "cpu"
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 48, generator=generator, requires_grad=True)
    weight = torch.randn(60, 48, generator=generator, requires_grad=True)
    labels = torch.randint(60, (300,), generator=generator)
    check(FP.supcon_loss(x, labels, temperature=0.1), supcon(x, labels, 0.1), [x])
    check(FP.linear_cross_entropy(x, weight, labels), cross_entropy(x, labels, weight), [x, weight])
    half = FP.supcon_loss(x.bfloat16(), labels)
    assert half.dtype == torch.float32 and half.isfinite()
    recall = fastpair.retrieval.recall_at_k(x.detach(), labels, k=(1,))[1]
    assert 0 <= recall <= 1
    try:
        FP.supcon_loss(x, labels[:-1])
    except ValueError as error:
        assert "labels" in str(error)
    else:
        raise AssertionError("labels of another length were taken")
    print(f"fastpair {fastpair.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}: passed")
    fastpair.show_config()


if __name__ == "__main__":
    main()

"""Time of losses that users write, on the CPU: against the same losses of the package, and against KeOps and PyTorch.

    python -m benchmarks.custom [--json FILE] [--threads N] [--quick]

KeOps takes part where pykeops can be imported. How times are taken and checked: see :mod:`benchmarks.compare`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import fastpair.functional as FP
from benchmarks.compare import (
    checked_steps,
    command_line,
    compiled,
    embeddings,
    environment,
    masks,
    print_row,
    product,
    record,
    timed,
)
from fastpair.formulas import constant, exp, log, relu, softplus, sqrt, tanh
from fastpair.losses import CustomPairLoss

# As users write them, and as the package has them.
BUILT_IN = {
    "supcon": (
        CustomPairLoss(
            lambda s, p: s / p.t,
            lambda s, p: s / p.t,
            # log(exp P.lse + exp N.lse) less the mean of the positives
            lambda P, N, p: P.lse + softplus(N.lse - P.lse) - P.mean,
            t=0.1,
        ),
        FP.supcon_loss,
    ),
    "multi_similarity": (
        CustomPairLoss(
            lambda s, p: -p.alpha * (s - p.base),
            lambda s, p: p.beta * (s - p.base),
            lambda P, N, p: softplus(P.lse) / p.alpha + softplus(N.lse) / p.beta,
            alpha=2.0,
            beta=50.0,
            base=0.5,
        ),
        FP.multi_similarity_loss,
    ),
    "circle": (
        CustomPairLoss(
            lambda s, p: -p.gamma * constant(relu(1 + p.m - s)) * (s - 1 + p.m),
            lambda s, p: p.gamma * constant(relu(s + p.m)) * (s - p.m),
            lambda P, N, p: softplus(P.lse + N.lse),
            needs=["positives", "negatives"],
            gamma=80.0,
            m=0.4,
        ),
        FP.circle_loss,
    ),
}
# Twelve operations a pair, six of a kind.
MADE_UP = CustomPairLoss(
    lambda s, p: log(1 + exp(-2 * s)) * tanh(1 - s),
    lambda s, p: sqrt(1 + relu(s) ** 2) + 0.5 * s * s,
    lambda P, N, p: P.mean + N.mean,
)
NEAREST = CustomPairLoss(
    lambda s, p: s,
    lambda s, p: s,
    lambda P, N, p: softplus(N.lse - P.lse),
    needs=["positives"],
    distance="sqeuclidean",
)


def nearest_dense(x: Tensor, labels: Tensor) -> Tensor:
    squares = x.square().sum(1)
    s = 2 * x @ x.T - squares[:, None] - squares[None, :]
    positive, negative = masks(labels)
    P, N = (s.masked_fill(~of, -torch.inf).logsumexp(1) for of in (positive, negative))
    return F.softplus(N - P).mean()


def nearest_keops(x: Tensor, labels: Tensor) -> Tensor:
    from pykeops.torch import LazyTensor

    def differ(values: Tensor) -> LazyTensor:
        """1 where integers are not the same."""
        values = values.to(x.dtype)[:, None]
        return ((LazyTensor(values[:, None]) - LazyTensor(values[None])).square().sum(-1) - 0.5).step()

    far = 1e12
    s = -(LazyTensor(x[:, None]) - LazyTensor(x[None])).square().sum(-1)
    another, itself = differ(labels), 1 - differ(torch.arange(len(x)))
    P, N = ((s - far * none).logsumexp(dim=1)[:, 0] for none in (another + itself, 1 - another))
    return F.softplus(N - P).mean()


def row(name: str, losses: dict[str, Callable], n: int, d: int, seconds: float) -> dict:
    x, labels = embeddings(n, d)
    x = x / d**0.5
    runs = {"product": partial(product, x, x), **checked_steps(losses, [x], labels)}
    return timed(name, {"n": n, "d": d}, runs, seconds)


def against_built_in(seconds: float, quick: bool) -> Iterator[dict]:
    for name, (custom, built_in) in BUILT_IN.items():
        for n in (256,) if quick else (1024, 4096):
            yield row(name, {"custom": custom, "built in": built_in}, n, 128, seconds)
    yield row("twelve operations", {"custom": MADE_UP}, 256 if quick else 4096, 512, seconds)


def against_others(seconds: float, quick: bool) -> Iterator[dict]:
    n = 256 if quick else 4096
    for d in (3, 16) if quick else (3, 16, 64, 512):
        losses = {"custom": NEAREST, "eager": nearest_dense, "compile": compiled(nearest_dense)}
        if importlib.util.find_spec("pykeops"):
            losses["KeOps"] = nearest_keops
        yield row("soft nearest neighbour", losses, n, d, seconds)


def main() -> None:
    options = command_line(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    seconds = 0.2 if options.quick else options.seconds
    rows = (row for part in (against_built_in, against_others) for row in part(seconds, options.quick))
    record({"environment": environment()}, rows, print_row, options.json)


if __name__ == "__main__":
    main()

"""What a call costs besides its kernel: time on the host of every layer between ``loss(embeddings, labels)`` and the
launch, at a size where the kernel is nothing.

    python -m benchmarks.call_cost [--device cuda]

Microseconds, the least of seven rounds. On a GPU the device works behind the host's back, and launches are part of the
operator's time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

import fastpair
import fastpair.functional as FP
from fastpair.backends import choose_backend
from fastpair.ops.registration import operator

ROUNDS, CALLS = 7, 2000


class Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.new_empty(())

    @staticmethod
    def backward(ctx, grad):
        return torch.empty_like(ctx.saved_tensors[0])


def microseconds(call: Callable, device: str) -> float:
    def once() -> float:
        begin = time.perf_counter()
        for _ in range(CALLS):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) / CALLS * 1e6

    return min(once() for _ in range(ROUNDS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = parser.parse_args().device
    torch.set_num_threads(1)
    n, d = 8, 8
    x, labels = torch.randn(n, d, device=device), torch.arange(n, device=device) // 2
    leaf = x.clone().requires_grad_()
    backend = choose_backend(device)
    loss = fastpair.losses.SupConLoss()
    call = operator("labelled_pair_loss", backend)
    arguments = (x, None, labels, None, None, None, "supcon", [10.0], "cosine", False, "mean", True, False)

    def backward(forward: Callable) -> Callable:
        def run():
            leaf.grad = None
            forward().backward()

        return run

    layers = {
        "operator": lambda: call(*arguments),
        "an autograd function that does nothing": lambda: Nothing.apply(leaf),
        "the same, and its backward": backward(lambda: Nothing.apply(leaf)),
        "functional, with a gradient": lambda: FP.supcon_loss(leaf, labels),
        "module": lambda: loss(leaf, labels),
        "module, and its backward": backward(lambda: loss(leaf, labels)),
    }
    print(f"{device} tensors, backend {backend}, torch {torch.__version__}")
    for name, layer in layers.items():
        print(f"{name:42s}{microseconds(layer, device):8.1f} us")


if __name__ == "__main__":
    main()

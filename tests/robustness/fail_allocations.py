"""Run with failing_allocations.cpp preloaded: makes each allocation of some calls fail in turn, one process each, and
prints what came of them."""

import collections
import ctypes
import gc
import json
import os

import torch

import fastpair.functional as FP

SHIM = ctypes.CDLL(None)
REFUSED, UNHARMED, WRONG = 10, 11, 12


def calls():
    """Of every operator and of rows in half precision, with parallel regions that have more than one task."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(70, 24, generator=generator) for _ in range(2))
    labels = torch.randint(9, (70,), generator=generator)
    weight, half = torch.randn(70, 24, generator=generator), x.bfloat16()
    close = torch.cat([x[:35], x[:35] + 1e-5])
    yield "close-pairs", lambda z: FP.ntxent_loss(z, labels, distance="euclidean"), close
    yield "triplets", lambda z: FP.triplet_margin_loss(z, labels, y, labels), x
    yield "arcface", lambda z: FP.arcface_loss(z, weight, labels), x
    yield "distances", lambda z: FP.pairwise_distance(z, metric="euclidean").sum(), half


def value_and_gradient(call, z):
    z = z.clone().requires_grad_()
    value = call(z)
    return value.detach(), torch.autograd.grad(value, z)[0]


def run(call, z, number: int) -> int:
    """What becomes of the call whose allocation of this number fails; 0 where it has no such number."""
    SHIM.fail_allocation(ctypes.c_long(number))
    try:
        got = value_and_gradient(call, z)
    except (RuntimeError, MemoryError) as error:
        SHIM.fail_allocation(ctypes.c_long(0))
        return REFUSED if "alloc" in str(error) or isinstance(error, MemoryError) else WRONG
    if not SHIM.allocation_failed():
        return 0
    SHIM.fail_allocation(ctypes.c_long(0))
    return UNHARMED if all(map(torch.equal, got, value_and_gradient(call, z))) else WRONG


def main():
    torch.set_num_threads(2)
    # Who looks for garbage writes to all objects, which copies them for each process.
    gc.freeze()
    gc.disable()
    for name, call, z in calls():
        outcomes = collections.Counter()
        for number in range(1, 10000):
            # A new process has no memory that earlier calls gave back. This one has started no threads.
            if (child := os.fork()) == 0:
                os._exit(run(call, z, number))
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status == 0:
                break
            outcomes[{REFUSED: "refused", UNHARMED: "unharmed", WRONG: "wrong"}.get(status, f"exit {status}")] += 1
        print(json.dumps({"call": name, **outcomes}), flush=True)


if __name__ == "__main__":
    main()

"""Long calls that a signal ends, in a process of their own; prints how long they take whole and until they end."""

import json
import os
import signal
import threading
import time

import torch

import fastpair.functional as FP

DELAY = 0.05


def calls():
    torch.manual_seed(0)
    x = torch.randn(8000, 64, requires_grad=True)
    labels = torch.randint(2000, (len(x),))
    weight = torch.randn(7000, 64, requires_grad=True)
    yield "pairs", lambda: FP.supcon_loss(x, labels)
    yield "triplets", lambda: FP.triplet_margin_loss(x, labels)
    yield "classes", lambda: FP.linear_cross_entropy(x, weight, labels)
    per_anchor = FP.supcon_loss(x, labels, reduction="none").sum()
    yield "backward", lambda: per_anchor.backward(retain_graph=True)


def seconds(call) -> float:
    start = time.monotonic()
    call()
    return time.monotonic() - start


def interrupted(call) -> float:
    """How long it takes with an interrupt under way, infinity where that does not end it."""
    threading.Timer(DELAY, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    try:
        call()
        time.sleep(2 * DELAY)  # an interrupt that comes late is no better than none
    except KeyboardInterrupt:
        return time.monotonic() - start
    return float("inf")


def main():
    # What a shell starts in the background ignores interrupts, and so do its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, call in calls():
        whole, ended = seconds(call), interrupted(call)
        if ended > whole / 2:  # once more, and the faster ones: others may have kept the machine busy
            whole, ended = min(whole, seconds(call)), min(ended, interrupted(call))
        print(json.dumps({"call": name, "whole": whole, "interrupted": ended}), flush=True)
    seen = []
    signal.signal(signal.SIGINT, lambda *_: seen.append(time.monotonic()))
    threading.Timer(DELAY, os.kill, (os.getpid(), signal.SIGINT)).start()
    _, call = next(calls())
    want, got = call(), call()
    print(json.dumps({"call": "handled", "seen": len(seen), "equal": torch.equal(got, want)}), flush=True)


if __name__ == "__main__":
    main()

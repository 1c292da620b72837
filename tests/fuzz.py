"""A seeded fuzzer of the public functions: ``python tests/fuzz.py --calls 5000 --seed 1``.

Three calls in four are legal: sizes, strides, dtypes, labels, settings and values drawn over wide ranges. Truth is the
reference in float64 on the same rounded inputs. A kernel may be wrong by twice what the reference is in the dtype of
the inputs, by a few changes of the truth when the inputs move by one rounding, or by some tens of eps. The others have
one argument that is no good, and must raise an exception that names it.

Calls run in a child process, so that a crash or a hang is found and is not the end. ``--only N`` runs one call.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import multiprocessing
import re
import sys
from collections.abc import Callable, Iterator

import torch
from fuzz_calls import Call, Draw, described, draw_call, recall_and_map, spoil

import fastpair
import fastpair.functional as FP

TIME_LIMIT = 60  # seconds a call


def evaluate(call: Call, inputs: dict, backend: str, seed: int) -> dict:
    """The value and its gradients against a random incoming one."""
    leaves = {id(v): v if v is None else v.detach() for v in inputs.values()}  # one object for two arguments stays one
    leaves = {k: leaves[id(v)] for k, v in inputs.items()}
    with fastpair.use_backend(backend):
        trained = [leaves[k].requires_grad_() for k in call.trained]
        value = call.run(leaves)
        incoming = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        gradients = torch.autograd.grad(value, trained, incoming.to(value.dtype)) if trained else ()
    return {"value": value.detach(), **dict(zip(call.trained, gradients))}


def map_floating(f: Callable, inputs: dict) -> dict:
    done = {id(v): f(v) if v is not None and v.is_floating_point() else v for v in inputs.values()}
    return {k: done[id(v)] for k, v in inputs.items()}


def moved(t: torch.Tensor, variant: int, equals_stay_equal: bool) -> torch.Tensor:
    """By about one rounding; equal elements alike, or every one for itself."""
    wide = t.double().contiguous()
    if equals_stay_equal:
        size, noise = wide, torch.sin(wide.view(torch.int64).remainder(1000003 + variant) * 12.9898)
    else:
        size = torch.where(wide == 0, wide.abs().mean(), wide)
        noise = torch.rand(wide.shape, generator=torch.Generator().manual_seed(variant), dtype=torch.float64) * 2 - 1
    return (wide + size * noise * 1.5 * torch.finfo(t.dtype).eps).to(t.dtype)


def together(call: Call) -> bool:
    """Whether equal elements stay equal. Triplets and neighbours are chosen: equal distances are ties there; and the
    slope of an arc is endless where a row is its class vector."""
    return call.function not in (FP.triplet_margin_loss, FP.arcface_loss, recall_and_map)


def tied(call: Call) -> bool:
    """Whether items are equally far from a query but for rounding, which then says what is retrieved first."""
    query, gallery = call.inputs["query"].double(), call.inputs.get("gallery")
    metric = call.settings.get("metric", "cosine")
    scores = FP.pairwise_distance(query, None if gallery is None else gallery.double(), metric, backend="reference")
    gaps = scores.sort(1).values.diff(dim=1)
    return bool((gaps <= 16 * torch.finfo(call.first.dtype).eps * scores.abs().amax()).any()) if gaps.numel() else False


def neighbours(call: Call, seed: int) -> Iterator[tuple[dict, dict]]:
    """The truth, and the reference, at inputs moved by a rounding."""
    for variant in range(4):
        inputs = map_floating(lambda t, v=variant: moved(t, v, together(call)), call.inputs)
        yield truth_of(call, inputs, seed), evaluate(call, inputs, "reference", seed)


def truth_of(call: Call, inputs: dict, seed: int) -> dict:
    return evaluate(call, map_floating(torch.Tensor.double, inputs), "reference", seed)


def difference(a: torch.Tensor, b: torch.Tensor, where: torch.Tensor) -> float:
    return (a.double() - b.double())[where].norm().item()


def check(call: Call, seed: int) -> list[str]:
    truth, plain = truth_of(call, call.inputs, seed), evaluate(call, call.inputs, "reference", seed)
    got = evaluate(call, call.inputs, "cpu", seed)
    clean = all(v is None or v.isfinite().all() for v in call.inputs.values())
    # Infinity may make NaN of one formula and none of another.
    from_nan = any(v is not None and v.isnan().any() for v in call.inputs.values())
    from_nan &= not any(v is not None and v.isinf().any() for v in call.inputs.values())
    logits, slopes = call.magnitudes()
    # Gradients that are only rounding, those that float64 itself has too few digits for, and zeros beside a NaN.
    vague = (call.of_directions and call.first.shape[1] == 1) or logits > 1e11 or not clean
    in_float64 = call.first.dtype == torch.float64  # where the truth is no better than what is held against it
    slack = 1 if together(call) else 4
    others, problems = [], []
    if call.function is recall_and_map and tied(call):
        return problems
    for name, want in truth.items():
        have, usual = got[name], plain[name]
        if have.shape != want.shape or have.dtype != usual.dtype:
            problems.append(f"{name}: {described(have)} for {described(usual)}")
            continue
        # At the end of the range rounding decides what is infinite.
        sound = (want.abs() < 0.99 * torch.finfo(usual.dtype).max) & usual.isfinite()
        if vague and (name != "value" or call.function in (FP.arcface_loss, FP.triplet_margin_loss)):
            continue
        if not have[sound].isfinite().all():
            problems.append(f"{name}: not finite where the reference is")
            continue
        if name == "value" and from_nan and have[want.isnan() & usual.isnan()].isfinite().any():
            problems.append(f"{name}: finite where the truth is NaN")
            continue
        if not clean and call.settings.get("reduction") == "totals":
            continue  # what is counted beside a sum that is NaN
        info, size = torch.finfo(have.dtype), want[sound].norm().item()
        # A result that cancels to nothing has the rounding of its terms.
        terms = logits / 8 if name == "value" else slopes if size < 1e-6 * slopes else 1e-3 * slopes
        rounding = info.eps * (32 + in_float64 * (1e4 + 16 * logits)) * max(size, terms) + 10 * info.tiny
        error, allowed = difference(have, want, sound), 2 * slack * difference(usual, want, sound) + rounding
        if error <= allowed:
            continue
        # Was the reference lucky, or do the inputs decide no more than this?
        others = others or list(neighbours(call, seed))
        for near_truth, near_plain in others:
            both = sound & near_truth[name].isfinite() & near_plain[name].isfinite()
            noise = 4 * slack * difference(near_plain[name], near_truth[name], both) + rounding
            change = (256 if in_float64 else 4 * slack) * difference(near_truth[name], want, both)
            allowed = max(allowed, noise + change)
            allowed = allowed if both.equal(sound) else math.inf
        if error > allowed:
            problems.append(f"{name}: error {error:.3g}, allowed {allowed:.3g}, norm {size:.3g}")
    return problems


def refuse(call: Call, name: str, value) -> list[str]:
    call = dataclasses.replace(call, settings=call.settings | {name: value}, module=False)
    about = f"{name}={described(value)} ({type(value).__name__})"
    try:
        call.run({k: v for k, v in call.inputs.items() if k != name})
    except (TypeError, ValueError, RuntimeError) as error:
        message = str(error)
        if re.search(r"csrc|\.(cpp|h|cu)\b", message):
            return [f"{about}: the message names a source file: {message[:200]}"]
        if not re.search(rf"\b{name}\b", message):
            return [f"{about}: the message does not name it: {type(error).__name__}: {message[:200]}"]
        return []
    except BaseException as error:  # whatever it is, it is what is looked for
        return [f"{about}: {type(error).__name__}: {str(error)[:200]}"]
    return [f"{about}: no exception"]


def run_call(seed: int, number: int) -> tuple[str, list[str]]:
    """What kind of call it was, and its findings."""
    draw = Draw(seed, number)
    call = draw_call(draw)
    torch.set_num_threads(draw.choice((1, 1, 2, 3)) if draw.n > 70 else 1)
    bad = spoil(draw, call) if draw.maybe(0.25) else None
    try:
        problems = refuse(call, *bad) if bad else check(call, number)
    except Exception as error:
        problems = [f"{type(error).__name__}: {str(error)[:300]}"]
    return ("illegal" if bad else "legal"), [f"{call}: {problem}" for problem in problems]


def child(pipe, seed: int, numbers: range) -> None:
    for number in numbers:
        pipe.send(run_call(seed, number))


def fuzz(seed: int, numbers: range, report: Callable = print) -> dict[str, int]:
    """Runs the calls and reports findings; returns how many calls of each kind ran, and how many had findings."""
    context = multiprocessing.get_context("spawn")
    counts = {"legal": 0, "illegal": 0, "findings": 0}
    process = None
    for number in numbers:
        if process is None:
            pipe, far_end = context.Pipe()
            process = context.Process(target=child, args=(far_end, seed, numbers[numbers.index(number) :]))
            process.start()
            far_end.close()
        try:
            if not pipe.poll(TIME_LIMIT):
                raise TimeoutError
            kind, findings = pipe.recv()
        except (EOFError, ConnectionError, TimeoutError) as error:
            ended = not isinstance(error, TimeoutError)
            if not ended:
                process.kill()
            process.join()
            problem = f"the process ended with {process.exitcode}" if ended else f"no answer in {TIME_LIMIT} s"
            kind, findings = "legal", [f"{draw_call(Draw(seed, number))}: {problem}"]
            process = None
        counts[kind] += 1
        counts["findings"] += bool(findings)
        for finding in findings:
            report(f"seed {seed} call {number}: {finding}")
    if process is not None:
        process.join()
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="run this call alone, in this process")
    arguments = parser.parse_args()
    if arguments.only is not None:
        kind, findings = run_call(arguments.seed, arguments.only)
        print(kind, *(findings or ["no finding"]), sep="\n")
        return int(bool(findings))
    counts = fuzz(arguments.seed, range(arguments.first, arguments.first + arguments.calls))
    print(f"seed {arguments.seed}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    return int(counts["findings"] > 0)


if __name__ == "__main__":
    sys.exit(main())

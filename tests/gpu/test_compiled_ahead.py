"""Compiles the kernels for GPUs that need not be here. All pass the compiler's front end, which finds errors of types.
Of every kind of kernel, and of those that need the most registers, the rest is made as well and read: no register
spills, no more registers and shared memory than a multiprocessor has, and matrix instructions where kernels make
products. And how many are compiled.
"""

import os
import re
import tempfile
from functools import cache
from itertools import compress, cycle
from unittest import mock

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from covering import in_turn  # noqa: E402
from custom_losses import CUSTOM, LEARNING  # noqa: E402
from dry_run import dry_run, front_end, not_even_compiled  # noqa: E402
from host_reads import no_host_reads  # noqa: E402
from machine_code import cuobjdump, instructions, loops  # noqa: E402

from fastpair.backends import triton as backend  # noqa: E402
from fastpair.backends.call import CrossEntropyCall, PairLossCall  # noqa: E402
from fastpair.backends.triton import pairs  # noqa: E402
from fastpair.backends.triton.launch import (  # noqa: E402
    CANDIDATES,
    COMPILED,
    MAKING_SLOPES,
    MAKING_STATISTICS,
)
from fastpair.backends.triton.linear_cross_entropy import KINDS  # noqa: E402
from fastpair.backends.triton.terms import LOG_SUM_EXP, loss_of  # noqa: E402
from fastpair.formulas.pair_losses import ADDED, FORMULAS, TRIPLETS  # noqa: E402
from fastpair.metrics import METRICS  # noqa: E402

LOSSES = {name: loss_of(formula) for name, formula in FORMULAS.items()}

# Bytes of shared memory that one block may have.
CHIPS = {80: 166_912, 90: 232_448, 100: 232_448}
REGISTERS = 65536  # of a multiprocessor

# Dimensions where the kernels make the products of half precision, and where they read them.
MADE, READ = 64, 40


def pair_loss(name, d=MADE, distance="cosine", dtype=torch.bfloat16, n=48, references=False, scalars=()):
    rows = (torch.zeros(n, d, dtype=dtype), torch.zeros(n, dtype=torch.int64))
    x, labels = rows
    y, ref_labels = rows if references else (None, None)
    formula = FORMULAS.get(name) or ADDED.get(name)
    params = [0.5] * (len(formula.parameters) if formula else 1)
    learned = torch.tensor(params) if formula and formula.learned else None
    settings = (name, params, distance, False, "mean", True, references, learned is not None)
    backend.pair_loss(PairLossCall(x, y, learned, labels, ref_labels, None, None, *settings, **dict(scalars)))


@cache
def dumped(what, kernel):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return cuobjdump(what, file.name)


def listing(kernel):
    """The machine code of a kernel."""
    return dumped("-sass", kernel)


def distinct(launches):
    """One of each kernel that was compiled."""
    return list({launch.kernel.hash: launch for launch in launches}.values())


def check(launches, chip):
    """What ``launches`` for a chip need is there."""
    assert launches
    for name, kernel in distinct(launches):
        report = dumped("--dump-resource-usage", kernel)
        usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}
        stores = len(re.findall(r"\bSTL\b", listing(kernel))) if usage["STACK"] else 0
        # The assembler may set a few values or addresses aside around a loop: no want of registers in it.
        assert stores <= {"close_kernel": 9}.get(name, 7), (name, usage, stores)
        assert usage["REG"] * kernel.metadata.num_warps * 32 <= REGISTERS, (name, usage)
        assert kernel.metadata.shared <= CHIPS[chip]


@pytest.mark.parametrize(
    ("name", "chip", "distance", "d"),
    in_turn([*LOSSES, *TRIPLETS], CHIPS, ("cosine", "euclidean"), (READ, READ, MADE, MADE)),
)
def test_every_loss(name, chip, distance, d):
    """And a step can be captured in a CUDA graph: the host reads no number."""
    with front_end(chip) as kernels, no_host_reads():
        pair_loss(name, d, distance, references=name in TRIPLETS)
    assert kernels


# Sums, with means of their own; terms that read the log-sum-exp of the negatives; those of the most operations; a
# log-sum-exp with a sum, which takes the most registers; maxima; triplets.
OF_EACH_KIND = ["contrastive", "sincere", "circle", "supcon", "hard_triplet", "smooth_semihard_triplet"]


@pytest.mark.parametrize(("name", "chip", "distance"), in_turn(OF_EACH_KIND, CHIPS, ("cosine", "euclidean")))
def test_losses_of_each_kind(name, chip, distance):
    with dry_run(chip) as launches:
        pair_loss(name, READ, distance, references=name in TRIPLETS)
    check(launches, chip)


# The kernels that sweep over the scores. For the others it does not matter who makes the products, nor in which tiles.
SWEEPS = ("statistics_kernel", "slopes_kernel")


def of_the_longest_loop(code):
    found = instructions(code)
    first, last = max(loops(found).items(), key=lambda loop: loop[1] - loop[0])
    return sum(first <= at <= last for at, _ in found)


def scores_a_thread(tile):
    return tile.rows * tile.cols / (tile.warps * 32)


@pytest.mark.parametrize(("name", "chip"), [("everything", 90), ("parts", 100)])
def test_losses_that_users_write(name, chip):
    formula = CUSTOM[name].make().formula
    with front_end(chip) as kernels:
        pair_loss(formula.name, READ, "euclidean")
    assert kernels
    with dry_run(chip) as launches:
        pair_loss(formula.name)
    check(launches, chip)


def learning_loss(name):
    formula = LEARNING[name].make().formula
    read = {f"{of}_scalars": torch.zeros(len(formula.scalars(of)), 48) for of in ("anchor", "ref")}
    scalars = {x: t for x, t in read.items() if len(t)}
    pair_loss(formula.name, READ, "euclidean", references=name == "scaled", scalars=scalars)


@pytest.mark.parametrize("name", LEARNING)
def test_parameters_that_learn_and_numbers_of_rows(name, chip=90):
    with front_end(chip) as kernels:
        learning_loss(name)
    assert kernels


def test_what_parameters_that_learn_need(chip=90):
    with dry_run(chip) as launches:
        learning_loss("own_means")  # of these the most registers
    check(launches, chip)


# Instructions for a score, by Triton's release: of the loop of the statistics, and of the slopes with what is done once
# for a tile.
MOST_BY_RELEASE = {
    "3.6": {
        "supcon": (41, 43),
        "lifted_structure": (39, 45),
        "circle": (55, 59),
    },
    "3.8": {
        "supcon": (39, 42),
        "lifted_structure": (37, 42),
        "circle": (48, 55),
    },
    "3.9": {
        "supcon": (46, 42),
        "lifted_structure": (42, 41),
        "circle": (54, 55),
    },
}
MOST = MOST_BY_RELEASE.get(triton.__version__[:3], MOST_BY_RELEASE["3.9"])


@pytest.mark.parametrize("name", [*MOST, "ntxent"])
def test_kernels_that_make_products(name):
    """Those of an H200."""
    with dry_run(90, only=SWEEPS) as launches:
        pair_loss(name)
    check(launches, 90)
    making = distinct(launches)
    assert all("wgmma.mma_async" in launch.kernel.asm["ptx"] for launch in making)
    if LOSSES[name].simple:
        # A loss that has no limit yet has the widest.
        code, most = dict(making), MOST.get(name, tuple(map(max, zip(*MOST.values()))))
        assert of_the_longest_loop(listing(code["statistics_kernel"])) <= most[0] * scores_a_thread(MAKING_STATISTICS)
        assert len(instructions(listing(code["slopes_kernel"]))) <= most[1] * scores_a_thread(MAKING_SLOPES)


def test_kernels_that_make_products_elsewhere(chip=80):
    with dry_run(chip, only=SWEEPS) as launches:
        pair_loss("supcon")
    check(launches, chip)


def test_other_dtypes(chip=90):
    with front_end(chip) as kernels:
        pair_loss("supcon", dtype=torch.float32)
        pair_loss("supcon", READ, dtype=torch.float16)
    assert kernels
    with dry_run(chip) as launches:
        pair_loss("supcon", MADE, dtype=torch.float16)
    check(launches, chip)


MOST_SCORES = max(map(scores_a_thread, CANDIDATES))


@pytest.mark.parametrize(
    ("tile", "dtype"),
    in_turn([tile for tile in CANDIDATES if scores_a_thread(tile) == MOST_SCORES], (torch.float32, torch.bfloat16)),
    ids=str,
)
def test_candidates_of_the_tuning(tile, dtype):
    """Those with the most scores a thread, which take all registers: the others leave a third of them or more."""
    only = () if dtype == torch.float32 else SWEEPS
    with dry_run(90, only) as launches, mock.patch.object(pairs, "tile_for", lambda x: tile):
        pair_loss("supcon", READ, dtype=dtype)
    check(launches, 90)


@triton.jit
def shifted_terms_kernel(
    s, out, shift, parameters, TERMS: tl.constexpr, POSITIVES: tl.constexpr, NEGATIVES: tl.constexpr
):
    """What is exponentiated: terms less their shifts."""
    u, _du, v, _dv, _by_negatives_lse = TERMS(tl.load(s), 0.0, None, 0, None, 0, *parameters)
    if POSITIVES:
        tl.store(out, u - tl.load(shift))
    if NEGATIVES:
        tl.store(out + 1, v - tl.load(shift + 1))


def exponentiated(loss):
    return [pool == LOG_SUM_EXP.value for pool in (loss.pools.positives, loss.pools.negatives)]


def test_no_product_is_fused_with_its_shift(chip=90):
    # One of each with the same terms.
    losses = {}
    for loss in LOSSES.values():
        terms = tuple(compress((loss.formula.positive, loss.formula.negative), exponentiated(loss)))
        if terms:
            losses.setdefault(terms, loss)
    assert len(losses) >= 6
    numbers = torch.zeros(4)
    # Without the option it shows.
    some = [loss for loss in losses.values() if loss.formula.name == "circle"]
    for options, chosen, fused in ((COMPILED, losses.values(), 0), ({}, some, len(some))):
        with dry_run(chip) as launches:
            for loss in chosen:
                parameters = (0.5,) * len(loss.formula.parameters)
                shifted_terms_kernel[(1,)](
                    *[numbers] * 3, parameters, loss.terms, *exponentiated(loss), num_warps=1, **options
                )
        assert sum("FFMA" in listing(launch.kernel) for launch in launches) == fused


def distances(metric):
    x = torch.zeros(48, 40, dtype=torch.bfloat16)
    backend.pairwise_distance(x, None, metric)
    backend.pairwise_distance_backward(torch.zeros(48, 48), x, x.clone(), metric, True, True)


def ranks(metric):
    backend.best_rank(torch.zeros(48, 40), torch.zeros(48, dtype=torch.int64), None, None, metric)


@pytest.mark.parametrize("run", [distances, ranks])
def test_every_metric(run, chip=90):
    with front_end(chip) as kernels:
        for metric in METRICS:
            run(metric)
    assert kernels


@pytest.mark.parametrize(
    ("run", "metric", "chip"),
    [(distances, "euclidean", 80), (ranks, "unit_euclidean", 90), (distances, "cosine", 100)],
)
def test_metrics_of_each_kind(run, metric, chip):
    with dry_run(chip) as launches:
        run(metric)
    check(launches, chip)


@pytest.mark.parametrize(("logits", "chip"), in_turn(KINDS, CHIPS))
def test_linear_cross_entropy(logits, chip):
    with dry_run(chip) as launches:
        x, weight = torch.zeros(48, 40, dtype=torch.float16), torch.zeros(3000, 40, dtype=torch.float16)
        bias = torch.zeros(3000) if logits == "linear" else None
        labels = torch.zeros(48, dtype=torch.int64)
        settings = (logits, 10.0, 0.5, 0.1, -100, "mean", True, True, bias is not None)
        backend.linear_cross_entropy(CrossEntropyCall(x, weight, bias, labels, None, *settings))
    check(launches, chip)


# Rows, statistics, anchors, totals, slopes and gradients. More are: of sums a second sweep where their mean waits for
# the number of terms; of what is given to positives the statistics of either kind, and their merging; of distances the
# close pairs, by rows and by columns.
COMPILED_ONCE = {
    ("supcon", "cosine"): 6,
    ("multi_similarity", "cosine"): 6,
    ("circle", "cosine"): 6,
    ("contrastive", "cosine"): 5,
    ("sigmoid", "cosine"): 4,
    ("ntxent", "cosine"): 8,
    ("ntxent", "euclidean"): 10,
    ("supcon", "euclidean"): 8,
    ("hard_triplet", "euclidean"): 5,
}


@pytest.mark.parametrize(
    ("name", "distance", "dtype"),
    [(*of, dtype) for of, dtype in zip(COMPILED_ONCE, cycle([torch.float32, torch.bfloat16]))],
)
def test_what_is_compiled_does_not_depend_on_n(name, distance, dtype):
    with not_even_compiled(90) as kernels:
        for n in (1, 2, 16, 17, 100, 512, 2049, 4500):
            pair_loss(name, 16, distance, dtype, n)
            pair_loss(name, 16, distance, dtype, n + 1)
    assert len(kernels) == COMPILED_ONCE[name, distance], kernels

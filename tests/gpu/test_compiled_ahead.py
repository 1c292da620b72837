"""Compiles every kernel for GPUs that need not be here, and reads what the compilers made of it: no register spills, no
more registers and shared memory than a multiprocessor has, and matrix instructions where kernels make products. And how
many are compiled.
"""

import os
import re
from itertools import cycle
from unittest import mock

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from covering import in_turn  # noqa: E402
from custom_losses import CUSTOM, LEARNING  # noqa: E402
from dry_run import dry_run, not_even_compiled  # noqa: E402
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
chips = pytest.mark.parametrize("chip", CHIPS, ids=lambda v: f"sm_{v}")
# What is compiled takes seconds: the chips share what does not depend on them.
METRICS_OF = {chip: list(METRICS)[at::3] for at, chip in enumerate(CHIPS)}

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


@pytest.fixture
def listing(tmp_path):
    """The machine code of a kernel."""

    def listed(kernel):
        binary = tmp_path / "kernel.cubin"
        binary.write_bytes(kernel.asm["cubin"])
        return cuobjdump("-sass", binary)

    return listed


def distinct(launches):
    """One of each kernel that was compiled."""
    return list({launch.kernel.hash: launch for launch in launches}.values())


@pytest.fixture
def check(tmp_path, listing):
    """What ``launches`` for a chip need is there."""

    def checked(launches, chip):
        assert launches
        for name, kernel in distinct(launches):
            binary = tmp_path / "kernel.cubin"
            binary.write_bytes(kernel.asm["cubin"])
            report = cuobjdump("--dump-resource-usage", binary)
            usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}
            stores = len(re.findall(r"\bSTL\b", listing(kernel))) if usage["STACK"] else 0
            # The assembler may set a few values or addresses aside around a loop: no want of registers in it.
            assert stores <= {"close_kernel": 9}.get(name, 7), (name, usage, stores)
            assert usage["REG"] * kernel.metadata.num_warps * 32 <= REGISTERS, (name, usage)
            assert kernel.metadata.shared <= CHIPS[chip]

    return checked


@pytest.mark.parametrize(("name", "chip", "distance"), in_turn([*LOSSES, *TRIPLETS], CHIPS, ("cosine", "euclidean")))
def test_every_loss(name, chip, distance, check):
    """And a step can be captured in a CUDA graph: the host reads no number."""
    with dry_run(chip) as launches, no_host_reads():
        pair_loss(name, READ, distance, references=name in TRIPLETS)
    check(launches, chip)


def of_the_longest_loop(code):
    found = instructions(code)
    first, last = max(loops(found).items(), key=lambda loop: loop[1] - loop[0])
    return sum(first <= at <= last for at, _ in found)


def scores_a_thread(tile):
    return tile.rows * tile.cols / (tile.warps * 32)


@pytest.mark.parametrize(
    ("name", "chip", "d", "distance"),
    [
        ("everything", 90, MADE, "cosine"),
        ("everything", 80, READ, "euclidean"),
        ("parts", 100, MADE, "cosine"),
        ("parts", 90, READ, "cosine"),
    ],
)
def test_losses_that_users_write(name, chip, d, distance, check):
    formula = CUSTOM[name].make().formula
    with dry_run(chip) as launches:
        pair_loss(formula.name, d, distance)
    check(launches, chip)


@pytest.mark.parametrize("name", ["scaled", "own_means", "negatives"])
def test_parameters_that_learn_and_numbers_of_rows(name, check, chip=90):
    formula = LEARNING[name].make().formula
    read = {f"{of}_scalars": torch.zeros(len(formula.scalars(of)), 48) for of in ("anchor", "ref")}
    with dry_run(chip) as launches:
        scalars = {x: t for x, t in read.items() if len(t)}
        pair_loss(formula.name, READ, "euclidean", references=name == "scaled", scalars=scalars)
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


@pytest.mark.parametrize("name", [*MOST, "contrastive", "ntxent"])
def test_kernels_that_make_products(name, check, listing):
    """Those of an H200."""
    with dry_run(90) as launches:
        pair_loss(name)
    check(launches, 90)
    making = [launch for launch in distinct(launches) if launch.name in ("statistics_kernel", "slopes_kernel")]
    code = [(launch.name, listing(launch.kernel)) for launch in making]
    assert all("HGMMA" in text for _, text in code)
    if LOSSES[name].simple:
        # A loss that has no limit yet has the widest.
        code, most = dict(code), MOST.get(name, tuple(map(max, zip(*MOST.values()))))
        assert of_the_longest_loop(code["statistics_kernel"]) <= most[0] * scores_a_thread(MAKING_STATISTICS)
        assert len(instructions(code["slopes_kernel"])) <= most[1] * scores_a_thread(MAKING_SLOPES)


@pytest.mark.parametrize(("name", "chip"), in_turn(["supcon", "ntxent", "sigmoid"], [80, 100]))
def test_kernels_that_make_products_elsewhere(name, chip, check):
    with dry_run(chip) as launches:
        pair_loss(name)
    check(launches, chip)


def test_other_dtypes(check, chip=90):
    with dry_run(chip) as launches:
        pair_loss("supcon", dtype=torch.float32)
        pair_loss("supcon", READ, dtype=torch.float16)
        pair_loss("supcon", MADE, dtype=torch.float16)
    check(launches, chip)


@pytest.mark.parametrize("tile", CANDIDATES, ids=str)
def test_candidates_of_the_tuning(tile, check):
    with dry_run(90) as launches, mock.patch.object(pairs, "tile_for", lambda x: tile):
        pair_loss("supcon", READ, dtype=(torch.float32, torch.bfloat16)[CANDIDATES.index(tile) % 2])
    check(launches, 90)


@triton.jit
def shifted_terms_kernel(s, out, shift, parameters, TERMS: tl.constexpr, NEGATIVES: tl.constexpr):
    """What is exponentiated, of positives or of negatives: a term less its shift."""
    u, _du, v, _dv, _by_negatives_lse = TERMS(tl.load(s), 0.0, None, 0, None, 0, *parameters)
    tl.store(out, (v if NEGATIVES else u) - tl.load(shift))


def test_no_product_is_fused_with_its_shift(listing, chip=90):
    exponentiated = [
        (loss, negatives)
        for loss in LOSSES.values()
        for negatives, pool in ((False, loss.pools.positives), (True, loss.pools.negatives))
        if pool == LOG_SUM_EXP.value
    ]
    assert len(exponentiated) >= 10
    numbers = torch.zeros(4)
    # Without the option it shows.
    some = [of for of in exponentiated if of[0].formula.name == "circle"]
    for options, terms, fused in ((COMPILED, exponentiated, 0), ({}, some, len(some))):
        with dry_run(chip) as launches:
            for loss, negatives in terms:
                parameters = (0.5,) * len(loss.formula.parameters)
                shifted_terms_kernel[(1,)](
                    *[numbers] * 3, parameters, TERMS=loss.terms, NEGATIVES=negatives, num_warps=1, **options
                )
        assert sum("FFMA" in listing(launch.kernel) for launch in launches) == fused


@chips
def test_pairwise_distance(chip, check):
    with dry_run(chip) as launches:
        x = torch.zeros(48, 40, dtype=torch.bfloat16)
        for distance in METRICS_OF[chip]:
            backend.pairwise_distance(x, None, distance)
            backend.pairwise_distance_backward(torch.zeros(48, 48), x, x.clone(), distance, True, True)
    check(launches, chip)


@chips
def test_retrieval(chip, check):
    with dry_run(chip) as launches:
        x, labels = torch.zeros(48, 40), torch.zeros(48, dtype=torch.int64)
        for distance in METRICS_OF[chip]:
            backend.best_rank(x, labels, None, None, distance)
    check(launches, chip)


@pytest.mark.parametrize(("logits", "chip"), in_turn(KINDS, CHIPS))
def test_linear_cross_entropy(logits, chip, check):
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

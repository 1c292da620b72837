"""Compiles every kernel for GPUs that need not be here, and reads what the compilers made of it: no register spills, no
more registers and shared memory than a multiprocessor has, and matrix instructions where kernels make products.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from fastpair.backends.triton import close, pair_kernels, rows  # noqa: E402
from fastpair.backends.triton.launch import (  # noqa: E402
    CANDIDATES,
    COMPILED,
    DEFAULT,
    MAKING_ANYWHERE,
    MAKING_SLOPES,
    MAKING_SMALL,
    MAKING_STATISTICS,
)
from fastpair.backends.triton.linear_cross_entropy import KINDS, softmax_kernel  # noqa: E402
from fastpair.backends.triton.pairs import METRICS  # noqa: E402
from fastpair.backends.triton.pairwise_distance import distance_kernel  # noqa: E402
from fastpair.backends.triton.retrieval import best_kernel  # noqa: E402
from fastpair.backends.triton.terms import LOG_SUM_EXP, LOSSES, MAX  # noqa: E402
from fastpair.backends.triton.triplets import triplet_kernel  # noqa: E402

# Bytes of shared memory that one block may have.
CHIPS = {80: 166_912, 90: 232_448, 100: 232_448}
REGISTERS = 65536  # of a multiprocessor
chips = pytest.mark.parametrize("chip", CHIPS, ids=lambda v: f"sm_{v}")

TYPES = {
    **dict.fromkeys(("x_labels", "y_labels", "labels"), "*i64"),
    **dict.fromkeys(("self_index", "begins", "ends", "selves", "best_item", "rank"), "*i32"),
    **dict.fromkeys(("totals", "counts"), "*fp64"),
    "flags": "*i8",
    **{
        name: "*fp32"
        for group in (
            (
                "products",
                "logits",
                "scores",
                "losses",
                "best",
                "extremes",
                "value",
                "bias",
                "gradient",
                "row_grad",
                "partial",
            ),
            (
                "close",
                "own_scale",
                "other_scale",
                "norm",
                "x_norm",
                "y_norm",
                "x_scale",
                "y_scale",
                "weight_scale",
                "slope_sums",
                "row_sums",
                "col_sums",
            ),
            ("given", "x_given", "y_given", "weights", "x_weights", "y_weights", "share", "x_share", "y_share"),
        )
        for name in group
    },
    **{
        name: "i32"
        for group in (
            ("n", "m", "d", "ld", "out_ld", "top", "bottom", "left", "right", "span", "first_slot", "slots", "count"),
            ("classes", "grad_down", "grad_across"),
            ("own_stride", "other_stride", "own_flag", "other_flag", "flags_ld", "begin", "owners", "others"),
        )
        for name in group
    },
    "ignore_index": "i64",
}
# Numbers that are multiples of 16 at the sizes where speed matters.
EVEN = {"n", "m", "d", "ld", "out_ld", "top", "bottom", "left", "right", "span", "classes", "grad_down"}


def built(kernel, chip, constants, dtype="bf16", warps=4, scale="fp32", compiled=COMPILED, stages=3):
    """``dtype`` of the embeddings, the slopes and the distances."""
    types = {
        **TYPES,
        **dict.fromkeys(("x", "y", "own", "other", "grad", "out", "slopes", "residuals"), "*" + dtype),
        "scale": scale,
    }
    signature, values, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], values[(i,)] = "constexpr", constants[name]
            continue
        signature[name] = types.get(name, "fp32")
        if signature[name].startswith("*") or name in EVEN:
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, values, attributes)
    return triton.compile(
        source, target=GPUTarget("cuda", chip, 32), options={"num_warps": warps, "num_stages": stages, **compiled}
    )


def check(kernel, chip, tmp_path, spilled=0):
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    report = tool("cuobjdump", "--dump-resource-usage", binary)
    usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}
    stores = len(re.findall(r"\bSTL\b", tool("cuobjdump", "-sass", binary))) if usage["STACK"] else 0
    # The assembler may set a value or two aside to fit one more block on a multiprocessor: no want of registers.
    assert stores <= max(spilled, 3 if usage["REG"] <= 128 else 0), (usage, stores)
    assert usage["REG"] * kernel.metadata.num_warps * 32 <= REGISTERS, usage
    assert kernel.metadata.shared <= CHIPS[chip]


def tool(name, *arguments):
    """What a tool of the CUDA toolkit that Triton carries says."""
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def absent(*names):
    return dict.fromkeys(names)


def metric_constants(distance, tile):
    metric, unit = METRICS[distance]
    constants = {"METRIC": metric, "UNIT": unit, "BLOCK_M": tile.rows, "BLOCK_N": tile.cols}
    constants |= {} if unit or metric else absent("x_scale", "y_scale")
    return constants | ({} if metric else absent("x_norm", "y_norm", "flags"))


def loss_constants(name, distance, tile):
    loss = LOSSES[name]
    return metric_constants(distance, tile) | {
        "DEPTH": tile.depth,
        **(absent("products") if tile.depth else {}),
        **({} if loss.given else absent("given", "x_given", "y_given")),
        "self_index": None,
        "TERMS": loss.terms,
        "POSITIVES": loss.positives,
        "NEGATIVES": loss.negatives,
        "GIVEN": loss.given,
        "SELF": 1,
    }


def statistics(name, distance, tile, chip, **kinds):
    kinds = {"ADD_POSITIVES": True, "ADD_NEGATIVES": True} | kinds
    constants = loss_constants(name, distance, tile) | kinds
    return built(pair_kernels.statistics_kernel, chip, constants, warps=tile.warps, stages=tile.stages)


def slopes(name, distance, tile, chip, dtype, split=False):
    sums = distance in ("euclidean", "sqeuclidean")
    constants = loss_constants(name, distance, tile) | {
        **({} if sums else absent("row_sums", "col_sums")),
        **({} if split else absent("residuals")),
        "WEIGHTED": True,
        "BOTH": True,
        "UPPER": True,
        "SLOPES": True,
        "SPLIT": split,
        "ROW_SUMS": sums,
        "ADD_TOTALS": LOSSES[name].sums,
        "GROUP": 8,
    }
    return built(pair_kernels.slopes_kernel, chip, constants, dtype, tile.warps, stages=tile.stages)


# Every loss for one chip, for the others those whose kernels differ most: of sums, of log-sum-exps, with softplus, of
# maxima.
EVERYWHERE = ("contrastive", "circle", "ntxent", "hard_triplet")
losses_and_chips = pytest.mark.parametrize(
    ("name", "chip"),
    [(name, chip) for chip in CHIPS for name in LOSSES if chip == 90 or name in EVERYWHERE],
    ids=lambda v: f"sm_{v}" if isinstance(v, int) else v,
)


@losses_and_chips
def test_every_loss(name, chip, tmp_path):
    for distance in ("cosine", "euclidean"):
        if LOSSES[name].given:
            check(statistics(name, distance, DEFAULT, chip, ADD_POSITIVES=False), chip, tmp_path)
            check(statistics(name, distance, DEFAULT, chip, ADD_NEGATIVES=False), chip, tmp_path)
        else:
            check(statistics(name, distance, DEFAULT, chip), chip, tmp_path)
        if LOSSES[name].positives != MAX.value:
            check(slopes(name, distance, DEFAULT, chip, "bf16"), chip, tmp_path)


def instructions_a_score(tile, tmp_path):
    """Of the kernel that was checked last, what it does once a row or a tile included."""
    listing = tool("cuobjdump", "-sass", tmp_path / "kernel.cubin")
    listed = len(re.findall(r"^\s*/\*[0-9a-f]{4,6}\*/", listing, re.MULTILINE))
    return listed / (tile.rows * tile.cols / (tile.warps * 32))


MAKING = [name for name, loss in LOSSES.items() if loss.sums or loss.most]


@pytest.mark.parametrize("name", MAKING)
def test_kernels_that_make_products(name, tmp_path):
    """Those of an H200, and how many instructions they take. ``sigmoid``: 26 values are set aside."""
    loss = LOSSES[name]
    for large in (False, True):
        tile = MAKING_STATISTICS if large else MAKING_SMALL
        if not loss.sums and not loss.given:
            kernel = statistics(name, "cosine", tile, 90)
            check(kernel, 90, tmp_path)
            assert "HGMMA" in tool("cuobjdump", "-sass", tmp_path / "kernel.cubin")
            assert instructions_a_score(tile, tmp_path) <= (45 if large else 54)
        tile = MAKING_SLOPES if large and loss.simple else MAKING_SMALL
        kernel = slopes(name, "cosine", tile, 90, "bf16")
        check(kernel, 90, tmp_path, spilled=26 if name == "sigmoid" else 0)
        if loss.simple:
            assert instructions_a_score(tile, tmp_path) <= (50 if large else 61)


@pytest.mark.parametrize("chip", [80, 100], ids=lambda v: f"sm_{v}")
@pytest.mark.parametrize("name", ["supcon", "ntxent", "sigmoid"])
def test_kernels_that_make_products_elsewhere(name, chip, tmp_path):
    if LOSSES[name].given:
        check(statistics(name, "cosine", MAKING_ANYWHERE, chip, ADD_NEGATIVES=False), chip, tmp_path)
    elif not LOSSES[name].sums:
        check(statistics(name, "cosine", MAKING_ANYWHERE, chip), chip, tmp_path)
    check(slopes(name, "cosine", MAKING_ANYWHERE, chip, "bf16"), chip, tmp_path)


@chips
@pytest.mark.parametrize(("dtype", "split"), [("fp32", False), ("bf16", True)], ids=["float32", "float16"])
def test_other_dtypes(dtype, split, chip, tmp_path):
    check(slopes("supcon", "cosine", DEFAULT, chip, dtype, split), chip, tmp_path)


@pytest.mark.parametrize("tile", CANDIDATES, ids=str)
def test_candidates_of_the_tuning(tile, tmp_path):
    check(statistics("supcon", "cosine", tile, 90), 90, tmp_path)
    check(slopes("supcon", "cosine", tile, 90, "bf16"), 90, tmp_path)


@pytest.mark.parametrize("chip", [90], ids=lambda v: f"sm_{v}")  # O(n): one of the chips will do
@pytest.mark.parametrize("name", LOSSES)
def test_kernels_of_the_anchors(name, chip, tmp_path):
    loss = LOSSES[name]
    reductions = {"POSITIVES": loss.positives, "NEGATIVES": loss.negatives}
    constants = reductions | {"ANCHOR": loss.anchor, "SELF": 1, "ROW_GRAD": True, "BLOCK": 128, "self_index": None}
    check(built(pair_kernels.anchor_kernel, chip, constants), chip, tmp_path)


@triton.jit
def shifted_terms_kernel(best, losses, given, p0, p1, p2, TERMS: tl.constexpr, NEGATIVES: tl.constexpr):
    """What is exponentiated, of positives or of negatives: a term less its shift."""
    u, _du, v, _dv = TERMS(tl.load(best), 0.0, 1.0, p0, p1, p2)
    tl.store(losses, (v if NEGATIVES else u) - tl.load(given))


@chips
def test_no_product_is_fused_with_its_shift(chip, tmp_path):
    exponentiated = {
        (loss.terms, negatives)
        for loss in LOSSES.values()
        for negatives, reduction in ((False, loss.positives), (True, loss.negatives))
        if reduction == LOG_SUM_EXP.value
    }
    assert len(exponentiated) == 11
    for compiled, fused in ((COMPILED, 0), ({}, 9)):  # the lifted structure's are no products
        found = 0
        for terms, negatives in exponentiated:
            constants = {"TERMS": terms, "NEGATIVES": negatives}
            binary = tmp_path / "kernel.cubin"
            binary.write_bytes(built(shifted_terms_kernel, chip, constants, warps=1, compiled=compiled).asm["cubin"])
            found += "FFMA" in tool("cuobjdump", "-sass", binary)
        assert found == fused


@chips
def test_other_kernels(chip, tmp_path):
    whole = {"ROWS": rows.ROWS, "COLUMNS": rows.MOST_COLUMNS}
    for unit in (False, True):
        types = {"scale": "*fp32"}
        check(built(rows.norms_kernel, chip, whole | {"UNIT": unit}, **types), chip, tmp_path)
        check(built(rows.finish_kernel, chip, whole | {"UNIT": unit}, **types), chip, tmp_path)
    for separate in (False, True):
        constants = {"MEAN": True, "SEPARATE": separate, "TERM_TOTALS": True, "BLOCK": 1024}
        check(built(pair_kernels.reduce_kernel, chip, constants), chip, tmp_path)
    check(built(pair_kernels.given_kernel, chip, {"NEGATIVES": 1, "BLOCK": 128}), chip, tmp_path)
    for distance in METRICS:
        for count in (False, True):
            constants = metric_constants(distance, DEFAULT) | {"COUNT": count, "SELF": 1, "self_index": None}
            check(built(best_kernel, chip, constants), chip, tmp_path)
        constants = metric_constants(distance, DEFAULT) | {"SPLIT": False, "residuals": None, "GROUP": 8}
        forward = constants | absent("grad", "grad_down", "grad_across", "row_sums", "col_sums")
        for values in (forward | {"SLOPES": False, "ROW_SUMS": False}, constants | {"SLOPES": True, "ROW_SUMS": True}):
            check(built(distance_kernel, chip, values, warps=DEFAULT.warps), chip, tmp_path)
    blocks = {"OWNERS": close.OWNERS, "COLUMNS": close.MOST_COLUMNS, "FLAGS": close.FLAGS}
    # Of the rows, of the columns, and of triplets.
    for own, other, along in ((8, 128, "other_stride"), (128, 8, "own_stride"), (1, 256, "other_stride")):
        tile = {"OWN_TILE": own, "OTHER_TILE": other, along: 1}
        check(built(close.close_kernel, chip, blocks | tile), chip, tmp_path)


@chips
@pytest.mark.parametrize("logits", KINDS)
def test_softmax(logits, chip, tmp_path):
    linear = logits == "linear"
    constants = {"KIND": KINDS[logits], "BIAS": linear, "SMOOTH": True, "SLOPES": True, "SPLIT": True, "BLOCK": 2048}
    constants |= absent("x_scale", "weight_scale") if linear else absent("bias")
    check(built(softmax_kernel, chip, constants), chip, tmp_path)


@chips
@pytest.mark.parametrize("smooth", [False, True], ids=["hinge", "smooth"])
def test_triplets(smooth, chip, tmp_path):
    constants = {"SMOOTH": smooth, "SEMIHARD": True, "SLOPES": True, "SPLIT": True, "BLOCK_P": 4, "BLOCK_N": 256}
    for distance in ("cosine", "euclidean"):
        metric, unit = METRICS[distance]
        scales = {} if unit else absent("x_scale", "y_scale")
        scales |= {} if metric else absent("x_norm", "y_norm", "close", "flags", "flags_ld")
        check(built(triplet_kernel, chip, constants | {"METRIC": metric, "UNIT": unit} | scales), chip, tmp_path)

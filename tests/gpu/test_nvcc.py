"""Compiles the CUDA sources for GPUs that need not be here, and reads the report and the machine code: no register
spills where the time goes, no loads but of data, and room for two blocks on a multiprocessor."""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from machine_code import cuobjdump, instructions, loops

SOURCES = Path(__file__).parents[2] / "csrc"
FILES = {"pair_loss": 90, "pairwise_distance": 80, "softmax": 100}  # and a chip
# In place of all losses, which take the assembler three times as long: sums, with means of their own or a bias, a
# log-sum-exp with a sum, terms that read that of the negatives, those of the most operations, and maxima.
LOSSES = """
#include "pair_losses/generated.h"
#undef FASTPAIR_PAIR_LOSSES
#define FASTPAIR_PAIR_LOSSES(ENTRY, T) \\
  ENTRY("contrastive", Contrastive<T>), \\
  ENTRY("sigmoid", Sigmoid<T>), \\
  ENTRY("supcon", Supcon<T>), \\
  ENTRY("ntxent", Ntxent<T>), \\
  ENTRY("circle", Circle<T>), \\
  ENTRY("hard_triplet", HardTriplet<T>)
"""

if os.environ.get("TRITON_INTERPRET") == "1" or shutil.which("nvcc") is None:
    pytest.skip("compiled once, where nvcc is", allow_module_level=True)


def innermost_loops(listing: str) -> list[str]:
    """The instructions of each, of all functions."""
    return [loop for code in listing.split("Function : ")[1:] for loop in innermost_loops_of_one(code)]


def innermost_loops_of_one(code: str) -> list[str]:
    found = instructions(code)
    ends = loops(found)
    starts = sorted(ends)
    inner = [a for a, b in zip(starts, [*starts[1:], float("inf")]) if ends[a] < b]
    return ["\n".join(text for at, text in found if a <= at <= ends[a]) for a in inner]


def binary(folder: Path, file: str) -> Path:
    return folder / f"{file}.cubin"


def report(folder: Path, file: str) -> str:
    source = folder / f"{file}.cu"
    source.write_text((LOSSES if file == "pair_loss" else "") + f'#include "cuda/{file}.cu"\n')
    command = ["nvcc", "-std=c++20", "-O3", "--expt-relaxed-constexpr", f"-arch=sm_{FILES[file]}", "-Xptxas=-v"]
    command += ["-cubin", "-I", SOURCES, "-o", binary(folder, file), source]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cubins")


@pytest.fixture(scope="module")
def reports(folder):
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(FILES, pool.map(lambda file: report(folder, file), FILES)))


# What is exponentiated: a term less its shift. And the same written as if no compiler fused.
SHIFTED_TERMS = """
#include "pair_losses/generated.h"
using namespace fastpair;
template <typename Term>
__global__ void terms(const double* params, const float* s, const float* shift, float* out) {
  const Term term(params);
  out[0] = term.positive(s[0], s[1]) - shift[0];
  out[1] = term.negative(s[2], s[3]) - shift[1];
}
template __global__ void terms<Snca<float>>(const double*, const float*, const float*, float*);
template __global__ void terms<MultiSimilarity<float>>(const double*, const float*, const float*, float*);
template __global__ void terms<ProxyAnchor<float>>(const double*, const float*, const float*, float*);
template __global__ void terms<Circle<float>>(const double*, const float*, const float*, float*);
template __global__ void terms<LiftedStructure<float>>(const double*, const float*, const float*, float*);
__global__ void fused(float scale, const float* s, const float* shift, float* out) { *out = scale * *s - *shift; }
"""


def test_no_product_is_fused_with_its_shift(tmp_path, chip=90):
    source, compiled = tmp_path / "terms.cu", tmp_path / "terms.cubin"
    source.write_text(SHIFTED_TERMS)
    command = ["nvcc", "-std=c++20", "-O3", f"-arch=sm_{chip}", "-cubin", "-I", SOURCES, "-o", compiled, source]
    subprocess.run(list(map(str, command)), check=True)
    kernels = dict(re.findall(r"Function : (\S+)(.*?)(?=Function :|$)", cuobjdump("-sass", compiled), re.S))
    assert len(kernels) == 6
    for name, body in kernels.items():
        assert ("FFMA" in body) == ("fused" in name), f"{name}\n{body}"


@pytest.mark.parametrize("file", FILES)
def test_resources(reports, file):
    text = reports[file]
    kernels = re.findall(r"Used (\d+) registers.*?(?:(\d+) bytes smem)?(?:,|\n|$)", text)
    assert len(kernels) == {"pair_loss": 1, "pairwise_distance": 2, "softmax": 3}[file]
    assert all(int(registers) <= 128 for registers, _ in kernels)
    shared = [int(size) for size in re.findall(r"(\d+) bytes smem", text)]
    assert all(2 * size <= 163 << 10 for size in shared)
    spills = {
        function: int(stores)
        for function, stores in re.findall(r"Function properties for (\S+)\n.*?(\d+) bytes spill stores", text)
    }
    assert not [function for function in spills if "fastpair" in function and "kernel" not in function]  # all inlined
    # Counters of a tile or a row: see below for the innermost loops.
    assert all(stores <= 32 for stores in spills.values()), spills


@pytest.mark.parametrize("file", FILES)
def test_loads_are_of_data(reports, folder, file):
    """Counts generic loads, LD, which may be of any memory. Where the compiler sees that the problem is the kernel's
    argument, its fields are constants and its addresses those of global memory, which LDG loads from. Behind a call
    it does not: there were 3600 generic loads, and the fields were loaded again for every pair, since any store might
    have changed them. What may be left looks whether all have come to a barrier of the grid (STRONG)."""
    code = cuobjdump("-sass", binary(folder, file))
    assert len(re.findall(r"\bLDG\.E", code)) > 10
    generic = re.findall(r"\bLD(?:\.\S+)? .*", code)
    assert not [load for load in generic if ".STRONG." not in load]
    if file == "softmax":  # the sine of a large angle takes digits of pi from a table
        return
    inner = innermost_loops(code)
    assert len(inner) > 20
    assert not [loop for loop in inner if re.search(r"\b(LDL|STL)\b", loop)]

// The Python module fastpair._C: facts about this build and this machine. The operators of the same library are
// registered with torch when it is loaded, and are called through torch.ops.fastpair.

#include <pybind11/pybind11.h>
#include <torch/headeronly/version.h>

#include <cstdint>
#include <string>
#include <utility>

#include "cpu/interrupt.h"
#include "cpu/simd/added_loss.h"
#include "cpu/simd/level.h"
#include "cpu/squares.h"

namespace py = pybind11;

namespace {

std::string compiler() {
#if defined(__clang__)
  return "Clang " __clang_version__;
#elif defined(__GNUC__)
  return "GCC " __VERSION__;
#else
  return "an unknown compiler";
#endif
}

// TORCH_TARGET_VERSION has the major release in its highest byte and the minor release in the next one.
std::string torch_target_version() {
  constexpr uint64_t version = TORCH_TARGET_VERSION;
  return std::to_string(version >> 56) + "." + std::to_string((version >> 48) & 0xff);
}

py::dict build_info() {
  py::dict info;
  info["torch_version"] = TORCH_VERSION;
  info["torch_target_version"] = torch_target_version();
  info["compiler"] = compiler();
  info["cplusplus"] = static_cast<int64_t>(__cplusplus);
  info["simd_level"] = fastpair::simd_level();
  info["cxx_flags"] = FASTPAIR_CXX_FLAGS;
  info["has_blas"] = fastpair::has_blas();
  return info;
}

int64_t set_square_length(int64_t length) {
  if (length <= 0 || length % fastpair::MAX_BLOCK != 0) {
    throw py::value_error("length must be a positive multiple of 256, got " + std::to_string(length));
  }
  return std::exchange(fastpair::square_length, length);
}

// Operators run without the GIL. Their gradients may run in autograd's threads, where this check does nothing.
void check_signals() {
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  fastpair::set_signal_check(&check_signals);
  m.doc() = "Host-side facts about fastpair's compiled kernels.";
  m.def("add_loss", &fastpair::add_loss, "Loads the library of a pair loss that was compiled for this machine.");
  m.def("set_square_length", &set_square_length,
        "For tests: sets the length of the squares that many scores are cut into, a positive multiple of 256, and "
        "returns "
        "what it was.");
  m.def("build_info", &build_info,
        "What the extension was built with (torch_version, torch_target_version, compiler, cplusplus, cxx_flags) and "
        "what it "
        "found on this machine (simd_level: \"avx512\", \"avx2\" or \"baseline\"; has_blas: bool).");
}

// The SIMD level is chosen at run time, so that a build runs on any machine of its architecture.
#pragma once

namespace fastpair {

// The best level that both this build and this machine support, or the lower one that the environment variable
// FASTPAIR_SIMD ("avx512", "avx2", "baseline") asks for when the library is loaded.
const char* simd_level();

// Whether matrix products of tiles go straight to torch's BLAS rather than through its dispatcher.
bool has_blas();

}  // namespace fastpair

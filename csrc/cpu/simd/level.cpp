#include "cpu/simd/level.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "cpu/simd/kernels.h"

namespace fastpair {

#define FASTPAIR_DECLARE(level)            \
  namespace level {                        \
  const Kernels<float>& float_kernels();   \
  const Kernels<double>& double_kernels(); \
  }
FASTPAIR_DECLARE(baseline)
#if defined(__x86_64__)
FASTPAIR_DECLARE(avx2)
FASTPAIR_DECLARE(avx512)
#endif

namespace {

const char* const NAMES[] = {"baseline", "avx2", "avx512"};

Simd best_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return Simd::Avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Simd::Avx2;
#endif
  return Simd::Baseline;
}

Simd choose() {
  const Simd best = best_level();
  const char* wish = std::getenv("FASTPAIR_SIMD");
  if (wish == nullptr) return best;
  for (Simd level : {Simd::Baseline, Simd::Avx2, Simd::Avx512}) {
    if (std::strcmp(wish, NAMES[static_cast<int>(level)]) == 0 && level < best) return level;
  }
  return best;
}

}  // namespace

Simd simd() {
  static const Simd level = choose();
  return level;
}

const char* simd_level() { return NAMES[static_cast<int>(simd())]; }

template <>
const Kernels<float>& kernels<float>() {
#if defined(__x86_64__)
  if (simd() == Simd::Avx512) return avx512::float_kernels();
  if (simd() == Simd::Avx2) return avx2::float_kernels();
#endif
  return baseline::float_kernels();
}

template <>
const Kernels<double>& kernels<double>() {
#if defined(__x86_64__)
  if (simd() == Simd::Avx512) return avx512::double_kernels();
  if (simd() == Simd::Avx2) return avx2::double_kernels();
#endif
  return baseline::double_kernels();
}

}  // namespace fastpair

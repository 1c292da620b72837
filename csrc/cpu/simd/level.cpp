#include "cpu/simd/level.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "cpu/simd/kernels.h"

namespace fastpair {

#define FASTPAIR_DECLARE(level) \
  namespace level {             \
  template <typename T>         \
  const Kernels<T>& kernels();  \
  }
FASTPAIR_DECLARE(baseline)
#if defined(__x86_64__)
FASTPAIR_DECLARE(avx2)
FASTPAIR_DECLARE(avx512)
#endif

namespace {

enum class Simd { Baseline, Avx2, Avx512 };
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

Simd simd() {
  static const Simd level = choose();
  return level;
}

}  // namespace

const char* simd_level() { return NAMES[static_cast<int>(simd())]; }

template <typename T>
const Kernels<T>& kernels() {
#if defined(__x86_64__)
  if (simd() == Simd::Avx512) return avx512::kernels<T>();
  if (simd() == Simd::Avx2) return avx2::kernels<T>();
#endif
  return baseline::kernels<T>();
}

template const Kernels<float>& kernels();
template const Kernels<double>& kernels();

}  // namespace fastpair

#if defined(__x86_64__)
#include <cstdint>
#include <type_traits>

// After the standard headers, whose functions must be compiled as they are everywhere else.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#endif
#define FASTPAIR_SIMD_LEVEL avx512
#define FASTPAIR_FMA
#include "cpu/simd/loops.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif

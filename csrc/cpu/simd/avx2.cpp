#if defined(__x86_64__)
#include <cstdint>
#include <type_traits>

// After the standard headers, whose functions must be compiled as they are everywhere else.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define FASTPAIR_SIMD_LEVEL avx2
#define FASTPAIR_FMA
#include "cpu/simd/loops.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif

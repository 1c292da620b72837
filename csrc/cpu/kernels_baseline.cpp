#define FASTPAIR_SIMD_LEVEL baseline
#include "cpu/kernels_impl.h"

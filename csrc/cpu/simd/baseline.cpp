#define FASTPAIR_SIMD_LEVEL baseline
#include "cpu/simd/loops.h"

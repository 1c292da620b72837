// How scores are cut where there are many.
#pragma once

#include <cstdint>

#include "cpu/simd/kernels.h"

namespace fastpair {

// Scores are visited in squares of this length, a multiple of MAX_BLOCK. A test makes it smaller, so that some hundred
// samples have many.
inline int64_t square_length = 2048;

// Scores are kept between sweeps if there are no more than this: the tiles on and above the diagonal of twice as many
// samples, 4096, which are 34 MiB in float32. If there are, those of a panel of anchors may be.
inline int64_t kept_scores() { return (2 * square_length + MAX_BLOCK) * square_length; }

}  // namespace fastpair

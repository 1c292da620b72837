// The tensor cores' product by its definition: which lane holds which elements is written down in csrc/cuda/mma.h. What
// is no tf32 number comes out as NaN, for the hardware would cut it off without a word.
#pragma once

#include <cuda_runtime.h>

namespace fastpair::cuda {

inline float rounded_to_tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(x));
  if (std::isfinite(x)) bits = (bits + 0x1000) & ~0x1fffu;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

inline float checked_tf32(float x) { return rounded_to_tf32(x) == x ? x : NAN; }

inline void add_product(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
  auto& board = emulated::warp_board();
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  float shown[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  std::memcpy(board[lane], shown, sizeof(shown));
  emulated::wait(emulated::Wait::Warp);
  const auto held = [&](int by, int which) {
    float x[6];
    std::memcpy(x, board[by], sizeof(x));
    return checked_tf32(x[which]);
  };
  for (int i = 0; i < 4; ++i) {
    const int row = g + 8 * (i / 2), col = 2 * t + i % 2;
    double sum = c[i];
    for (int k = 0; k < 8; ++k) {
      const double x = held(row % 8 * 4 + k % 4, row / 8 + 2 * (k / 4)), y = held(col * 4 + k % 4, 4 + k / 4);
      sum += x * y;
    }
    c[i] = float(sum);
  }
  emulated::wait(emulated::Wait::Warp);
}

}  // namespace fastpair::cuda

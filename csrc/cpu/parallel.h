// Loops over torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace fastpair {

// How many of `total` rows or columns make a task: small works are cut finer, so that every thread has some of them.
inline int64_t task_length(int64_t total, int64_t most) {
  const int64_t share = total / (2 * int64_t(torch::stable::get_num_threads()));
  return std::clamp<int64_t>((share + 15) / 16 * 16, 32, most);
}

// f(begin, end) for contiguous ranges that make up [0, n), over torch's own thread pool. f must not throw.
template <typename F>
void parallel_ranges(int64_t n, const F& f) {
  if (n > 0) torch::stable::parallel_for(0, n, 1, f);
}

// f(i) for i in [0, n).
template <typename F>
void parallel_for(int64_t n, const F& f) {
  parallel_ranges(n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

// Rows are cheap one by one: enough of them in a task to be worth a thread.
template <typename F>
void parallel_rows(int64_t n, int64_t work_per_row, const F& f) {
  if (n <= 0) return;
  const int64_t grain = (int64_t(1) << 14) / (work_per_row + 1) + 1;
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

}  // namespace fastpair

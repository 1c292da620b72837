// Loops over torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

#if defined(__SANITIZE_THREAD__)
extern "C" void __tsan_acquire(void* address);
extern "C" void __tsan_release(void* address);
#endif

namespace fastpair {

// The thread sanitizer cannot look into torch's thread pool. It is told that writes before a parallel region are seen
// in it, and those in the region after it: through addresses that are known before anything is read from memory.
#if defined(__SANITIZE_THREAD__)
inline char region_begins, region_ends;
#define FASTPAIR_ORDER(call) call
#else
#define FASTPAIR_ORDER(call)
#endif

// How many of `total` rows or columns make a task: little work is cut finer, so that every thread gets some of it.
inline int64_t task_length(int64_t total, int64_t most) {
  const int64_t share = total / (2 * int64_t(torch::stable::get_num_threads()));
  return std::clamp<int64_t>((share + 15) / 16 * 16, 32, most);
}

// f(begin, end) for contiguous ranges, of at least `grain`, that make up [0, n), on torch's own thread pool. What f
// throws in a thread, for instance when memory runs out, is thrown again here when all threads are done.
template <typename F>
void parallel_ranges(int64_t n, const F& f, int64_t grain = 1) {
  if (n <= 0) return;
  std::exception_ptr error;
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  const auto task = [&](int64_t begin, int64_t end) {
    FASTPAIR_ORDER(__tsan_acquire(&region_begins));
    try {
      f(begin, end);
    } catch (...) {
      if (!failed.test_and_set()) error = std::current_exception();
    }
    FASTPAIR_ORDER(__tsan_release(&region_ends));
  };
  FASTPAIR_ORDER(__tsan_release(&region_begins));
  torch::stable::parallel_for(0, n, grain, task);
  FASTPAIR_ORDER(__tsan_acquire(&region_ends));
  if (error) std::rethrow_exception(error);
}

// f(i) for i in [0, n).
template <typename F>
void parallel_for(int64_t n, const F& f, int64_t grain = 1) {
  parallel_ranges(
      n,
      [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) f(i);
      },
      grain);
}

// f(i) for rows that are cheap one by one: a task has enough of them to be worth a thread.
template <typename F>
void parallel_rows(int64_t n, int64_t work_per_row, const F& f) {
  parallel_for(n, f, (int64_t(1) << 14) / (work_per_row + 1) + 1);
}

}  // namespace fastpair

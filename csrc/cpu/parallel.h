// Loops over torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <chrono>
#include <cstdint>
#include <exception>
#include <optional>
#include <thread>
#include <utility>

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

// f(begin, end) for contiguous ranges, of at least `grain`, that make up [0, n), in a parallel region of torch's own
// thread pool. What f throws in a thread, for instance when memory runs out, is thrown again here when all threads are
// done.
template <typename F>
void parallel_region(int64_t n, const F& f, int64_t grain) {
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

// Threads that share the loops of one call in one parallel region: a small batch has a dozen loops of microseconds, and
// a region for each would take as long. One thread leads: it runs the call, and takes ranges of its loops like the
// others, which spin between loops. Which ranges there are is fixed, who takes them is not; no loop waits for a thread
// that has not come yet.
class Team {
 public:
  explicit Team(int64_t threads) : threads_(threads), next_(threads) { std::fegetenv(&arithmetic_); }
  int64_t threads() const { return threads_; }

  // The team whose loops are those of the calling thread, null outside of teams.
  static Team*& current() {
    static thread_local Team* team = nullptr;
    return team;
  }

  // f(), whose loops are shared.
  template <typename F>
  auto lead(const F& f) {
    const As member(this);
    struct End {
      std::atomic<bool>& ended;
      ~End() { ended.store(true, std::memory_order_release); }
    } const end{ended_};
    return f();
  }

  // Takes ranges of the loops until the leader is done, with its rounding and treatment of subnormal numbers: the bits
  // of a range are then the same whoever takes it.
  void follow() {
    std::fenv_t own;
    std::fegetenv(&own);
    std::fesetenv(&arithmetic_);
    for (Spin spin; !ended_.load(std::memory_order_acquire);) {
      if (next_.load(std::memory_order_relaxed) < threads_) {
        take();
        spin = {};
      } else {
        spin.wait();
      }
    }
    std::fesetenv(&own);
  }

  // f(begin, end) for ranges that make up [0, n), as parallel_ranges; for the leader.
  template <typename F>
  void share(int64_t n, const F& f, int64_t grain) {
    const int64_t parts = std::clamp<int64_t>(n / std::max<int64_t>(grain, 1), 1, threads_);
    if (parts == 1) return f(0, n);
    failed_.clear();
    done_.store(0, std::memory_order_relaxed);
    loop_ = [](const void* of, int64_t part, int64_t parts, int64_t n) {
      const int64_t begin = part * n / parts, end = (part + 1) * n / parts;
      (*static_cast<const F*>(of))(begin, end);
    };
    of_ = &f, parts_ = parts, n_ = n;
    next_.store(0, std::memory_order_release);
    take();
    for (Spin spin; done_.load(std::memory_order_acquire) < threads_;) spin.wait();
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  // Makes a team the calling thread's as long as it lives.
  class As {
   public:
    explicit As(Team* team) : before_(std::exchange(current(), team)) {}
    ~As() { current() = before_; }

   private:
    Team* const before_;
  };

  // Waits a moment, longer moments after some tenths of a millisecond, when others may have use for the core.
  class Spin {
   public:
    void wait() {
      if (times_ == MOST) return std::this_thread::sleep_for(std::chrono::microseconds(20));
      ++times_;
      if (times_ > MOST / 2) return std::this_thread::yield();
#if defined(__x86_64__) || defined(__i386__)
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      asm volatile("yield");
#endif
    }

   private:
    static constexpr int MOST = 8192;
    int times_ = 0;
  };

  // Runs the parts of the loop that nobody has taken. The limit is the same in all loops, and parts beyond `parts_` are
  // empty: a thread may not read `parts_`, which changes from loop to loop, before it has taken a part of this one.
  void take() {
    static Team alone(1);
    for (int64_t part; (part = next_.fetch_add(1, std::memory_order_acquire)) < threads_;) {
      const As in_loop(&alone);
      try {
        if (part < parts_) loop_(of_, part, parts_, n_);
      } catch (...) {
        if (!failed_.test_and_set()) error_ = std::current_exception();
      }
      done_.fetch_add(1, std::memory_order_release);
    }
  }

  const int64_t threads_;
  std::fenv_t arithmetic_;
  void (*loop_)(const void*, int64_t, int64_t, int64_t) = nullptr;
  const void* of_ = nullptr;
  int64_t parts_ = 0, n_ = 0;
  std::exception_ptr error_;
  std::atomic_flag failed_ = ATOMIC_FLAG_INIT;
  // On lines of their own: others spin on them.
  alignas(64) std::atomic<int64_t> next_;
  alignas(64) std::atomic<int64_t> done_{0};
  alignas(64) std::atomic<bool> ended_{false};
};

// So many multiply-adds are worth a thread: with fewer the second of two costs more than it saves.
constexpr int64_t WORK_OF_THREAD = 1 << 19;
// What is done with a score besides the product, an exponential for instance, in multiply-adds.
constexpr int64_t WORK_OF_SCORE = 64;

// f() with a team for its loops, as large as so many scores of d products each are worth.
template <typename F>
auto with_team(int64_t scores, int64_t d, const F& f) {
  const int64_t threads =
      std::clamp<int64_t>(scores * (d + WORK_OF_SCORE) / WORK_OF_THREAD, 1, torch::stable::get_num_threads());
  Team team(threads);
  if (threads == 1) return team.lead(f);
  std::optional<decltype(f())> result;
  parallel_region(
      threads,
      [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          if (i == 0) {
            result.emplace(team.lead(f));
          } else {
            team.follow();
          }
        }
      },
      1);
  return std::move(*result);
}

// How many threads share a loop: one inside of another loop of a team.
inline int64_t thread_count() {
  const Team* team = Team::current();
  return team ? team->threads() : int64_t(torch::stable::get_num_threads());
}

// How many of `total` rows or columns make a task: little work is cut finer, so that every thread gets some of it.
inline int64_t task_length(int64_t total, int64_t most) {
  const int64_t share = total / (2 * thread_count());
  return std::clamp<int64_t>((share + 15) / 16 * 16, 32, most);
}

// In how many parts the columns of `products` are shared out, so that every thread gets some of them.
inline int64_t column_parts(int64_t products, int64_t columns) {
  return std::clamp<int64_t>(2 * thread_count() / products, 1, columns / 64 + 1);
}

// f(begin, end) for contiguous ranges, of at least `grain`, that make up [0, n), by the team, or in a parallel region.
template <typename F>
void parallel_ranges(int64_t n, const F& f, int64_t grain = 1) {
  if (n <= 0) return;
  if (Team* team = Team::current()) return team->share(n, f, grain);
  parallel_region(n, f, grain);
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

// Lets long computations stop when the user asks for it.
#pragma once

#include <chrono>

namespace fastpair {

// The operators do not know Python. The Python module sets how to look for signals: `check` throws if one is to end the
// computation.
void set_signal_check(void (*check)());

// One per computation, asked by the calling thread between parts of it, outside of loops that threads share. It looks
// for signals only from time to time, and never in short computations, since looking may wait for other Python threads.
class Interruptions {
 public:
  void look();

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_ = Clock::now();
};

}  // namespace fastpair

// Long computations that stop where the user asks for it.
#pragma once

#include <chrono>

namespace fastpair {

// The operators do not know Python. Who does says here how to look for signals: `check` throws where one is to end the
// computation.
void set_signal_check(void (*check)());

// One for each computation, asked between parts of it, outside of parallel regions. Looks from time to time: short
// computations never do, because the look may wait for other threads of Python.
class Interruptions {
 public:
  void look();

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_ = Clock::now();
};

}  // namespace fastpair

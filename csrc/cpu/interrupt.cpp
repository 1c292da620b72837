#include "cpu/interrupt.h"

#include <atomic>

namespace fastpair {
namespace {

constexpr std::chrono::milliseconds PERIOD(50);
std::atomic<void (*)()> signal_check = nullptr;

}  // namespace

void set_signal_check(void (*check)()) { signal_check = check; }

void Interruptions::look() {
  const Clock::time_point now = Clock::now();
  if (now - last_ < PERIOD) return;
  last_ = now;
  if (void (*check)() = signal_check) check();
}

}  // namespace fastpair

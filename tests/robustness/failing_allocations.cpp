// Preloaded: makes one chosen allocation of fastpair's extension, or of torch's tensors, fail.
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <new>

#include "allocations.h"

namespace {

std::atomic<long> remaining = 0;  // allocations until the one that fails; 0: none does
std::atomic<bool> failed = false;

bool fails() {
  long left = remaining.load();
  while (left > 0 && !remaining.compare_exchange_weak(left, left - 1)) {
  }
  if (left == 1) failed = true;
  return left == 1;
}

}  // namespace

extern "C" {
void fail_allocation(long number) {
  failed = false;
  remaining = number;
}
int allocation_failed() { return failed; }

void* aligned_alloc(size_t alignment, size_t size) {
  if (remaining > 0 && is_extension(__builtin_return_address(0)) && fails()) return nullptr;
  return __libc_memalign(alignment, size);
}

// What tensors are made with.
int posix_memalign(void** out, size_t alignment, size_t size) {
  if (remaining > 0 && fails()) return ENOMEM;
  *out = __libc_memalign(alignment, size);
  return *out == nullptr ? ENOMEM : 0;
}
}

void* operator new(size_t size) {
  if (remaining > 0 && is_extension(__builtin_return_address(0)) && fails()) throw std::bad_alloc();
  void* data = std::malloc(size);
  if (data == nullptr) throw std::bad_alloc();
  return data;
}

// Preloaded: the memory of fastpair's extension and of torch's tensors holds NaN until it is written.
#include <atomic>
#include <cerrno>

#include "allocations.h"

namespace {

std::atomic<long> of_extension = 0;

void* poisoned(size_t alignment, size_t size) {
  void* data = __libc_memalign(alignment, size);
  if (data != nullptr) std::memset(data, 0xff, size);
  return data;
}

}  // namespace

extern "C" {
// How many allocations of the extension there were.
long poisoned_allocations() { return of_extension; }

void* aligned_alloc(size_t alignment, size_t size) {
  if (is_extension(__builtin_return_address(0))) ++of_extension;
  return poisoned(alignment, size);
}

// What tensors are made with.
int posix_memalign(void** out, size_t alignment, size_t size) {
  *out = poisoned(alignment, size);
  return *out == nullptr ? ENOMEM : 0;
}
}

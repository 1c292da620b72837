// Preloaded: the memory of fastpair's extension and of torch's tensors holds NaN until it is written.
#include <dlfcn.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace {

std::atomic<long> of_extension = 0;

void* poisoned(size_t alignment, size_t size);

bool is_extension(void* caller) {
  Dl_info info;
  return dladdr(caller, &info) != 0 && std::strstr(info.dli_fname, "/fastpair/_C.") != nullptr;
}

}  // namespace

extern "C" {
// How many allocations of the extension there were.
long poisoned_allocations() { return of_extension; }

void* __libc_memalign(size_t alignment, size_t size);

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

namespace {

void* poisoned(size_t alignment, size_t size) {
  void* data = __libc_memalign(alignment, size);
  if (data != nullptr) std::memset(data, 0xff, size);
  return data;
}

}  // namespace

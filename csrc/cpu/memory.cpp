#include "cpu/memory.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#elif defined(_WIN32)
#include <malloc.h>
#endif

namespace fastpair {
namespace {

constexpr size_t LINE = 64;
constexpr size_t HUGE_PAGE = size_t(1) << 21;
// At most this much is kept for later calls.
constexpr size_t KEPT = size_t(64) << 20;

size_t rounded(size_t bytes) {
  const size_t unit = bytes >= 2 * HUGE_PAGE ? HUGE_PAGE : LINE;
  return (bytes + unit - 1) / unit * unit;
}

// Windows has no std::aligned_alloc, and wants what stands for it to be freed by its own function.
void* allocate(size_t alignment, size_t bytes) {
#if defined(_WIN32)
  return _aligned_malloc(bytes, alignment);
#else
  return std::aligned_alloc(alignment, bytes);
#endif
}

void deallocate(void* data) noexcept {
#if defined(_WIN32)
  _aligned_free(data);
#else
  std::free(data);
#endif
}

struct Block {
  void* data;
  size_t bytes;
};

// An error that says how much memory could not be allocated.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(size_t bytes)
      : message_("fastpair cannot allocate memory: no " + std::to_string(bytes) + " bytes") {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

class Cache {
 public:
  // A kept block of exactly this size, or nullptr: a training loop asks for the same sizes at every step.
  void* take(size_t bytes) {
    const std::lock_guard lock(mutex_);
    const auto found = std::find_if(blocks_.rbegin(), blocks_.rend(), [&](const Block& b) { return b.bytes == bytes; });
    if (found == blocks_.rend()) return nullptr;
    void* data = found->data;
    total_ -= bytes;
    blocks_.erase(std::next(found).base());
    return data;
  }

  void give(void* data, size_t bytes) noexcept {
    // A block larger than the limit would push out all others and then itself.
    if (bytes > KEPT) return deallocate(data);
    const std::lock_guard lock(mutex_);
    try {
      blocks_.push_back({data, bytes});
    } catch (const std::bad_alloc&) {
      return deallocate(data);
    }
    total_ += bytes;
    // The oldest blocks go first: those that the current batch size needs stay.
    while (total_ > KEPT) {
      deallocate(blocks_.front().data);
      total_ -= blocks_.front().bytes;
      blocks_.erase(blocks_.begin());
    }
  }

 private:
  std::mutex mutex_;
  std::vector<Block> blocks_;
  size_t total_ = 0;
};

// Never destroyed: other threads may still hold scratch memory while the process ends.
Cache& cache() {
  static Cache* const instance = new Cache;
  return *instance;
}

}  // namespace

void* acquire_memory(size_t bytes) {
  bytes = rounded(bytes);
  if (void* kept = cache().take(bytes)) return kept;
  const bool large = bytes >= 2 * HUGE_PAGE;
  void* data = allocate(large ? HUGE_PAGE : LINE, bytes);
  if (data == nullptr) throw OutOfMemory(bytes);
  if (large) prefer_huge_pages(data, bytes);
  return data;
}

void release_memory(void* data, size_t bytes) { cache().give(data, rounded(bytes)); }

void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  const size_t begin = (reinterpret_cast<size_t>(data) + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  const size_t end = (reinterpret_cast<size_t>(data) + bytes) / HUGE_PAGE * HUGE_PAGE;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace fastpair

// Scratch memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace fastpair {

// Memory aligned to cache lines, uninitialised. Released blocks serve the next call, up to some tens of MiB in all:
// fresh memory costs a page fault every 4 KiB, which at small batches is more than the arithmetic.
void* acquire_memory(size_t bytes);
void release_memory(void* data, size_t bytes);

// Asks for huge pages, where the system has them, for memory that is about to be written for the first time.
void prefer_huge_pages(void* data, size_t bytes);

template <typename T>
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(int64_t count) : bytes_(static_cast<size_t>(count) * sizeof(T)) {
    if (bytes_ > 0) data_ = static_cast<T*>(acquire_memory(bytes_));
  }
  Scratch(Scratch&& other) noexcept { swap(other); }
  Scratch& operator=(Scratch&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Scratch() {
    if (data_ != nullptr) release_memory(data_, bytes_);
  }
  T* get() const { return data_; }

 private:
  void swap(Scratch& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  T* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace fastpair

#pragma once

#include <cuda_runtime.h>

inline void __pipeline_memcpy_async(void* to, const void* from, size_t size, size_t zeros = 0) {
  emulated::copy_later(to, from, size, zeros);
}
inline void __pipeline_commit() { emulated::commit_copies(); }
inline void __pipeline_wait_prior(size_t groups_left) { emulated::wait_for_copies(groups_left); }

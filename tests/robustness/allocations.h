// What the libraries that replace functions for memory have in common.
#pragma once

#include <dlfcn.h>

#include <cstddef>
#include <cstring>

// The memory of the functions that are replaced.
extern "C" void* __libc_memalign(size_t alignment, size_t size);

// Whether fastpair's extension called.
inline bool is_extension(void* caller) {
  Dl_info info;
  return dladdr(caller, &info) != 0 && std::strstr(info.dli_fname, "/fastpair/_C.") != nullptr;
}

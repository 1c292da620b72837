// What the libraries that replace functions for memory have in common.
#pragma once

#include <link.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

// The memory of the functions that are replaced.
extern "C" void* __libc_memalign(size_t alignment, size_t size);

struct Range {
  uintptr_t begin, end;
};

// Where fastpair's extension lies, empty before it is loaded. dladdr would go through all symbols of the caller's
// library.
inline Range find_extension() {
  Range found = {};
  const auto look = [](dl_phdr_info* library, size_t, void* out) {
    if (std::strstr(library->dlpi_name, "/fastpair/_C.") == nullptr) return 0;
    auto& range = *static_cast<Range*>(out);
    range.begin = library->dlpi_addr;
    for (int i = 0; i < library->dlpi_phnum; ++i) {
      const auto& part = library->dlpi_phdr[i];
      if (part.p_type == PT_LOAD) range.end = library->dlpi_addr + part.p_vaddr + part.p_memsz;
    }
    return 1;
  };
  dl_iterate_phdr(look, &found);
  return found;
}

// Whether fastpair's extension called.
inline bool is_extension(void* caller) {
  static Range range = {};
  if (range.end == 0) range = find_extension();
  const auto at = reinterpret_cast<uintptr_t>(caller);
  return at >= range.begin && at < range.end;
}

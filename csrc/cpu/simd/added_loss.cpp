#include "cpu/simd/added_loss.h"

#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

// After the standard headers: it has macros named min and max.
#if defined(_WIN32)
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace fastpair {
namespace {

std::vector<const AddedLoss*> losses;
std::shared_mutex guard;

// The address of a symbol in a library that is loaded and never closed: calls in other threads may be running its code.
const void* load(const char* path, const char* name) {
#if defined(_WIN32)
  const HMODULE library = LoadLibraryA(path);
  const auto symbol = library ? reinterpret_cast<const void*>(GetProcAddress(library, name)) : nullptr;
  if (symbol == nullptr) throw std::runtime_error(path + (": error " + std::to_string(GetLastError())));
#else
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  const void* symbol = library ? dlsym(library, name) : nullptr;
  if (symbol == nullptr) throw std::runtime_error(dlerror());
#endif
  return symbol;
}

}  // namespace

void add_loss(const char* path) {
  const void* symbol = load(path, "fastpair_added_loss");
  const std::unique_lock lock(guard);
  losses.push_back(static_cast<const AddedLoss*>(symbol));
}

template <typename T>
const PairKernels<T>* added_loss(const char* name, Metric metric) {
  const std::shared_lock lock(guard);
  for (const AddedLoss* loss : losses) {
    const PairKernels<T>* kernels;
    if constexpr (sizeof(T) == sizeof(float)) {
      kernels = loss->of_float;
    } else {
      kernels = loss->of_double;
    }
    if (kernels != nullptr && loss->metric == metric && kernels->name == std::string_view(name)) return kernels;
  }
  return nullptr;
}

template const PairKernels<float>* added_loss(const char*, Metric);
template const PairKernels<double>* added_loss(const char*, Metric);

}  // namespace fastpair

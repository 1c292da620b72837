#include "cpu/simd/added_loss.h"

#include <dlfcn.h>

#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <string_view>
#include <vector>

namespace fastpair {
namespace {

std::vector<const AddedLoss*> losses;
std::shared_mutex guard;

}  // namespace

void add_loss(const char* path) {
  // Never closed: calls in other threads may be running its code.
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  const void* symbol = library ? dlsym(library, "fastpair_added_loss") : nullptr;
  if (symbol == nullptr) throw std::runtime_error(dlerror());
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

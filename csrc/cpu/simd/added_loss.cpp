#include "cpu/simd/added_loss.h"

#include <dlfcn.h>

#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <vector>

namespace fastpair {
namespace {

std::vector<const AddedLoss*> losses;
std::shared_mutex guard;

}  // namespace

void add_loss(const std::string& path) {
  // Never closed: calls in other threads may be running its code.
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  const void* symbol = library ? dlsym(library, "fastpair_added_loss") : nullptr;
  if (symbol == nullptr) throw std::runtime_error(dlerror());
  const std::unique_lock lock(guard);
  losses.push_back(static_cast<const AddedLoss*>(symbol));
}

template <typename T>
const PairKernels<T>* added_loss(std::string_view name) {
  const std::shared_lock lock(guard);
  for (const AddedLoss* loss : losses) {
    if (loss->of_float->name != name) continue;
    if constexpr (sizeof(T) == sizeof(float)) return loss->of_float;
    else return loss->of_double;
  }
  return nullptr;
}

template const PairKernels<float>* added_loss(std::string_view);
template const PairKernels<double>* added_loss(std::string_view);

}  // namespace fastpair

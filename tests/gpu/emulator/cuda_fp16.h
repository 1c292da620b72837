#pragma once

#include <torch/headeronly/util/Half.h>

using __half = torch::headeronly::Half;
inline float __half2float(__half x) { return static_cast<float>(x); }
inline __half __float2half(float x) { return x; }

// Margins on the logit of a sample's own class.
#pragma once

#include "elementary.h"

namespace fastpair {

// The logit of a sample's own class as a function of its cosine c: CosFace's scale * (c - margin), or ArcFace's scale *
// cos(theta + margin) as long as that falls with the angle theta, and scale * (c - margin sin(margin)) beyond.
// Wang et al., CVPR 2018; Deng et al., CVPR 2019.
enum class Margin { None, CosFace, ArcFace };
template <typename T>
struct TargetLogit {
  Margin margin_kind = Margin::None;
  double scale = 1, margin = 0;

  // Replaces the logit scale * c, and returns the derivative of the new logit by the old one.
  FASTPAIR_INLINE T apply(T* logit) const {
    if (margin_kind == Margin::None) return 1;
    if (margin_kind == Margin::CosFace) {
      *logit -= T(scale * margin);
      return 1;
    }
    const double cos_m = __builtin_cos(margin), sin_m = __builtin_sin(margin), c = *logit / scale;
    if (c < -cos_m) {
      *logit -= T(scale * margin * sin_m);
      return 1;
    }
    // The slope of sin(theta) is infinite at 0: within a thousandth of 0 it is replaced by a straight line through 0.
    constexpr double least = 1e-6;
    const double square = 1 - c * c, root = 1 / square_root(square < least ? least : square);
    const double slope = square < 0 ? 0 : (square < least ? 2 : 1) * -c * root;
    *logit = T(scale * (c * cos_m - relu(square) * root * sin_m));
    return T(cos_m - slope * sin_m);
  }
};

}  // namespace fastpair

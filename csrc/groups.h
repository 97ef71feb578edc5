// Hyper-parameters of a group as Python gives them, in double, and what the updates take of them.
#pragma once

#include <cmath>
#include <cstdint>

#include "update.h"

namespace selective {

struct AdamGroup {
  double lr, beta1, beta2, eps, decay, l2;  // decay: decoupled weight decay; l2: weight decay in the gradient
};

struct SgdGroup {
  double lr, momentum, dampening, weight_decay, nesterov;  // nesterov: 0 or 1
};

inline AdamCoefficients coefficients_of(const AdamGroup& g) {
  return {static_cast<float>(1.0 - g.beta1), static_cast<float>(g.beta2),
          static_cast<float>(1.0 - g.beta2), static_cast<float>(g.eps),
          static_cast<float>(1.0 - g.lr * g.decay), static_cast<float>(g.l2)};
}

inline SgdCoefficients coefficients_of(const SgdGroup& g) {
  return {static_cast<float>(g.lr), static_cast<float>(g.momentum), static_cast<float>(1.0 - g.dampening),
          static_cast<float>(g.weight_decay), g.nesterov != 0.0};
}

// After so many updates of a tensor, this one included ("global" bias correction).
inline float step_size_of(const AdamGroup& g, std::int64_t steps) {
  return static_cast<float>(g.lr / (1.0 - std::pow(g.beta1, static_cast<double>(steps))));
}

inline float correction2_of(const AdamGroup& g, std::int64_t steps) {
  return static_cast<float>(std::sqrt(1.0 - std::pow(g.beta2, static_cast<double>(steps))));
}

}  // namespace selective

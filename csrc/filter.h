// The scan's prefilter: which entries may reach a threshold, without a division or a power, once for host and device.
#pragma once

#include <cmath>

#include "score.h"

namespace selective {

constexpr double kSlack = 1e-6;  // of the prefilter: above the rounding of three float32 operations

// What a visit keeps: score >= threshold (> 0), score < upper, and, when `exact` is false, found by a conservative
// prefilter without division or pow.
struct Filter {
  Kind kind;
  double exponent;
  float eps;
  float threshold;
  float upper;
  bool exact;
  float scaled;      // prefilter: |g| >= scaled * (|theta| + eps)^exponent
  float log_limit;   // prefilter for Kind::any: bits(|g|) >= log_limit + log_slope * bits(|theta| + eps)
  float log_slope;
  float largest;     // Kind::magnitude: |theta| of a score that reaches the threshold is at most this
  float least;       // |g| of a score that reaches the threshold is at least this, whatever theta is; 0: not known
};

namespace {

SELECTIVE_HD inline Filter make_filter(const Score& score, float threshold, float upper) {
  const float infinity = float_of(kLargestBits + 1);
  const float finite_most = float_of(kLargestBits);
  const double p = score.exponent;
  const double rising = p > 0.0 ? p : 0.0;
  Filter f{};
  f.kind = kind_of(score);
  f.exponent = p;
  f.eps = score.eps;
  f.threshold = threshold;
  f.upper = upper;
  f.exact = true;
  f.largest = float_of(magnitude_key(bits_of(threshold)));  // the key is its own inverse
  if (score.family != Family::d3) return f;
  if (p >= 0 && threshold == infinity) f.least = finite_most;  // nothing is wanted but to know of inf and NaN
  // Subnormal products round too coarsely for a relative slack; then each entry is scored exactly.
  const double least_power = std::pow(static_cast<double>(score.eps), rising);
  f.exact = !(threshold >= 0x1p-120f && threshold * least_power >= 0x1p-120 && threshold < infinity);
  if (f.exact) return f;
  // A parameter of zero asks least of the gradient, unless a larger one asks less. Twice the slack: two more roundings.
  const double least = threshold * (1.0 - kSlack) * least_power * (1.0 - kSlack);
  if (p >= 0) f.least = least < static_cast<double>(finite_most) ? static_cast<float>(least) : finite_most;
  f.scaled = static_cast<float>(threshold * (1.0 - kSlack));
  // A float's bits, read as an integer, are 2^23 (127 + log2 x - e) with 0 <= e < 0.0861. A negative exponent may
  // make the power subnormal, which rounds by up to a factor of two.
  const double falling = p < 0.0 ? -p : 0.0;
  const double slack = 0.0861 * (1.0 + falling) + 1e-3 * (1.0 + rising + falling) + (p < 0 ? 1.0 : 0.0);
  f.log_slope = static_cast<float>(p);
  f.log_limit = static_cast<float>(0x1p23 * (std::log2(static_cast<double>(threshold)) + 127.0 - 127.0 * p - slack));
  return f;
}

}  // namespace
}  // namespace selective

// Scores on the device: single entries of any type of tensor, and the filters of a scan.
#pragma once

#include <cmath>

#include "../convert.h"
#include "../filter.h"
#include "../row.h"

namespace selective::cuda {
namespace {

SELECTIVE_HD constexpr bool is_selectable(std::uint32_t score_bits) { return score_bits - 1 < kLargestBits; }  // C3

// Bits of the score of an entry, in the order of the scores as unsigned numbers; `theta` is the parameter.
template <Kind K>
__device__ inline std::uint32_t score_bits(float grad, float theta, std::uint32_t offset, std::uint64_t salt,
                                           float eps, double exponent) {
  const float grad_abs = std::fabs(grad);
  const float theta_abs = std::fabs(theta);
  if constexpr (K == Kind::random) {
    return random_key(salt, offset);
  } else if constexpr (K == Kind::given) {
    return bits_of(grad);  // a negative one is above every finite one
  } else if constexpr (K == Kind::magnitude) {
    return magnitude_key(bits_of(theta_abs));
  } else if constexpr (K == Kind::product) {
    return bits_of(grad_abs * theta_abs);
  } else if constexpr (K == Kind::any) {
    return bits_of(d3_any(grad_abs, theta_abs, eps, exponent));
  } else {
    return bits_of(d3<K>(grad_abs, theta_abs, eps));
  }
}

// Whether an entry may reach the filter's threshold: no division, no power. For filters that are not exact only.
template <Kind K>
__device__ inline bool may_reach(float grad_abs, float theta_abs, const Filter& f) {
  if constexpr (K == Kind::any) {
    const auto as_number = [](float x) { return static_cast<float>(static_cast<std::int32_t>(bits_of(x))); };
    return as_number(grad_abs) >= f.log_limit + f.log_slope * as_number(theta_abs + f.eps);
  } else {
    return grad_abs >= f.scaled * power<K>(theta_abs, f.eps);
  }
}

// Kinds as types, for code that has an instance for each.
template <Kind K>
struct Of {
  static constexpr Kind kind = K;
};
template <Kind... Ks>
struct Kinds {};
using AllKinds = Kinds<Kind::zero, Kind::half, Kind::one, Kind::two, Kind::any, Kind::product, Kind::magnitude,
                       Kind::random, Kind::given>;

// On the host: f(Of<kind>()).
template <class F, Kind... Ks>
void with_kind(Kind kind, F&& f, Kinds<Ks...>) {
  ((kind == Ks ? f(Of<Ks>()) : void()), ...);
}

template <Kind... Ks>
__device__ inline std::uint32_t score_bits_among(Kinds<Ks...>, Kind kind, float grad, float theta, std::uint32_t offset,
                                                 std::uint64_t salt, const Score& score) {
  std::uint32_t bits = 0;
  ((kind == Ks ? void(bits = score_bits<Ks>(grad, theta, offset, salt, score.eps, score.exponent)) : void()), ...);
  return bits;
}

__device__ inline float load_float(std::uint64_t address, std::int64_t dtype, std::int64_t i) {
  switch (static_cast<DType>(dtype)) {
    case DType::bfloat16:
      return widen(reinterpret_cast<const BFloat16*>(address)[i]);
    case DType::float16:
      return widen(reinterpret_cast<const Float16*>(address)[i]);
    default:
      return reinterpret_cast<const float*>(address)[i];
  }
}

__device__ inline std::uint32_t load_bits(std::uint64_t address, std::int64_t dtype, std::int64_t i) {
  if (static_cast<DType>(dtype) == DType::float32) return reinterpret_cast<const std::uint32_t*>(address)[i];
  return reinterpret_cast<const std::uint16_t*>(address)[i];
}

__device__ inline std::uint64_t salt_of(const Score& score, const Row& row) {
  return score.family == Family::random ? tensor_salt(score.seed, static_cast<std::uint64_t>(row.id)) : 0;
}

// Bits of the score of entry i of a row.
__device__ inline std::uint32_t score_bits_at(Kind kind, const Row& row, std::int64_t i, std::uint64_t salt,
                                              const Score& score) {
  const float grad = reads_grad(kind) ? load_float(row.grad, row.dtype, i) : 0.0f;
  const float theta = reads_param(kind) ? load_float(row.param, row.dtype, i) : 0.0f;
  return score_bits_among(AllKinds(), kind, grad, theta, static_cast<std::uint32_t>(i), salt, score);
}

}  // namespace
}  // namespace selective::cuda

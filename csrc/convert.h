// Storage types and their exact widening to float32, and rounding to nearest even on the way back.
#pragma once

#include <cstdint>

#include "score.h"

namespace selective {

enum class DType : std::int64_t { float32 = 0, bfloat16 = 1, float16 = 2 };

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

namespace {

SELECTIVE_HD inline float widen(float x) { return x; }

SELECTIVE_HD inline float widen(BFloat16 x) { return float_of(static_cast<std::uint32_t>(x.bits) << 16); }

SELECTIVE_HD inline float widen(Float16 x) {
  const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // inf and NaN keep their mantissa; a signalling NaN becomes quiet, as in hardware
    const std::uint32_t quiet = magnitude > 0x7c00u ? 0x00400000u : 0u;
    return float_of(sign | 0x7f800000u | (magnitude & 0x03ffu) << 13 | quiet);
  }
  if (magnitude < 0x0400u) {  // subnormal: magnitude * 2^-24, exact
    return float_of(sign | bits_of(static_cast<float>(magnitude) * 0x1p-24f));
  }
  return float_of(sign | ((magnitude << 13) + (112u << 23)));
}

template <class T>
SELECTIVE_HD T narrow(float x);

template <>
SELECTIVE_HD inline float narrow<float>(float x) {
  return x;
}

template <>
SELECTIVE_HD inline BFloat16 narrow<BFloat16>(float x) {
  const std::uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>((bits >> 16) | 0x0040u)};
  return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

template <>
SELECTIVE_HD inline Float16 narrow<Float16>(float x) {
  const std::uint32_t bits = bits_of(x);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return {static_cast<std::uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x03ffu))};
  }
  if (magnitude >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};  // rounds to inf
  if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits
    const std::uint32_t rounded = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
    return {static_cast<std::uint16_t>(sign | rounded)};
  }
  const std::uint32_t rounded = magnitude + 0x0fffu + ((magnitude >> 13) & 1u) - (112u << 23);
  return {static_cast<std::uint16_t>(sign | (rounded >> 13))};
}

SELECTIVE_HD inline std::uint32_t raw_bits(float x) { return bits_of(x); }
SELECTIVE_HD inline std::uint32_t raw_bits(BFloat16 x) { return x.bits; }
SELECTIVE_HD inline std::uint32_t raw_bits(Float16 x) { return x.bits; }

template <class T>
SELECTIVE_HD T from_raw_bits(std::uint32_t bits);

template <>
SELECTIVE_HD inline float from_raw_bits<float>(std::uint32_t bits) {
  return float_of(bits);
}
template <>
SELECTIVE_HD inline BFloat16 from_raw_bits<BFloat16>(std::uint32_t bits) {
  return {static_cast<std::uint16_t>(bits)};
}
template <>
SELECTIVE_HD inline Float16 from_raw_bits<Float16>(std::uint32_t bits) {
  return {static_cast<std::uint16_t>(bits)};
}

}  // namespace

// Calls f with a value of the storage type that `dtype` names. Where it is called, host or device, f runs.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
template <class F>
SELECTIVE_HD inline auto with_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::bfloat16:
      return f(BFloat16{});
    case DType::float16:
      return f(Float16{});
    default:
      return f(float{});
  }
}

}  // namespace selective

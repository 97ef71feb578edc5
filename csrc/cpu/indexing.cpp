// Gather, scatter and swap of single entries by flat offset: random access, so the loops prefetch.
#include "isa.h"
#include "prefetch.h"

namespace selective {

bool SELECTIVE_ISA_NAME(gather)(DType dtype, const void* data, const std::int32_t* offsets, std::int64_t count,
                                float* out) {
  return with_dtype(dtype, [&](auto storage) {
    const auto* source = static_cast<const decltype(storage)*>(data);
    std::uint32_t top = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      prefetch_entry(source, offsets, i, count);
      out[i] = widen(source[offsets[i]]);
      const std::uint32_t magnitude = bits_of(out[i]) & 0x7fffffffu;
      top = magnitude > top ? magnitude : top;
    }
    return top < 0x7f800000u;
  });
}

void SELECTIVE_ISA_NAME(gather_bits)(DType dtype, const void* data, const std::int32_t* offsets,
                                     std::int64_t count, std::uint32_t* out) {
  with_dtype(dtype, [&](auto storage) {
    const auto* source = static_cast<const decltype(storage)*>(data);
    for (std::int64_t i = 0; i < count; ++i) {
      prefetch_entry(source, offsets, i, count);
      out[i] = raw_bits(source[offsets[i]]);
    }
  });
}

void SELECTIVE_ISA_NAME(scatter)(DType dtype, void* data, const std::int32_t* offsets, std::int64_t count,
                                 const float* values) {
  with_dtype(dtype, [&](auto storage) {
    using T = decltype(storage);
    T* target = static_cast<T*>(data);
    for (std::int64_t i = 0; i < count; ++i) {
      prefetch_entry(target, offsets, i, count);
      target[offsets[i]] = narrow<T>(values[i]);
    }
  });
}

void SELECTIVE_ISA_NAME(swap)(DType dtype, void* data, const std::int32_t* offsets, std::int64_t count,
                              std::uint32_t* bits) {
  with_dtype(dtype, [&](auto storage) {
    using T = decltype(storage);
    T* target = static_cast<T*>(data);
    for (std::int64_t i = 0; i < count; ++i) {
      prefetch_entry(target, offsets, i, count);
      const std::uint32_t before = raw_bits(target[offsets[i]]);
      target[offsets[i]] = from_raw_bits<T>(bits[i]);
      bits[i] = before;
    }
  });
}

}  // namespace selective

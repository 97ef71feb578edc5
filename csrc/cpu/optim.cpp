// Sparse optimizer updates: blocks of entries are gathered into a small dense array, updated there by the compiler's
// vector code, and scattered back. Random access is what costs, so it is prefetched.
#include "isa.h"
#include "prefetch.h"

namespace selective {
namespace {

constexpr std::int64_t kBlock = 256;

// theta[i] in float32; a 16-bit parameter comes from its master copy unless somebody wrote to the model (C6).
template <class T>
void gather_block(const T* param, const std::int32_t* offsets, const float* master, std::int64_t count,
                  std::int64_t left, float* theta) {
  for (std::int64_t i = 0; i < count; ++i) {
    prefetch_entry(param, offsets, i, left);
    const T stored = param[offsets[i]];
    if constexpr (sizeof(T) == sizeof(float)) {
      theta[i] = widen(stored);
    } else {
      theta[i] = raw_bits(narrow<T>(master[i])) == raw_bits(stored) ? master[i] : widen(stored);
    }
  }
}

template <class T>
void scatter_block(T* param, const std::int32_t* offsets, float* master, std::int64_t count, const float* theta) {
  for (std::int64_t i = 0; i < count; ++i) {
    if constexpr (sizeof(T) != sizeof(float)) master[i] = theta[i];
    param[offsets[i]] = narrow<T>(theta[i]);
  }
}

// Runs update(first, count, theta) on each block of a span's entries.
template <class Span, class F>
void for_blocks(const Span& s, F&& update) {
  with_dtype(s.dtype, [&](auto storage) {
    using T = decltype(storage);
    T* param = static_cast<T*>(s.param);
    alignas(64) float theta[kBlock];
    for (std::int64_t first = 0; first < s.count; first += kBlock) {
      const std::int64_t left = s.count - first;
      const std::int64_t count = left < kBlock ? left : kBlock;
      float* master = s.master == nullptr ? nullptr : s.master + first;
      gather_block<T>(param, s.offsets + first, master, count, left, theta);
      update(first, count, theta);
      scatter_block<T>(param, s.offsets + first, master, count, theta);
    }
  });
}

}  // namespace

void SELECTIVE_ISA_NAME(adam)(const AdamSpan& s) {
  const AdamCoefficients c = s.coefficients;
  for_blocks(s, [&](std::int64_t first, std::int64_t count, float* __restrict theta) {
    const float* __restrict grads = s.grads + first;
    float* __restrict exp_avg = s.exp_avg + first;
    float* __restrict exp_avg_sq = s.exp_avg_sq + first;
    const float clip = s.clip;
    if (s.ages == nullptr) {
      const float step_size = s.step_size;
      const float correction2 = s.correction2;
      for (std::int64_t i = 0; i < count; ++i) {
        adam_update(grads[i] * clip, exp_avg[i], exp_avg_sq[i], theta[i], step_size, correction2, c);
      }
    } else {
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int32_t age = s.ages[first + i] < s.max_age ? s.ages[first + i] : s.max_age;
        adam_update(grads[i] * clip, exp_avg[i], exp_avg_sq[i], theta[i], s.step_sizes[age], s.corrections2[age], c);
      }
    }
  });
}

void SELECTIVE_ISA_NAME(sgd)(const SgdSpan& s) {
  const SgdCoefficients c = s.coefficients;
  for_blocks(s, [&](std::int64_t first, std::int64_t count, float* __restrict theta) {
    const float* __restrict grads = s.grads + first;
    const float clip = s.clip;
    if (s.buffer == nullptr) {
      for (std::int64_t i = 0; i < count; ++i) sgd_update_plain(grads[i] * clip, theta[i], c);
      return;
    }
    float* __restrict buffer = s.buffer + first;
    for (std::int64_t i = 0; i < count; ++i) {
      const bool starts = s.first || (s.ages != nullptr && s.ages[first + i] == 1);
      sgd_update(grads[i] * clip, buffer[i], theta[i], starts, c);
    }
  });
}

// Four streams, as in the scan; one alone does not reach the memory's speed.
std::uint64_t SELECTIVE_ISA_NAME(read)(const void* data, std::int64_t bytes) {
  constexpr int kStreams = 4;
  constexpr int kWords = 16;  // per stream and step: two cache lines
  const char* p = static_cast<const char*>(data);
  const std::int64_t part = bytes / (kStreams * 128) * 128;
  std::uint64_t lanes[kStreams][kWords] = {};
  for (std::int64_t i = 0; i < part; i += 128) {
    for (int stream = 0; stream < kStreams; ++stream) {
      for (int lane = 0; lane < kWords; ++lane) {
        std::uint64_t word;
        std::memcpy(&word, p + stream * part + i + 8 * lane, sizeof word);
        lanes[stream][lane] ^= word;
      }
    }
  }
  std::uint64_t all = 0;
  for (std::int64_t i = kStreams * part; i < bytes; ++i) {
    all ^= static_cast<std::uint64_t>(static_cast<unsigned char>(p[i])) << (8 * (i & 7));
  }
  for (const auto& stream : lanes) {
    for (const std::uint64_t lane : stream) all ^= lane;
  }
  return all;
}

}  // namespace selective

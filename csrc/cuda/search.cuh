// Which entries are the best k: their order as a 64-bit number, searched digit by digit.
//
// An entry's number is the reversed bits of its score above its position among the entries of all tensors, so that
// better ones are smaller and no two are equal (C4). Each round counts the entries that agree in the digits known so
// far by their next digit; the last block of a round picks the digit, and nobody waits for it.
#pragma once

#include "scan.h"
#include "warps.cuh"

namespace selective::cuda {

// What is known of the k-th best number; on the device, all zero at first.
struct Search {
  std::uint64_t prefix;        // its digits, and zeros below them; once settled, the number itself or an upper bound
  unsigned long long missing;  // how many entries are wanted among those with this prefix
  std::uint32_t settled;       // 1: all entries up to `prefix` are the best, further rounds have nothing to do
  std::uint32_t finished;      // blocks of this round
  std::uint32_t rounds;        // that had something to do
  std::uint32_t worst;         // the largest rank of a score among the best, from 1
  unsigned long long counts[kLargestDigits];  // zero between rounds
};

struct Digit {
  int shift;
  int bits;
};
// Rounds 0 to 2 find the score, the others the position.
constexpr int kScoreRounds = 3;
constexpr int kRounds = 6;
SELECTIVE_HD constexpr Digit digit_of(int round) {
  if (round < kScoreRounds) return {kFlatBits + 10 * (kScoreRounds - 1 - round), round == 0 ? 11 : 10};
  return {11 * (kRounds - 1 - round), 11};
}

namespace {

SELECTIVE_HD inline std::uint64_t number_of(std::uint32_t score_bits, std::int64_t flat) {
  return static_cast<std::uint64_t>(kLargestBits - score_bits) << kFlatBits | static_cast<std::uint64_t>(flat);
}
SELECTIVE_HD inline std::uint32_t score_of(std::uint64_t number) {
  return kLargestBits - static_cast<std::uint32_t>(number >> kFlatBits);
}

// Whether a number agrees in all digits that the rounds before this one have found.
__device__ inline bool agrees(std::uint64_t number, std::uint64_t prefix, int round) {
  if (round == 0) return true;
  const int shift = digit_of(round - 1).shift;
  return number >> shift == prefix >> shift;
}

__device__ inline int value_of(std::uint64_t number, int round) {
  const Digit digit = digit_of(round);
  return static_cast<int>(number >> digit.shift & ((std::uint64_t{1} << digit.bits) - 1));
}

// Before a round's entries: counts [kLargestDigits] are shared.
__device__ inline void clear_counts(std::uint32_t* counts) {
  for (int i = static_cast<int>(threadIdx.x); i < kLargestDigits; i += kBlock) counts[i] = 0;
  __syncthreads();
}

// After a round's entries, for the whole block: adds its counts to everybody's. The last of `blocks` blocks picks the
// digit of the k-th best. room [kWarps] is shared.
__device__ inline void end_round(Search* search, std::uint32_t* counts, int round, unsigned long long k,
                                 std::uint32_t blocks, unsigned long long* room) {
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kLargestDigits; i += kBlock) {
    if (counts[i] != 0) atomicAdd(&search->counts[i], static_cast<unsigned long long>(counts[i]));
  }
  if (!is_last_block(&search->finished, blocks)) return;
  constexpr int per_thread = kLargestDigits / kBlock;
  const int first = static_cast<int>(threadIdx.x) * per_thread;
  unsigned long long mine[per_thread];
  unsigned long long sum = 0;
  for (int i = 0; i < per_thread; ++i) {
    mine[i] = __ldcg(&search->counts[first + i]);
    search->counts[first + i] = 0;
    sum += mine[i];
  }
  unsigned long long total = 0;
  const unsigned long long until = block_running_sum(sum, room, total);
  const unsigned long long missing = round == 0 ? k : search->missing;
  const std::uint64_t prefix = search->prefix;
  __syncthreads();  // everybody has read them
  const int shift = digit_of(round).shift;
  const std::uint64_t below = (std::uint64_t{1} << shift) - 1;
  if (threadIdx.x == 0) {
    search->finished = 0;
    search->rounds = static_cast<std::uint32_t>(round) + 1;
    if (total <= missing) {  // in the first round only: all there are
      search->prefix = ~std::uint64_t{0};
      search->settled = 1;
    }
  }
  unsigned long long before = until - sum;
  for (int i = 0; i < per_thread; ++i) {
    const unsigned long long after = before + mine[i];
    if (total > missing && before < missing && missing <= after) {
      const std::uint64_t found = prefix | static_cast<std::uint64_t>(first + i) << shift;
      search->settled = missing == after || round == kRounds - 1;
      search->prefix = search->settled != 0 ? found | below : found;
      search->missing = missing - before;
    }
    before = after;
  }
}

}  // namespace
}  // namespace selective::cuda

// Rice codes of gaps. Low bits and unary quotients of a block lie apart, so that neither waits for the other: low bits
// are found by multiplication, and quotients are the set bits of a few words.
#include "../gaps.h"

#include <algorithm>
#include <cstring>

namespace selective {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "codes are read and written as little-endian words");

using Word = std::uint64_t;

// At the best parameter k the quotients q of a block add up to 2 per gap at most: k + 1 is no better, so the sum of
// ceil(q / 2) is no more than the number of gaps. With their ones that makes 3 bits per gap.
constexpr int kUnaryBits = 3;
constexpr int kUnaryWords = kUnaryBits * kGapBlock / 64;
static_assert(kUnaryBits * kGapBlock % 64 == 0);
// The longest block. Words that begin within low bits end within the quotients' words.
constexpr int kWindow = kGapBlock * kMaxParameter / 8 + kUnaryWords * 8;

Word load(const std::uint8_t* bytes) {
  Word word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

void store(std::uint8_t* bytes, Word word) { std::memcpy(bytes, &word, sizeof word); }

constexpr int bytes_of(int bits) { return (bits + 7) / 8; }

// The gaps of one block; those beyond n are 0.
struct Gaps {
  std::uint32_t values[kGapBlock];
  int n;
};

// Differences of the offsets, less one each. Returns false if one of them is negative.
bool subtract(const std::int32_t* offsets, int n, std::int32_t previous, Gaps& gaps) {
  gaps.n = n;
  const auto gap = [](std::int32_t offset, std::int32_t before) {
    return static_cast<std::uint32_t>(offset) - static_cast<std::uint32_t>(before) - 1u;
  };
  bool bad = offsets[0] <= previous;
  gaps.values[0] = gap(offsets[0], previous);
  for (int i = 1; i < n; ++i) {
    bad |= offsets[i] <= offsets[i - 1];
    gaps.values[i] = gap(offsets[i], offsets[i - 1]);
  }
  std::fill(gaps.values + n, gaps.values + kGapBlock, 0u);
  return !bad;
}

// Bits of a block with parameter k. Gaps of a list add up to less than 2^31.
std::uint32_t cost(const Gaps& gaps, int k) {
  std::uint32_t quotients = 0;
  for (const std::uint32_t gap : gaps.values) quotients += gap >> k;
  return quotients + static_cast<std::uint32_t>(gaps.n * (k + 1));
}

// The smallest of the cheapest parameters. The cost is convex in k: from k to k + 1 it changes by n less the sum of
// ceil((gap >> k) / 2), which only falls. So it is enough to walk downhill; near the logarithm of the mean that is short.
int best_parameter(const Gaps& gaps, std::uint32_t sum) {
  int k = 0;
  while (k < kMaxParameter && (sum >> (k + 1)) >= static_cast<std::uint32_t>(gaps.n)) ++k;
  std::uint32_t least = cost(gaps, k);
  const int start = k;
  for (std::uint32_t next; k > 0 && (next = cost(gaps, k - 1)) <= least; --k) least = next;
  if (k < start) return k;
  for (std::uint32_t next; k < kMaxParameter && (next = cost(gaps, k + 1)) < least; ++k) least = next;
  return k;
}

// Writes a block behind its parameter and returns its bytes. `k` is the best one, so the quotients fit.
int write_block(const Gaps& gaps, int k, std::uint8_t* code) {
  const Word mask = (Word{1} << k) - 1;
  std::uint8_t* low = code;
  Word waiting = 0;
  int filled = 0;  // bits that wait, fewer than 32 before each gap
  Word unary[kUnaryWords] = {};
  int end = 0;
  for (int i = 0; i < gaps.n; ++i) {
    waiting |= (gaps.values[i] & mask) << filled;
    filled += k;
    if (filled >= 32) {
      store(low, waiting);
      low += 4;
      waiting >>= 32;
      filled -= 32;
    }
    end += static_cast<int>(gaps.values[i] >> k);
    unary[end / 64] |= Word{1} << (end % 64);
    ++end;
  }
  store(low, waiting);
  const int low_bytes = bytes_of(gaps.n * k);
  std::memcpy(code + low_bytes, unary, static_cast<std::size_t>(bytes_of(end)));
  return low_bytes + bytes_of(end);
}

// A block behind its parameter. kWindow bytes may be read, the first `there` of which are the code's.
struct Block {
  const std::uint8_t* bytes;
  std::int64_t there;
  int n;
  int k;
};

struct Read {
  GapProblem problem;
  int bytes;
  std::int64_t last;
};

Read read_block(const Block& block, std::int64_t previous, std::int64_t limit, std::int32_t* offsets) {
  const int n = block.n, k = block.k;
  const int low_bytes = bytes_of(n * k);
  const int most_bits = kUnaryBits * n;
  const std::uint8_t* const unary = block.bytes + low_bytes;
  const Word mask = (Word{1} << k) - 1;
  std::int64_t last = previous;  // gaps of a block add up to less than 2^40, whatever the code
  int found = 0, begin = 0;      // gaps, and the first bit of the next one's quotient
  for (int base = 0; base < most_bits && found < n; base += 64) {
    Word word = load(unary + base / 8);
    while (word != 0 && found < n) {
      const int end = base + __builtin_ctzll(word);
      word &= word - 1;
      const int at = found * k;
      const auto low = static_cast<std::int64_t>((load(block.bytes + at / 8) >> (at % 8)) & mask);
      last += (static_cast<std::int64_t>(end - begin) << k) + low + 1;
      offsets[found++] = static_cast<std::int32_t>(last);
      begin = end + 1;
    }
  }
  if (found < n && block.there < low_bytes + bytes_of(most_bits)) return {GapProblem::truncated, 0, 0};
  if (found < n || begin > most_bits) return {GapProblem::quotients, 0, 0};
  const bool low_clean = n * k % 8 == 0 || block.bytes[low_bytes - 1] >> (n * k % 8) == 0;
  const bool unary_clean = begin % 8 == 0 || unary[begin / 8] >> (begin % 8) == 0;
  if (!low_clean || !unary_clean) return {GapProblem::padding, 0, 0};
  if (last >= limit) return {GapProblem::limit, 0, 0};
  return {GapProblem::none, low_bytes + bytes_of(begin), last};
}

}  // namespace

std::int64_t encode_gaps(const std::int32_t* offsets, std::int64_t count, std::uint8_t* code) {
  Gaps gaps;
  std::int32_t previous = -1;
  std::uint8_t* next = code;
  for (std::int64_t done = 0; done < count; done += kGapBlock) {
    const int n = static_cast<int>(std::min<std::int64_t>(kGapBlock, count - done));
    if (!subtract(offsets + done, n, previous, gaps)) return -1;
    const std::int32_t last = offsets[done + n - 1];
    const int k = best_parameter(gaps, static_cast<std::uint32_t>(std::int64_t{last} - previous - n));
    *next++ = static_cast<std::uint8_t>(k);
    next += write_block(gaps, k, next);
    previous = last;
  }
  return next - code;
}

GapVerdict decode_gaps(const std::uint8_t* code, std::int64_t length, std::int64_t count, std::int64_t limit,
                       std::int32_t* offsets) {
  std::uint8_t tail[kWindow];
  std::int64_t at = 0, previous = -1;
  for (std::int64_t done = 0; done < count; done += kGapBlock) {
    const std::int64_t number = done / kGapBlock;
    if (at >= length) return {GapProblem::truncated, number};
    Block block{nullptr, length - at - 1, static_cast<int>(std::min<std::int64_t>(kGapBlock, count - done)), code[at]};
    if (block.k > kMaxParameter) return {GapProblem::parameter, number};
    block.bytes = code + at + 1;
    if (block.there < kWindow) {
      std::memcpy(tail, block.bytes, static_cast<std::size_t>(block.there));
      std::memset(tail + block.there, 0, static_cast<std::size_t>(kWindow - block.there));
      block.bytes = tail;
    }
    const Read read = read_block(block, previous, limit, offsets + done);
    if (read.problem != GapProblem::none) return {read.problem, number};
    at += 1 + read.bytes;
    previous = read.last;
  }
  return {at == length ? GapProblem::none : GapProblem::left_over, count / kGapBlock};
}

}  // namespace selective

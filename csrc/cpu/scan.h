// One exact top-k in progress (C3, C4): sample a threshold, read everything once, repair by counts.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "../selective.h"
#include "pool.h"

namespace selective {

class Scan {
 public:
  // k >= 0 entries are wanted; offsets is the sorted index list that the rows' [begin, end) point into (may be null if
  // all are empty) and stays alive and unmodified. hint: a guess of the k-th best score that replaces the sample, or
  // NaN for none; any value is safe. threads >= 1.
  Scan(const Score& score, std::int64_t k, float hint, const std::int32_t* offsets, int threads);

  // Reads n rows; may be called again with other rows. selected_grads [length of the index list] receives the
  // gradients of the selected entries of these rows, or is null (always null for Family::given, and for scores that
  // read no gradients). Rows' memory stays alive until finalize; but given scores (float32 in the rows' `grad`, whatever
  // the parameters are; row.dtype float32) are read here only.
  void add(const Row* rows, std::int64_t n, float* selected_grads);

  bool nonfinite() const { return nonfinite_.load(); }

  // Returns how many entries were found: min(k, selectable).
  std::int64_t finalize();

  // After finalize, once: ascending by (tensor, offset); tensors and offsets [count]. Frees the candidates.
  void result(std::int32_t* tensors, std::int32_t* offsets);

  float threshold() const { return threshold_; }  // the lowest selected score; 0 when nothing was selected
  std::int64_t passes() const { return passes_; }  // reads of a set of rows, repairs included

 private:
  struct Set {  // the rows of one add()
    std::vector<Row> rows;
    float threshold;
  };

  std::uint64_t salt_of(const Row& row) const;
  float sample_threshold(const std::vector<Row>& rows, std::int64_t numel);
  void read(const std::vector<Row>& rows, float threshold, float upper, float* selected_grads);

  Score score_;
  std::int64_t k_;
  float hint_;
  const std::int32_t* offsets_;
  int threads_;
  Pool pool_;
  std::vector<Set> sets_;
  std::atomic<bool> nonfinite_{false};
  float threshold_ = 0.0f;
  std::int64_t passes_ = 0;
};

}  // namespace selective

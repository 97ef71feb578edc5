// The best k candidates of a scan, whatever the order in which threads bring them.
//
// Entries are kept until the buffer is full; then all but the best k go, and the k-th becomes a bound that can only
// rise. So a buffer that fills up (a plateau of ties, a useless threshold) costs time, never exactness.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

#include "../score.h"

namespace selective {

struct Candidate {
  std::uint32_t score;  // bits of a positive finite float32: their order is the scores' order
  std::uint32_t tensor;
  std::uint32_t offset;
};

inline bool same_tensor_before(const Candidate& a, const Candidate& b) {
  return a.tensor != b.tensor ? a.tensor < b.tensor : a.offset < b.offset;
}

// The order of C4: higher score, then lower tensor, then lower offset.
inline bool better(const Candidate& a, const Candidate& b) {
  return a.score != b.score ? a.score > b.score : same_tensor_before(a, b);
}

class Pool {
 public:
  // room: how many entries the buffer takes beyond 1.5 k, 1 or more. Less of it raises the floor sooner.
  Pool(std::int64_t k, std::int64_t room) : k_(k), capacity_(k + k / 2 + room) {}

  // Scores below this can no longer matter; equal ones can.
  float floor() const { return float_of(floor_.load(std::memory_order_relaxed)); }

  void append(const Candidate* first, std::int64_t count) {
    const std::lock_guard<std::mutex> guard(lock_);
    if (entries_.capacity() == 0) entries_.reserve(static_cast<std::size_t>(capacity_));
    for (std::int64_t i = 0; i < count; ++i) {
      if (bounded_ && !better(first[i], bound_)) continue;
      entries_.push_back(first[i]);
      if (static_cast<std::int64_t>(entries_.size()) == capacity_) compact();
    }
  }

  // Leaves at most the best k, in no particular order.
  void compact() {
    if (static_cast<std::int64_t>(entries_.size()) < k_ || k_ == 0) return;
    const auto kth = entries_.begin() + (k_ - 1);
    std::nth_element(entries_.begin(), kth, entries_.end(), better);
    bound_ = *kth;
    bounded_ = true;
    entries_.resize(static_cast<std::size_t>(k_));
    floor_.store(bound_.score, std::memory_order_relaxed);
  }

  std::vector<Candidate>& entries() { return entries_; }

 private:
  std::int64_t k_;
  std::int64_t capacity_;
  std::vector<Candidate> entries_;
  Candidate bound_{};
  bool bounded_ = false;
  std::atomic<std::uint32_t> floor_{0};
  std::mutex lock_;
};

// A thread's own small buffer before the pool, so that the lock is taken once per batch.
class Batch {
 public:
  // room: with so many it goes to the pool.
  Batch(Pool& pool, std::size_t room) : pool_(&pool), room_(room) { items_.reserve(room + 4096); }

  void add(const Candidate& candidate) { items_.push_back(candidate); }

  void flush_if_large() {
    if (items_.size() >= room_) flush();
  }

  void flush() {
    if (!items_.empty()) pool_->append(items_.data(), static_cast<std::int64_t>(items_.size()));
    items_.clear();
  }

 private:
  Pool* pool_;
  std::size_t room_;
  std::vector<Candidate> items_;
};

}  // namespace selective

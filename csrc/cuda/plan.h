// Several operations that go to a device in one call: their tables in one copy, then their launches, in order.
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "rows.cuh"

namespace selective::cuda {

class Plan {
 public:
  // Launches an operation's kernels. `there` is where the plan's tables are on the device; the room is for results
  // between two kernels.
  using Enqueue = std::function<void(const Place& place, char* there, Room& room)>;

  // A copy of `n` items among the plan's tables: what `within` finds it by.
  template <class T>
  std::size_t add(const T* items, std::int64_t n) {
    return packet_.add(items, n);
  }
  void then(Enqueue enqueue) { steps_.push_back(std::move(enqueue)); }

  // Enqueues everything on the place's stream; without anything to launch it does nothing.
  void run(const Place& place) const {
    if (steps_.empty()) return;
    const OnDevice current(place);
    Room room(place);
    char* const there = packet_.send_to(place, room);
    for (const Enqueue& step : steps_) step(place, there, room);
  }

 private:
  Packet packet_;
  std::vector<Enqueue> steps_;
};

// A table of rows in a plan, cut into blocks of entries of the index list.
struct PlannedRows {
  std::size_t rows;
  std::size_t blocks;
  std::int64_t n;
  std::int64_t n_blocks;
  Rows on_device(const char* there) const {
    return {within<Row>(there, rows), within<std::int64_t>(there, blocks), n};
  }
};

inline PlannedRows plan_rows(Plan& plan, const Row* rows, std::int64_t n, std::int64_t per_block) {
  const std::vector<std::int64_t> blocks = blocks_of(rows, n, per_block);
  return {plan.add(rows, n), plan.add(blocks.data(), n + 1), n, blocks.back()};
}

}  // namespace selective::cuda

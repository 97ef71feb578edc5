#include "scan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>

#include "parallel.h"
#include "prefetch.h"

namespace selective {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kSmallest = std::numeric_limits<float>::denorm_min();
constexpr std::int64_t kTilesPerTask = 16;
constexpr std::int64_t kLine = 16;           // entries; a sampled line is one or two cache lines
constexpr std::int64_t kLeastStride = 256;   // at most one line of 256 is sampled
// How many lines are sampled, between these: each costs two misses of the cache and most likely of the TLB, and more of
// them only trim the first candidates, until the pool knows better.
constexpr std::int64_t kFewSamples = 256;
constexpr std::int64_t kMostSamples = 4096;
constexpr std::int64_t kWantedPerSample = 64;
constexpr std::int64_t kFewestSamples = 32;  // below this many a threshold is not worth having
constexpr std::int64_t kSampleRoom = 1024;   // of the sample's pool

const char* element(std::uint64_t address, DType dtype, std::int64_t i) {
  const std::int64_t size = dtype == DType::float32 ? 4 : 2;
  return reinterpret_cast<const char*>(address) + i * size;
}

// Running sums of how many units (tiles, lines) each row has, to find a unit's row.
class Units {
 public:
  Units(const std::vector<Row>& rows, std::int64_t entries_per_unit) : starts_{0} {
    for (const Row& row : rows) {
      starts_.push_back(starts_.back() + (row.numel + entries_per_unit - 1) / entries_per_unit);
    }
  }
  std::int64_t count() const { return starts_.back(); }
  std::size_t row_of(std::int64_t unit) const {
    return static_cast<std::size_t>(std::upper_bound(starts_.begin(), starts_.end(), unit) - starts_.begin()) - 1;
  }
  // The same, for ascending units: `row` is that of an earlier unit.
  std::size_t row_from(std::size_t row, std::int64_t unit) const {
    while (unit >= starts_[row + 1]) ++row;
    return row;
  }
  std::int64_t within(std::size_t row, std::int64_t unit) const { return unit - starts_[row]; }

 private:
  std::vector<std::int64_t> starts_;
};

// Entries that a pool takes beyond what it must, and that a thread holds back from it. Where few are wanted, few of
// them tell how good an entry must be.
std::int64_t room_for(std::int64_t k) { return std::clamp<std::int64_t>(k, 1024, 16384); }

struct Worker {
  Worker(Pool& pool, std::int64_t room)
      : batch(pool, static_cast<std::size_t>(room / 4)), survivors(new Survivors[kTilesPerTask]) {}
  Batch batch;
  Tile tiles[kTilesPerTask]{};  // of a task
  std::unique_ptr<Survivors[]> survivors;
};

}  // namespace

std::uint64_t Scan::salt_of(const Row& row) const {
  return score_.family == Family::random ? tensor_salt(score_.seed, static_cast<std::uint64_t>(row.id)) : 0;
}

Scan::Scan(const Score& score, std::int64_t k, float hint, const std::int32_t* offsets, int threads)
    : score_(score), k_(k), hint_(hint), offsets_(offsets), threads_(threads), pool_(k, room_for(k)) {}

void Scan::add(const Row* rows, std::int64_t n, float* selected_grads) {
  const IeeeMode ieee;  // thresholds may be subnormal
  std::vector<Row> set(rows, rows + n);
  std::int64_t numel = 0;
  for (const Row& row : set) numel += row.numel;
  float threshold = kInfinity;
  if (k_ > 0) {
    // Given scores may be gone when finalize would read them again, so nothing above the pool's floor is left out.
    threshold = score_.family == Family::given ? kSmallest : std::isnan(hint_) ? sample_threshold(set, numel) : hint_;
    threshold = std::max({threshold, pool_.floor(), kSmallest});
  }
  if (k_ > 0 || grads_are_gradients(kind_of(score_))) read(set, threshold, kInfinity, selected_grads);
  sets_.push_back({std::move(set), threshold});
}

// The r-th best score of a deterministic sample of lines, one at a random place in each stretch of `stride`; r lies six
// standard deviations above what k of all entries would give. Selected entries are left out, or it would lie too high.
float Scan::sample_threshold(const std::vector<Row>& rows, std::int64_t numel) {
  const Units lines(rows, kLine);
  const std::int64_t most = std::clamp(k_ / kWantedPerSample, kFewSamples, kMostSamples);
  const std::int64_t stride = std::max(kLeastStride, lines.count() / most);
  const std::int64_t samples = lines.count() / stride;
  if (samples < kFewestSamples) return kSmallest;
  const double expected = static_cast<double>(k_) * static_cast<double>(samples * kLine) / static_cast<double>(numel);
  const std::int64_t rank = static_cast<std::int64_t>(expected + 6.0 * std::sqrt(expected) + 16.0);
  if (rank >= samples * kLine) return kSmallest;
  Pool best(rank, kSampleRoom);  // a low floor soon spares most entries the look-up in the index list
  const auto line_of = [&](std::int64_t sample) {
    const std::uint64_t within = mix64(static_cast<std::uint64_t>(sample) + 1) % static_cast<std::uint64_t>(stride);
    return sample * stride + static_cast<std::int64_t>(within);
  };
  struct Place {
    std::size_t row;
    std::int64_t first;  // entry of the row
  };
  const auto visit = [&](Worker& worker, const Place& place, const Filter& filter) {
    const Row& row = rows[place.row];
    const DType dtype = static_cast<DType>(row.dtype);
    const std::int64_t first = place.first;
    const std::int32_t size = static_cast<std::int32_t>(std::min(kLine, row.numel - first));
    const Tile tile{element(row.grad, dtype, first), element(row.param, dtype, first), salt_of(row), size,
                    static_cast<std::int32_t>(first), nullptr, 0, nullptr};
    Survivors& s = worker.survivors[0];
    kernels().visit(dtype, &tile, 1, filter, &s);
    kernels().score(dtype, tile, filter, s);
    for (std::int32_t i = 0; i < s.count; ++i) {
      const std::int32_t offset = static_cast<std::int32_t>(first) + s.positions[i];
      if (row.begin < row.end && std::binary_search(offsets_ + row.begin, offsets_ + row.end, offset)) continue;
      worker.batch.add({bits_of(s.scores[i]), static_cast<std::uint32_t>(row.id), static_cast<std::uint32_t>(offset)});
    }
    worker.batch.flush_if_large();
  };
  constexpr std::int64_t kSamplesPerTask = 64;
  const std::int64_t tasks = (samples + kSamplesPerTask - 1) / kSamplesPerTask;
  parallel_for(
      tasks, threads_, [&] { return Worker(best, kSampleRoom); },
      [&](Worker& worker, std::int64_t task) {
        const std::int64_t end = std::min((task + 1) * kSamplesPerTask, samples);
        const std::int64_t begin = task * kSamplesPerTask;
        Place places[kSamplesPerTask];
        std::size_t row = lines.row_of(line_of(begin));
        for (std::int64_t i = begin; i < end; ++i) {  // all the cache misses of a task at once, not one by one
          row = lines.row_from(row, line_of(i));
          const std::int64_t first = lines.within(row, line_of(i)) * kLine;
          places[i - begin] = {row, first};
          const DType dtype = static_cast<DType>(rows[row].dtype);
          prefetch(element(rows[row].grad, dtype, first));
          prefetch(element(rows[row].param, dtype, first));
        }
        const Filter filter = make_filter(score_, std::max(best.floor(), kSmallest), kInfinity);
        for (std::int64_t i = begin; i < end; ++i) visit(worker, places[i - begin], filter);
        worker.batch.flush();
      },
      [](Worker& worker) { worker.batch.flush(); });
  best.compact();
  return static_cast<std::int64_t>(best.entries().size()) < rank ? kSmallest : best.floor();
}

void Scan::read(const std::vector<Row>& rows, float threshold, float upper, float* selected_grads) {
  ++passes_;
  const Units tasks(rows, kTilesPerTask * kTile);
  const auto work = [&](Worker& worker, std::int64_t task) {
    const std::size_t r = tasks.row_of(task);
    const Row& row = rows[r];
    const DType dtype = static_cast<DType>(row.dtype);
    const std::int64_t first = tasks.within(r, task) * kTilesPerTask * kTile;
    const std::int64_t last = std::min(first + kTilesPerTask * kTile, row.numel);
    Filter filter = make_filter(score_, std::max(threshold, pool_.floor()), upper);
    const std::uint64_t salt = salt_of(row);
    const std::int32_t* end = offsets_ + row.end;
    const auto selected_from = [&](std::int64_t entry) {
      if (row.begin == row.end) return end;
      return std::lower_bound(offsets_ + row.begin, end, static_cast<std::int32_t>(entry));
    };
    // Both halves of the task advance together: twice as many streams, far apart, use more of the memory. What may be
    // kept is scored when the whole task has been read.
    const std::int64_t tiles = (last - first + kTile - 1) / kTile;
    const std::int64_t half = (tiles + 1) / 2;
    const std::int64_t starts[2] = {first, first + half * kTile};
    const std::int32_t* next[2] = {selected_from(starts[0]), selected_from(starts[1])};
    for (std::int64_t t = 0; t < half; ++t) {
      Tile* pair = worker.tiles + 2 * t;
      Survivors* survivors = worker.survivors.get() + 2 * t;
      const int n = half + t < tiles ? 2 : 1;
      for (int i = 0; i < n; ++i) {
        const std::int64_t start = starts[i] + t * kTile;
        pair[i] = {element(row.grad, dtype, start),
                   element(row.param, dtype, start),
                   salt,
                   static_cast<std::int32_t>(std::min<std::int64_t>(kTile, last - start)),
                   static_cast<std::int32_t>(start),
                   next[i],
                   end - next[i],
                   selected_grads == nullptr ? nullptr : selected_grads + (next[i] - offsets_)};
      }
      kernels().visit(dtype, pair, n, filter, survivors);
      for (int i = 0; i < n; ++i) {
        next[i] += survivors[i].selected_in_tile;
        if (survivors[i].nonfinite) nonfinite_.store(true);
        if (survivors[i].loud) filter.least = 0.0f;  // and most likely the next tiles are like this one
      }
    }
    for (std::int64_t t = 0; t < tiles; ++t) {
      const Tile& tile = worker.tiles[t];
      Survivors& s = worker.survivors[t];
      kernels().score(dtype, tile, filter, s);
      for (std::int32_t j = 0; j < s.count; ++j) {
        worker.batch.add({bits_of(s.scores[j]), static_cast<std::uint32_t>(row.id),
                          static_cast<std::uint32_t>(tile.base + s.positions[j])});
      }
      worker.batch.flush_if_large();
    }
  };
  parallel_for(
      tasks.count(), threads_, [&] { return Worker(pool_, room_for(k_)); }, work,
      [](Worker& worker) { worker.batch.flush(); });
}

std::int64_t Scan::finalize() {
  if (k_ == 0) return 0;
  const IeeeMode ieee;
  // Whatever a threshold let through is complete above it. What may be missing lies between the k-th best so far (or
  // zero, if there are fewer) and the threshold: read that again.
  pool_.compact();
  for (Set& set : sets_) {
    const float lowest = std::max(pool_.floor(), kSmallest);
    if (set.threshold <= lowest) continue;
    read(set.rows, lowest, set.threshold, nullptr);
    set.threshold = lowest;
    pool_.compact();
  }
  std::vector<Candidate>& found = pool_.entries();
  if (static_cast<std::int64_t>(found.size()) > k_) pool_.compact();
  std::uint32_t lowest = found.empty() ? 0 : std::numeric_limits<std::uint32_t>::max();
  for (const Candidate& candidate : found) lowest = std::min(lowest, candidate.score);
  threshold_ = float_of(lowest);
  std::sort(found.begin(), found.end(), same_tensor_before);
  return static_cast<std::int64_t>(found.size());
}

void Scan::result(std::int32_t* tensors, std::int32_t* offsets) {
  const std::vector<Candidate> found = std::move(pool_.entries());
  for (std::size_t i = 0; i < found.size(); ++i) {
    tensors[i] = static_cast<std::int32_t>(found[i].tensor);
    offsets[i] = static_cast<std::int32_t>(found[i].offset);
  }
}

}  // namespace selective

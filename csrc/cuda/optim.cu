// One optimizer step over an index list: one launch, whatever the number of rows and groups.
#include "lists.h"

namespace selective::cuda {
namespace {

// What an update is told of a row's ages.
struct RowAges {
  std::int64_t missed;      // its slice of the missed steps
  std::int64_t missed_end;
  std::int64_t first;       // where its group's corrections by age begin
  std::int64_t last;        // the last age that has one
};

struct AdamRow {
  AdamCoefficients coefficients;
  float lr;           // for "per_entry"
  float step_size;    // for "global"
  float correction2;  // for "global"
  RowAges ages;
};

struct SgdRow {
  SgdCoefficients coefficients;
  bool first;  // "global": every entry's buffer starts now
  RowAges ages;
};

// What both kernels know of ages, on the device.
struct AgesThere {
  const std::int32_t* chosen;
  const std::int32_t* missed;
  std::int64_t now;
  const float* corrections1;
  const float* corrections2;
};

// Updates that an entry has had, this step's included: 1 or more, also for one that claims to be from the future.
__device__ inline std::int64_t age_of(const AgesThere& ages, const RowAges& row, std::int64_t entry) {
  const std::int32_t chosen = ages.chosen[entry];
  const std::int64_t missed = row.missed_end - lower_bound(ages.missed, row.missed, row.missed_end, chosen);
  const std::int64_t age = ages.now - chosen + 1 - missed;
  return age < 1 ? 1 : age > ages.now + 1 ? ages.now + 1 : age;
}

__device__ inline bool skipped(const UpdateArrays& a) { return a.skip != nullptr && *a.skip != 0; }

__device__ inline float clip_of(const UpdateArrays& a) { return a.clip_there == nullptr ? a.clip : *a.clip_there; }

// theta in float32; a 16-bit parameter comes from its master copy unless somebody wrote to the model (C6).
template <class T>
__device__ inline float load_theta(const T* param, std::int32_t offset, const float* master, std::int64_t entry) {
  const T stored = param[offset];
  if constexpr (sizeof(T) == sizeof(float)) {
    return widen(stored);
  } else {
    const float copy = master[entry];
    return raw_bits(narrow<T>(copy)) == raw_bits(stored) ? copy : widen(stored);
  }
}

template <class T>
__device__ inline void store_theta(T* param, std::int32_t offset, float* master, std::int64_t entry, float theta) {
  if constexpr (sizeof(T) != sizeof(float)) master[entry] = theta;
  param[offset] = narrow<T>(theta);
}

// How the optimizers update an entry, given its gradient, which is clipped already.
struct Adam {
  using Numbers = AdamRow;
  template <bool aged>
  static __device__ void apply(const AdamRow& mine, const UpdateArrays& a, const AgesThere& ages, std::int64_t i,
                               float grad, float& theta) {
    float step_size = mine.step_size;
    float correction2 = mine.correction2;
    if constexpr (aged) {
      const std::int64_t age = age_of(ages, mine.ages, i);
      const std::int64_t at = mine.ages.first + (age < mine.ages.last ? age : mine.ages.last);
      step_size = mine.lr / ages.corrections1[at];
      correction2 = ages.corrections2[at];
    }
    float exp_avg = a.first[i];
    float exp_avg_sq = a.second[i];
    adam_update(grad, exp_avg, exp_avg_sq, theta, step_size, correction2, mine.coefficients);
    a.first[i] = exp_avg;
    a.second[i] = exp_avg_sq;
  }
};

struct Sgd {
  using Numbers = SgdRow;
  template <bool aged>
  static __device__ void apply(const SgdRow& mine, const UpdateArrays& a, const AgesThere& ages, std::int64_t i,
                               float grad, float& theta) {
    if (mine.coefficients.momentum == 0.0f) {
      sgd_update_plain(grad, theta, mine.coefficients);
      return;
    }
    bool starts = mine.first;
    if constexpr (aged) starts = age_of(ages, mine.ages, i) == 1;
    float buffer = a.first[i];
    sgd_update(grad, buffer, theta, starts, mine.coefficients);
    a.first[i] = buffer;
  }
};

template <class Optimizer, bool aged>
__global__ void __launch_bounds__(kThreads)
    update_kernel(Rows rows, const typename Optimizer::Numbers* numbers, UpdateArrays a, AgesThere ages) {
  if (skipped(a)) return;
  const Span span = span_of(rows, blockIdx.x, kEntries);
  const Row& row = rows.rows[span.row];
  const typename Optimizer::Numbers mine = numbers[span.row];
  const float clip = clip_of(a);
  with_dtype(static_cast<DType>(row.dtype), [&](auto storage) {
    using T = decltype(storage);
    T* param = reinterpret_cast<T*>(row.param);
    for (std::int64_t i = span.begin + threadIdx.x; i < span.end; i += kThreads) {
      const std::int32_t offset = a.offsets[i];
      float theta = load_theta(param, offset, a.master, i);
      Optimizer::template apply<aged>(mine, a, ages, i, a.grads[i] * clip, theta);
      store_theta(param, offset, a.master, i, theta);
    }
  });
}

// What a row takes in a plan of a gather, a merge, a sum and an update, but for the update's numbers.
constexpr std::size_t kRowRoom = 3 * (sizeof(Row) + sizeof(std::int64_t)) + 4 * sizeof(std::int64_t);

RowAges ages_of_row(const Ages* ages, std::int64_t row, std::int64_t group) {
  if (ages == nullptr) return {};
  return {ages->missed_starts[row], ages->missed_starts[row + 1], ages->places[2 * group],
          ages->places[2 * group + 1]};
}

// Plans the update of the entries of all rows.
template <class Optimizer>
void update(Plan& plan, const Row* rows, std::int64_t n, const std::vector<typename Optimizer::Numbers>& numbers,
            UpdateArrays arrays, const Ages* ages, const std::size_t* clip_at) {
  const PlannedRows table = plan_rows(plan, rows, n, kEntries);
  if (table.n_blocks == 0) return;
  const std::size_t numbers_at = plan.add(numbers.data(), n);
  const std::size_t missed_at = ages == nullptr ? 0 : plan.add(ages->missed_steps, ages->missed_starts[n]);
  const bool own_clip = clip_at != nullptr;
  const std::size_t clip = own_clip ? *clip_at : 0;
  const auto kernel = ages == nullptr ? update_kernel<Optimizer, false> : update_kernel<Optimizer, true>;
  AgesThere of_all{};
  if (ages != nullptr) of_all = {ages->chosen, nullptr, ages->now, ages->corrections1, ages->corrections2};
  plan.then([=](const Place& place, const char* there, Room&) {
    UpdateArrays mine = arrays;
    if (own_clip) mine.clip_there = within<float>(there, clip);
    AgesThere on_device = of_all;
    on_device.missed = within<std::int32_t>(there, missed_at);
    launch(kernel, grid_of(table.n_blocks), dim3(kThreads), 0, place.stream, table.on_device(there),
           within<typename Optimizer::Numbers>(there, numbers_at), mine, on_device);
  });
}

}  // namespace

void adam(Plan& plan, const Row* rows, std::int64_t n, const std::int64_t* groups_of, const std::int64_t* steps,
          const AdamGroup* groups, const UpdateArrays& arrays, const Ages* ages, const std::size_t* clip_at) {
  static_assert(kRowRoom + sizeof(AdamRow) <= kRoomPerRow, "room of a row");
  std::vector<AdamRow> numbers;
  numbers.reserve(static_cast<std::size_t>(n));
  for (std::int64_t r = 0; r < n; ++r) {
    const AdamGroup& g = groups[groups_of[r]];
    AdamRow row{coefficients_of(g), static_cast<float>(g.lr), 0.0f, 1.0f, ages_of_row(ages, r, groups_of[r])};
    if (ages == nullptr) {
      row.step_size = step_size_of(g, steps[r]);
      row.correction2 = correction2_of(g, steps[r]);
    }
    numbers.push_back(row);
  }
  update<Adam>(plan, rows, n, numbers, arrays, ages, clip_at);
}

void sgd(Plan& plan, const Row* rows, std::int64_t n, const std::int64_t* groups_of, const std::int64_t* steps,
         const SgdGroup* groups, const UpdateArrays& arrays, const Ages* ages, const std::size_t* clip_at) {
  static_assert(kRowRoom + sizeof(SgdRow) <= kRoomPerRow, "room of a row");
  std::vector<SgdRow> numbers;
  numbers.reserve(static_cast<std::size_t>(n));
  for (std::int64_t r = 0; r < n; ++r) {
    const RowAges of_row = ages_of_row(ages, r, groups_of[r]);
    numbers.push_back({coefficients_of(groups[groups_of[r]]), ages == nullptr && steps[r] == 1, of_row});
  }
  update<Sgd>(plan, rows, n, numbers, arrays, ages, clip_at);
}

}  // namespace selective::cuda

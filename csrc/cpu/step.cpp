// One optimizer step over an index list: per-row coefficients, then the ISA's kernels on pieces of entries.
#include <algorithm>
#include <cmath>
#include <vector>

#include "lists.h"
#include "parallel.h"

namespace selective {
namespace {

constexpr std::int64_t kPiece = 2048;  // entries
constexpr double kNothing = 1e-12;     // a power of beta below this no longer changes a float32 correction

struct Task {
  std::int64_t row;
  std::int64_t first;
  std::int64_t count;
};

std::vector<Task> tasks_of(const Row* rows, std::int64_t n) {
  std::vector<Task> tasks;
  for (std::int64_t r = 0; r < n; ++r) {
    for (std::int64_t i = rows[r].begin; i < rows[r].end; i += kPiece) {
      tasks.push_back({r, i, std::min(kPiece, rows[r].end - i)});
    }
  }
  return tasks;
}

// Updates that each entry has had, this step's included: 1 or more, also for an entry that claims to be from the future.
void count_ages(const Ages& ages, std::int64_t tensor, const Task& task, std::int32_t* out) {
  const std::int32_t* missed = ages.missed_steps + ages.missed_starts[tensor];
  const std::int32_t* missed_end = ages.missed_steps + ages.missed_starts[tensor + 1];
  for (std::int64_t i = 0; i < task.count; ++i) {
    const std::int32_t chosen = ages.chosen[task.first + i];
    std::int64_t age = std::int64_t{ages.now} - chosen + 1;
    if (missed != missed_end) age -= missed_end - std::lower_bound(missed, missed_end, chosen);
    out[i] = static_cast<std::int32_t>(std::clamp<std::int64_t>(age, 1, std::int64_t{ages.now} + 1));
  }
}

// lr / (1 - beta1^age) and sqrt(1 - beta2^age) for ages up to max_age, or to where both stop changing.
struct AgeTable {
  std::vector<float> step_sizes{0.0f};
  std::vector<float> corrections2{1.0f};

  AgeTable(const AdamGroup& g, std::int64_t max_age) {
    double power1 = 1.0;
    double power2 = 1.0;
    for (std::int64_t age = 1; age <= max_age; ++age) {
      power1 *= g.beta1;
      power2 *= g.beta2;
      step_sizes.push_back(static_cast<float>(g.lr / (1.0 - power1)));
      corrections2.push_back(static_cast<float>(std::sqrt(1.0 - power2)));
      if (power1 < kNothing && power2 < kNothing) break;
    }
  }
};

struct Scratch {
  std::int32_t ages[kPiece];
};

template <class Span, class Kernel>
void run(const Row* rows, std::int64_t n, const std::vector<Span>& spans, const EntryArrays& arrays, const Ages* ages,
         int threads, Kernel&& kernel) {
  const std::vector<Task> tasks = tasks_of(rows, n);
  parallel_for(
      static_cast<std::int64_t>(tasks.size()), threads, [] { return Scratch(); },
      [&](Scratch& scratch, std::int64_t i) {
        const Task& task = tasks[static_cast<std::size_t>(i)];
        Span span = spans[static_cast<std::size_t>(task.row)];
        span.offsets = arrays.offsets + task.first;
        span.grads = arrays.grads + task.first;
        span.master = span.dtype == DType::float32 ? nullptr : arrays.master + task.first;
        span.count = task.count;
        if (ages != nullptr) {
          count_ages(*ages, rows[task.row].id, task, scratch.ages);
          span.ages = scratch.ages;
        }
        kernel(span, task.first);
      },
      [](Scratch&) {});
}

}  // namespace

void adam_list(const Row* rows, std::int64_t n, const std::int64_t* groups_of, const std::int64_t* steps,
               const AdamGroup* groups, std::int64_t n_groups, const EntryArrays& arrays, const Ages* ages,
               float clip, int threads) {
  std::vector<AgeTable> tables;
  for (std::int64_t g = 0; ages != nullptr && g < n_groups; ++g) tables.emplace_back(groups[g], ages->now + 1);
  std::vector<AdamSpan> spans(static_cast<std::size_t>(n));
  for (std::int64_t r = 0; r < n; ++r) {
    const AdamGroup& group = groups[groups_of[r]];
    AdamSpan& span = spans[static_cast<std::size_t>(r)];
    span.param = reinterpret_cast<void*>(rows[r].param);
    span.dtype = static_cast<DType>(rows[r].dtype);
    span.clip = clip;
    span.coefficients = coefficients_of(group);
    if (ages != nullptr) {
      const AgeTable& table = tables[static_cast<std::size_t>(groups_of[r])];
      span.step_sizes = table.step_sizes.data();
      span.corrections2 = table.corrections2.data();
      span.max_age = static_cast<std::int32_t>(table.step_sizes.size()) - 1;
    } else {
      span.step_size = step_size_of(group, steps[r]);
      span.correction2 = correction2_of(group, steps[r]);
    }
  }
  run(rows, n, spans, arrays, ages, threads, [&](AdamSpan& span, std::int64_t first) {
    span.exp_avg = arrays.exp_avg + first;
    span.exp_avg_sq = arrays.exp_avg_sq + first;
    kernels().adam(span);
  });
}

void sgd_list(const Row* rows, std::int64_t n, const std::int64_t* groups_of, const std::int64_t* steps,
              const SgdGroup* groups, const EntryArrays& arrays, const Ages* ages, float clip, int threads) {
  std::vector<SgdSpan> spans(static_cast<std::size_t>(n));
  for (std::int64_t r = 0; r < n; ++r) {
    const SgdGroup& group = groups[groups_of[r]];
    SgdSpan& span = spans[static_cast<std::size_t>(r)];
    span.param = reinterpret_cast<void*>(rows[r].param);
    span.dtype = static_cast<DType>(rows[r].dtype);
    span.clip = clip;
    span.first = ages == nullptr && steps[r] == 1;
    span.coefficients = coefficients_of(group);
  }
  run(rows, n, spans, arrays, ages, threads, [&](SgdSpan& span, std::int64_t first) {
    span.buffer = span.coefficients.momentum == 0.0f ? nullptr : arrays.exp_avg + first;
    kernels().sgd(span);
  });
}

}  // namespace selective

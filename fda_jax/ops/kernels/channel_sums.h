// The sums of batch normalisation.

#pragma once

#include "common.h"

namespace {

// Rows that one item sums, and the widest row that it sums at once.
constexpr int64_t kRows = 2048, kWidth = 4 * kLanes;

// Adds a and a * b over `rows` rows of a column of kVectors vectors.
template <int kVectors>
void add_columns(const float* a, const float* b, int64_t rows, int64_t step, float* sum_a,
                 float* sum_ab) {
  Vector sums[kVectors] = {}, products[kVectors] = {};
  for (int64_t r = 0; r < rows; ++r, a += step, b += step) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const Vector value = load(a + v * kLanes);
      sums[v] += value;
      products[v] += value * load(b + v * kLanes);
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    store(sum_a + v * kLanes, sums[v]);
    store(sum_ab + v * kLanes, products[v]);
  }
}

// (sum of a, sum of a * b) over all axes but the last, in one reading. The parts and the order in
// which they are added do not depend on the number of threads; they are added in double precision.
ffi::Error channel_sums(ffi::ThreadPool pool, Array a, Array b, Result sums) {
  const int64_t channels = sums->dimensions()[1], size = a.element_count();
  // Narrow rows are read a few at a time, as one row.
  int64_t folds = 1;
  while (channels * folds * 2 <= kWidth && size % (channels * folds * 2) == 0) folds *= 2;
  const int64_t width = channels * folds, rows = size / width;
  const int64_t items = (rows + kRows - 1) / kRows;
  Floats parts(items * 2 * width);
  parallel_for(pool, items, [&](int64_t item) {
    const int64_t first = item * kRows, count = std::min(kRows, rows - first);
    float* part = &parts[item * 2 * width];
    for (int64_t c = 0; c < width;) {
      const float* from_a = a.typed_data() + first * width + c;
      const float* from_b = b.typed_data() + first * width + c;
      const bool wide = width - c >= kWidth;
      (wide ? add_columns<4> : add_columns<1>)(from_a, from_b, count, width, part + c,
                                               part + width + c);
      c += wide ? kWidth : kLanes;
    }
  });
  for (int64_t s = 0; s < 2; ++s) {
    for (int64_t c = 0; c < channels; ++c) {
      double total = 0;
      for (int64_t item = 0; item < items; ++item)
        for (int64_t f = 0; f < folds; ++f)
          total += parts[(item * 2 + s) * width + f * channels + c];
      sums->typed_data()[s * channels + c] = static_cast<float>(total);
    }
  }
  return ffi::Error::Success();
}

}  // namespace

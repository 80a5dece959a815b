// The noise module's perceptron, and its gradient.

#pragma once

#include <algorithm>
#include <type_traits>

#include "common.h"

namespace {

// A perceptron relu(x W1) W2 whose hidden layer fits a vector. Rows that are handled at once, and
// numbers of x in the rows that one item handles.
constexpr int kTogether = 8;
constexpr int64_t kNumbers = 1 << 15;

// (width, hidden) as rows of a vector each, the rest zeros; `at(i, j)` is a weight.
template <class At>
Floats as_vectors(int64_t width, int64_t hidden, const At& at) {
  Floats padded(width * kLanes, 0.f);
  for (int64_t i = 0; i < width; ++i)
    for (int64_t j = 0; j < hidden; ++j) padded[i * kLanes + j] = at(i, j);
  return padded;
}

// hidden[r][j] = sum over i of rows[r][i] * weights[i][j]
template <int kRows>
void contract(const float* rows, int64_t width, const float* weights, Vector (&hidden)[kRows]) {
  for (int r = 0; r < kRows; ++r) hidden[r] = Vector{};
  for (int64_t i = 0; i < width; ++i) {
    const Vector weight = load(weights + i * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) hidden[r] += rows[r * width + i] * weight;
  }
}

// rows[r][i] = sum over j of hidden[r][j] * weights[j][i]
template <int kRows>
void expand(const float (*hidden)[kLanes], int64_t count, const float* weights, int64_t width,
            float* rows) {
  for (int64_t i = 0; i < width; i += kLanes) {
    Vector sum[kRows] = {};
    for (int64_t j = 0; j < count; ++j) {
      const Vector weight = load(weights + j * width + i);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) sum[r] += hidden[r][j] * weight;
    }
    for (int r = 0; r < kRows; ++r) store(rows + r * width + i, sum[r]);
  }
}

// sums[j][i] += sum over r of hidden[r][j] * rows[r][i]
template <int kRows>
void add_products(const float (*hidden)[kLanes], int64_t count, const float* rows, int64_t width,
                  float* sums) {
  for (int64_t i = 0; i < width; i += kLanes) {
    Vector row[kRows];
    for (int r = 0; r < kRows; ++r) row[r] = load(rows + r * width + i);
    for (int64_t j = 0; j < count; ++j) {
      Vector sum = load(sums + j * width + i);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) sum += hidden[r][j] * row[r];
      store(sums + j * width + i, sum);
    }
  }
}

// Calls block(first row, a constant number of rows) for all rows of each item.
template <class Start, class Block>
void for_rows(ffi::ThreadPool& pool, int64_t rows, int64_t rows_of_item, const Start& start,
              const Block& block) {
  parallel_for(pool, (rows + rows_of_item - 1) / rows_of_item, [&](int64_t item) {
    auto state = start(item);
    const int64_t end = std::min(rows, (item + 1) * rows_of_item);
    int64_t row = item * rows_of_item;
    for (; row + kTogether <= end; row += kTogether)
      block(state, row, std::integral_constant<int, kTogether>());
    for (; row < end; ++row) block(state, row, std::integral_constant<int, 1>());
  });
}

// x (rows, width), w1 (width, hidden), w2 (hidden, width)
ffi::Error perceptron(ffi::ThreadPool pool, Array x, Array w1, Array w2, Result y) {
  const int64_t rows = x.dimensions()[0], width = x.dimensions()[1], hidden = w2.dimensions()[0];
  const float* from = w1.typed_data();
  const auto first =
      as_vectors(width, hidden, [&](int64_t i, int64_t j) { return from[i * hidden + j]; });
  const auto nothing = [](int64_t) { return 0; };
  for_rows(pool, rows, std::max<int64_t>(kNumbers / width, 1), nothing,
           [&](int, int64_t row, auto count) {
             Vector sums[count];
             alignas(Vector) float active[count][kLanes];
             contract<count>(x.typed_data() + row * width, width, first.data(), sums);
             for (int r = 0; r < count; ++r)  // a NaN stays one
               store(active[r], sums[r] <= 0 ? Vector{} : sums[r]);
             expand<count>(active, hidden, w2.typed_data(), width, y->typed_data() + row * width);
           });
  return ffi::Error::Success();
}

// From the cotangent g of the result: dx, and the transpose of dw1 beside dw2, (2, hidden, width).
// The items do not depend on the number of threads, and their sums are added in order.
ffi::Error perceptron_gradient(ffi::ThreadPool pool, Array x, Array w1, Array w2, Array g,
                               Result dx, Result dw) {
  const int64_t rows = x.dimensions()[0], width = x.dimensions()[1], hidden = w2.dimensions()[0];
  const float *from1 = w1.typed_data(), *from2 = w2.typed_data();
  const auto first =
      as_vectors(width, hidden, [&](int64_t i, int64_t j) { return from1[i * hidden + j]; });
  const auto second =
      as_vectors(width, hidden, [&](int64_t i, int64_t j) { return from2[j * width + i]; });
  Floats back(hidden * width);
  for (int64_t i = 0; i < width; ++i)
    for (int64_t j = 0; j < hidden; ++j) back[j * width + i] = from1[i * hidden + j];
  const int64_t size = hidden * width, rows_of_item = std::max<int64_t>(kNumbers / width, 1);
  const int64_t items = (rows + rows_of_item - 1) / rows_of_item;
  Floats sums(items * 2 * size, 0.f);
  for_rows(pool, rows, rows_of_item, [&](int64_t item) { return &sums[item * 2 * size]; },
           [&](float* part, int64_t row, auto count) {
             const float* rows_x = x.typed_data() + row * width;
             const float* rows_g = g.typed_data() + row * width;
             Vector inner[count], cotangent[count];
             alignas(Vector) float active[count][kLanes], passed[count][kLanes];
             contract<count>(rows_x, width, first.data(), inner);
             contract<count>(rows_g, width, second.data(), cotangent);
             for (int r = 0; r < count; ++r) {
               store(active[r], inner[r] <= 0 ? Vector{} : inner[r]);
               store(passed[r], inner[r] > 0 ? cotangent[r] : Vector{});
             }
             expand<count>(passed, hidden, back.data(), width, dx->typed_data() + row * width);
             add_products<count>(passed, hidden, rows_x, width, part);
             add_products<count>(active, hidden, rows_g, width, part + size);
           });
  for (int64_t e = 0; e < 2 * size; ++e) {
    double total = 0;
    for (int64_t item = 0; item < items; ++item) total += sums[item * 2 * size + e];
    dw->typed_data()[e] = static_cast<float>(total);
  }
  return ffi::Error::Success();
}

}  // namespace

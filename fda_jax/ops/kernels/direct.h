// Convolutions as the sums that define them, for every kernel, stride and padding.

#pragma once

#include <algorithm>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <vector>

#include "common.h"

namespace {
namespace direct {

typedef float Quad __attribute__((vector_size(16), aligned(sizeof(float)), may_alias));

inline Quad load_quad(const float* p) { return *reinterpret_cast<const Quad*>(p); }
inline void store_quad(float* p, Quad v) { *reinterpret_cast<Quad*>(p) = v; }

// Elements of the pair (a, b): 0 to 3 are a's, 4 to 7 are b's.
template <int i, int j, int k, int l>
inline Quad pick(Quad a, Quad b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, i, j, k, l);
#else
  typedef int Indices __attribute__((vector_size(16)));
  return __builtin_shuffle(a, b, Indices{i, j, k, l});
#endif
}

// to[c * to_step + p] = from[p * from_step + c]
void transpose(const float* from, int64_t from_step, int64_t pixels, int64_t channels, float* to,
               int64_t to_step) {
  const int64_t whole_pixels = pixels & ~3, whole_channels = channels & ~3;
  for (int64_t p = 0; p < whole_pixels; p += 4) {
    const float* pixel = from + p * from_step;
    for (int64_t c = 0; c < whole_channels; c += 4) {
      const Quad v0 = load_quad(pixel + c), v1 = load_quad(pixel + from_step + c);
      const Quad v2 = load_quad(pixel + 2 * from_step + c);
      const Quad v3 = load_quad(pixel + 3 * from_step + c);
      const Quad low01 = pick<0, 4, 1, 5>(v0, v1), high01 = pick<2, 6, 3, 7>(v0, v1);
      const Quad low23 = pick<0, 4, 1, 5>(v2, v3), high23 = pick<2, 6, 3, 7>(v2, v3);
      float* row = to + c * to_step + p;
      store_quad(row, pick<0, 1, 4, 5>(low01, low23));
      store_quad(row + to_step, pick<2, 3, 6, 7>(low01, low23));
      store_quad(row + 2 * to_step, pick<0, 1, 4, 5>(high01, high23));
      store_quad(row + 3 * to_step, pick<2, 3, 6, 7>(high01, high23));
    }
  }
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t c = p < whole_pixels ? whole_channels : 0; c < channels; ++c)
      to[c * to_step + p] = from[p * from_step + c];
}

// Some taps of the kernel that read neighbouring pixels of a row: where the first reads, in rows and
// columns of the input with its border, and their numbers.
struct Strip {
  int64_t row, column;
  std::vector<int64_t> taps;
};

// Output pixels that see the same taps: (y + step * i, x + step * j) for i < rows, j < cols.
struct Phase {
  int64_t y, x, rows, cols;
  int64_t together;  // taps of a strip
  std::vector<Strip> strips;
};

// Taps that a tile handles at once.
constexpr int64_t kMostTaps = 3;

// `taps` of a kernel's row, which read the neighbouring pixels column, column + 1, ...
void add_strips(Phase& phase, int64_t row, int64_t column, const std::vector<int64_t>& taps) {
  const int64_t count = taps.size();
  phase.together = count <= kMostTaps ? count : 1;
  for (int64_t t = 0; t < count; t += phase.together)
    phase.strips.push_back(
        {row, column + t, {taps.begin() + t, taps.begin() + t + phase.together}});
}

// Sums that a tile keeps in registers, and input channels that it adds up at once: their weights
// stay in the second-level cache.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kSums = 16;
#else
constexpr int kSums = 8;
#endif
constexpr int64_t kDepth = 256;

// What a tile reads and writes. An image with its border lies row by row, in each row channel by
// channel: (height, channels, width).
struct TileSteps {
  int64_t image_row, image_channel;    // in floats
  int64_t result_row, result_column;  // of neighbouring pixels of the phase
};

// kRows x kPixels output pixels, kLanes outputs each:
// out[p] += sum over strips, inputs and taps of image[step * p + tap][input] * weights.
template <int kRows, int kPixels, int kTaps, int kStep>
void tile(const float* image, const std::vector<Strip>& strips, const TileSteps& by,
          int64_t channels, const float* weights, float* result, bool is_first) {
  const int64_t down = kStep * by.image_row, deep = by.image_channel;
  Vector sum[kRows][kPixels] = {};
  if (!is_first) {
    for (int r = 0; r < kRows; ++r)
      for (int p = 0; p < kPixels; ++p)
        sum[r][p] = load(result + r * by.result_row + p * by.result_column);
  }
  for (const Strip& strip : strips) {
    const float* pixel = image + strip.row * by.image_row + strip.column;
    for (int64_t i = 0; i < channels; ++i, pixel += deep) {
#pragma GCC unroll 4
      for (int t = 0; t < kTaps; ++t, weights += kLanes) {
        const Vector weight = load(weights);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
          for (int p = 0; p < kPixels; ++p)
            sum[r][p] += pixel[r * down + p * kStep + t] * weight;
        }
      }
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kPixels; ++p)
      store(result + r * by.result_row + p * by.result_column, sum[r][p]);
}

using Tile = decltype(&tile<1, 1, 1, 1>);

// A tile's function and its size.
struct Tiling {
  Tile tile;
  int64_t rows, pixels;
};

template <int kTaps, int kStep>
Tiling tiling_of(int64_t rows, int64_t cols) {
  if (cols >= kSums) return {tile<1, kSums, kTaps, kStep>, 1, kSums};
  if (cols >= kSums / 2 && rows >= 2) return {tile<2, kSums / 2, kTaps, kStep>, 2, kSums / 2};
  if (cols >= kSums / 4 && rows >= 4) return {tile<4, kSums / 4, kTaps, kStep>, 4, kSums / 4};
  return {tile<1, 1, kTaps, kStep>, 1, 1};
}

Tiling tiling_of(const Phase& phase, int64_t step) {
  const auto of = [&](auto taps) {
    return step == 1 ? tiling_of<taps, 1>(phase.rows, phase.cols)
                     : tiling_of<taps, 2>(phase.rows, phase.cols);
  };
  if (phase.together == 3) return of(std::integral_constant<int, 3>());
  if (phase.together == 2) return of(std::integral_constant<int, 2>());
  return of(std::integral_constant<int, 1>());
}

// What the forward pass and the gradient of the input share: an output pixel is a sum over taps of
// pixels of the input, `border` being the input's size with its border of zeros.
struct Gather {
  Shape in, border, out;
  int64_t top, left;    // of the input inside the border
  int64_t in_step;      // from one output pixel of a phase to the next, in input pixels: 1 or 2
  int64_t out_step;     // likewise, in output pixels
  std::vector<Phase> phases;

  // `weight(tap, input, output)` is a weight, and `scale` multiplies the outputs' sums, if it is
  // there.
  template <class Weight>
  void run(ffi::ThreadPool& pool, const float* images, int64_t batch, const Weight& weight,
           const float* scale, float* results) const {
    const std::vector<Floats> weights = pack(pool, weight);
    const int64_t size = border.height * border.channels * border.width;
    const int64_t pixels = out.height * out.width;
    // As many images at a time as stay in the second-level cache beside the weights.
    const int64_t together = std::clamp<int64_t>((1 << 17) / size, 1, 8);
    // A few items for each thread even out their speeds.
    const int64_t items = std::min(batch, 4 * pool.num_threads());
    parallel_for(pool, items, [&](int64_t item) {
      const int64_t end = (item + 1) * batch / items;
      Floats padded(together * size, 0.f);
      for (int64_t b = item * batch / items; b < end; b += together) {
        const int64_t count = std::min(together, end - b);
        for (int64_t i = 0; i < count; ++i)
          fill(&padded[i * size], images + (b + i) * in.height * in.width * in.channels);
        float* made = results + b * pixels * out.channels;
        for (size_t p = 0; p < phases.size(); ++p)
          one(phases[p], weights[p].data(), padded.data(), size, count, made);
        if (scale != nullptr)
          for (float* end = made + count * pixels * out.channels; made < end; made += out.channels)
            for (int64_t o = 0; o < out.channels; o += kLanes)
              store(made + o, load(made + o) * load(scale + o));
      }
    });
  }

  // The weights of each phase in the order in which its tiles read them.
  template <class Weight>
  std::vector<Floats> pack(ffi::ThreadPool& pool, const Weight& weight) const {
    const int64_t blocks = out.channels / kLanes;
    std::vector<Floats> packed;
    for (const Phase& phase : phases)
      packed.emplace_back(phase.strips.size() * phase.together * in.channels * out.channels);
    parallel_for(pool, blocks, [&](int64_t block) {
      for (size_t p = 0; p < phases.size(); ++p) {
        float* to = packed[p].data() + block * packed[p].size() / blocks;
        const int64_t deep = depth(phases[p], tiling_of(phases[p], in_step));
        for (int64_t first = 0; first < in.channels; first += deep)
          for (const Strip& strip : phases[p].strips)
            for (int64_t i = first; i < std::min(first + deep, in.channels); ++i)
              for (const int64_t tap : strip.taps)
                for (int64_t lane = 0; lane < kLanes; ++lane)
                  *to++ = weight(tap, i, block * kLanes + lane);
      }
    });
    return packed;
  }

  void fill(float* padded, const float* image) const {
    for (int64_t y = 0; y < in.height; ++y)
      transpose(image + y * in.width * in.channels, in.channels, in.width, in.channels,
                padded + (y + top) * border.channels * border.width + left, border.width);
  }

  // Input channels that are added up at once: all of them where tiles overlap, for what a tile adds
  // to an earlier sum is then added twice.
  int64_t depth(const Phase& phase, const Tiling& tiling) const {
    const bool overlap = phase.rows % tiling.rows != 0 || phase.cols % tiling.pixels != 0;
    return overlap ? in.channels : kDepth;
  }

  // The tiles of a phase. The last of a row or column ends with it and may overlap the one before.
  void one(const Phase& phase, const float* weights, const float* images, int64_t size,
           int64_t count, float* results) const {
    const Tiling tiling = tiling_of(phase, in_step);
    const TileSteps by = {border.channels * border.width, border.width,
                          out_step * out.width * out.channels, out_step * out.channels};
    const int64_t last_y = phase.rows - tiling.rows, last_x = phase.cols - tiling.pixels;
    const int64_t deep = depth(phase, tiling);
    for (int64_t o = 0; o < out.channels; o += kLanes) {
      for (int64_t first = 0; first < in.channels; first += deep) {
        const int64_t channels = std::min(deep, in.channels - first);
        for (int64_t i = 0; i < count; ++i) {
          const float* image = images + i * size + first * by.image_channel;
          float* result = results + i * out.height * out.width * out.channels +
                          (phase.y * out.width + phase.x) * out.channels + o;
          for (int64_t y = 0; y < phase.rows; y += tiling.rows) {
            const int64_t at_y = std::min(y, last_y);
            for (int64_t x = 0; x < phase.cols; x += tiling.pixels) {
              const int64_t at_x = std::min(x, last_x);
              tiling.tile(image + in_step * (at_y * by.image_row + at_x), phase.strips, by,
                          channels, weights, result + at_y * by.result_row + at_x * by.result_column,
                          first == 0);
            }
          }
        }
        weights += phase.strips.size() * phase.together * channels * kLanes;
      }
    }
  }
};

// The input with the border that the forward pass reads.
Shape border_of(const Shape& in, const Shape& out, int64_t kernel_height, int64_t kernel_width,
                int64_t stride, int64_t top, int64_t left) {
  return {std::max(in.height + top, (out.height - 1) * stride + kernel_height),
          std::max(in.width + left, (out.width - 1) * stride + kernel_width), in.channels};
}

ffi::Error forward(ffi::ThreadPool pool, Array x, Array w, const float* scale, Result y,
                   int64_t stride, int64_t top, int64_t left) {
  const auto kernel = w.dimensions();
  const Shape in = shape_of(x.dimensions()), out = shape_of(y->dimensions());
  const Shape border = border_of(in, out, kernel[0], kernel[1], stride, top, left);
  Phase all{0, 0, out.height, out.width, 1, {}};
  for (int64_t i = 0; i < kernel[0]; ++i) {
    std::vector<int64_t> taps(kernel[1]);
    std::iota(taps.begin(), taps.end(), i * kernel[1]);
    add_strips(all, i, 0, taps);
  }
  Gather{in, border, out, top, left, stride, 1, {all}}.run(
      pool, x.typed_data(), x.dimensions()[0],
      weights_of(w.typed_data(), in.channels, out.channels), scale, y->typed_data());
  return ffi::Error::Success();
}

// Gradient of the input: pixel (y, x) is reached from output (y + top - i) / stride by tap i. Pixels
// whose position leaves the same remainder see the same taps, so each remainder is a phase.
ffi::Error input_gradient(ffi::ThreadPool pool, Array g, Array w, Result dx, int64_t stride,
                          int64_t top, int64_t left) {
  const auto kernel = w.dimensions();
  const Shape in = shape_of(g.dimensions()), out = shape_of(dx->dimensions());
  // Before and behind the cotangent lie as many zeros as a tap may reach.
  const Shape border = {
      kernel[0] + std::max(in.height, (out.height + top) / stride + 1) + kernel[0],
      kernel[1] + std::max(in.width, (out.width + left) / stride + 1) + kernel[1], in.channels};
  std::vector<Phase> phases;
  for (int64_t a = 0; a < std::min(stride, out.height); ++a) {
    for (int64_t b = 0; b < std::min(stride, out.width); ++b) {
      Phase phase{a, b, (out.height - a + stride - 1) / stride,
                  (out.width - b + stride - 1) / stride, 1, {}};
      for (int64_t i = 0; i < kernel[0]; ++i) {
        if ((a + top - i) % stride != 0) continue;
        std::vector<int64_t> taps;
        int64_t column = 0;
        for (int64_t j = kernel[1] - 1; j >= 0; --j) {  // the last reads the first column
          if ((b + left - j) % stride != 0) continue;
          if (taps.empty()) column = kernel[1] + (b + left - j) / stride;
          taps.push_back(i * kernel[1] + j);
        }
        if (!taps.empty()) add_strips(phase, kernel[0] + (a + top - i) / stride, column, taps);
      }
      phases.push_back(std::move(phase));
    }
  }
  Gather{in, border, out, kernel[0], kernel[1], 1, stride, phases}.run(
      pool, g.typed_data(), g.dimensions()[0],
      transposed_weights_of(w.typed_data(), in.channels, out.channels), nullptr,
      dx->typed_data());
  return ffi::Error::Success();
}

// Input channels of a tile of the weights' gradient, which lie side by side.
constexpr int64_t kBlock = 4;

// What a tile of the weights' gradient reads and writes, in floats.
struct GradientSteps {
  int64_t image, row, pixel;         // of the input, for neighbours of the output
  int64_t tap, channel, channels;    // of the gradients, and how many channels there are
};

// kTaps x kBlock x kVectors vectors of gradients in registers, over all pixels of some images.
template <int kTaps, int kVectors>
void gradient_tile(const float* images, const float* cotangent, int64_t count, int64_t rows,
                   int64_t cols, float* gradient, const GradientSteps& by) {
  for (int t = 0; t < kTaps; ++t)
    for (int64_t c = 0; c < by.channels; ++c)
      for (int v = 0; v < kVectors; ++v)
        __builtin_prefetch(gradient + t * by.tap + c * by.channel + v * kLanes, 1);
  Vector sum[kTaps][kBlock][kVectors] = {};
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t y = 0; y < rows; ++y) {
      const float* pixel = images + i * by.image + y * by.row;
      for (int64_t x = 0; x < cols; ++x, pixel += by.pixel, cotangent += kVectors * kLanes) {
        Vector row[kVectors];
        for (int v = 0; v < kVectors; ++v) row[v] = load(cotangent + v * kLanes);
#pragma GCC unroll 4
        for (int t = 0; t < kTaps; ++t) {
#pragma GCC unroll 4
          for (int c = 0; c < kBlock; ++c) {
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v) sum[t][c][v] += pixel[t * kBlock + c] * row[v];
          }
        }
      }
    }
  }
  for (int t = 0; t < kTaps; ++t) {
    for (int64_t c = 0; c < by.channels; ++c) {
      for (int v = 0; v < kVectors; ++v) {
        float* to = gradient + t * by.tap + c * by.channel + v * kLanes;
        store(to, load(to) + sum[t][c][v]);
      }
    }
  }
}

template <int kVectors>
auto gradient_tile_of(int64_t taps) {
  if (taps == 3) return gradient_tile<3, kVectors>;
  return taps == 2 ? gradient_tile<2, kVectors> : gradient_tile<1, kVectors>;
}

// Copies kBlock channels of each pixel, or as many as there are.
void copy_block(float* to, const float* from, int64_t from_step, int64_t channels, int64_t pixels) {
  for (int64_t p = 0; p < pixels; ++p, to += kBlock, from += from_step) {
    if (channels == kBlock) {
      store_quad(to, load_quad(from));
    } else {
      std::copy_n(from, channels, to);
    }
  }
}
static_assert(kBlock == 4);

// Gradient of the weights. Narrow ones are summed over some parts of the batch, and then over the
// parts; of wide ones a thread owns some blocks of input channels and rows of taps. The parts do not
// depend on the number of threads, so neither does the result.
ffi::Error weight_gradient(ffi::ThreadPool pool, Array x, Array g, Result dw, int64_t stride,
                           int64_t top, int64_t left) {
  const auto kernel = dw->dimensions();
  const int64_t batch = x.dimensions()[0], kernel_rows = kernel[0], kernel_cols = kernel[1];
  const Shape in = shape_of(x.dimensions()), out = shape_of(g.dimensions());
  const Shape border = border_of(in, out, kernel_rows, kernel_cols, stride, top, left);
  const int64_t pixels = out.height * out.width, plane = border.height * border.width * kBlock;
  const int64_t taps = kernel_cols <= kMostTaps ? kernel_cols : 1;
  const bool is_double = kSums == 16 && out.channels % (2 * kLanes) == 0;
  const auto tile = is_double ? gradient_tile_of<2>(taps) : gradient_tile_of<1>(taps);
  const int64_t width = (is_double ? 2 : 1) * kLanes;
  const int64_t size = dw->element_count();
  int64_t parts = 1;  // a power of two: threads come in even numbers
  while (parts < 16 && 2 * parts <= batch && 2 * parts * size <= 1 << 20) parts *= 2;
  const int64_t units = (in.channels + kBlock - 1) / kBlock * kernel_rows;
  // Two items for each thread even out their speeds; every share reads the whole cotangent.
  const int64_t shares = std::min(units, (2 * pool.num_threads() + parts - 1) / parts);
  Floats sums(parts > 1 ? parts * size : 0, 0.f);
  if (parts == 1) std::memset(dw->typed_data(), 0, dw->size_bytes());
  parallel_for(pool, parts * shares, [&](int64_t item) {
    const int64_t part = item / shares, share = item % shares;
    const int64_t begin = share * units / shares, end = (share + 1) * units / shares;
    const int64_t first = begin / kernel_rows, blocks = (end - 1) / kernel_rows + 1 - first;
    const int64_t last_image = (part + 1) * batch / parts;
    float* gradients = parts > 1 ? &sums[part * size] : dw->typed_data();
    // Some images at a time, so that the gradients are fetched and stored once for all of them; as
    // many as mostly stay in the second-level cache, whatever the share, which must not matter.
    const int64_t together = std::clamp<int64_t>(768 / pixels, 1, (batch + parts - 1) / parts);
    Floats padded(together * blocks * plane, 0.f);
    Floats cotangents(together * pixels * width);
    for (int64_t b = part * batch / parts; b < last_image; b += together) {
      const int64_t count = std::min(together, last_image - b);
      for (int64_t i = 0; i < count; ++i) {
        const float* image = x.typed_data() + (b + i) * in.height * in.width * in.channels;
        for (int64_t y = 0; y < in.height; ++y) {
          float* row = &padded[i * blocks * plane + ((y + top) * border.width + left) * kBlock];
          for (int64_t k = 0; k < blocks; ++k) {
            const int64_t c = (first + k) * kBlock;
            copy_block(row + k * plane, image + y * in.width * in.channels + c, in.channels,
                       std::min(kBlock, in.channels - c), in.width);
          }
        }
      }
      for (int64_t o = 0; o < out.channels; o += width) {
        const float* cotangent = g.typed_data() + b * pixels * out.channels + o;
        if (out.channels != width) {
          for (int64_t p = 0; p < count * pixels; ++p)
            for (int64_t v = 0; v < width; v += kLanes)
              store(&cotangents[p * width + v], load(cotangent + p * out.channels + v));
          cotangent = cotangents.data();
        }
        for (int64_t unit = begin; unit < end; ++unit) {
          const int64_t row = unit % kernel_rows, k = unit / kernel_rows - first;
          const int64_t c = (first + k) * kBlock;
          const GradientSteps by = {blocks * plane, stride * border.width * kBlock, stride * kBlock,
                                    in.channels * out.channels, out.channels,
                                    std::min(kBlock, in.channels - c)};
          for (int64_t t = 0; t < kernel_cols; t += taps)
            tile(&padded[k * plane + (row * border.width + t) * kBlock], cotangent, count,
                 out.height, out.width,
                 gradients + ((row * kernel_cols + t) * in.channels + c) * out.channels + o, by);
        }
      }
    }
  });
  if (parts > 1)
    for (int64_t e = 0; e < size; ++e) {
      float sum = 0;
      for (int64_t part = 0; part < parts; ++part) sum += sums[part * size + e];
      dw->typed_data()[e] = sum;
    }
  return ffi::Error::Success();
}

}  // namespace direct
}  // namespace

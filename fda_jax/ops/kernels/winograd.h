// Convolutions with 3 x 3 kernels at stride 1 by Winograd's minimal filtering, F(2 x 2, 3 x 3) [Lavin
// & Gray, Fast Algorithms for Convolutional Neural Networks, 2016]: 16 products for the four outputs
// of a tile where the sums that define them take 36.
//
// Along one axis a tile reads 4 numbers d of the input, multiplies them by 4 combinations of the
// kernel's 3, and makes 2 outputs of the products: y = A' ((G g) * (B' d)), ' being the transpose.
// The gradient of the kernel is the transpose of that in g, G' ((A y) * (B' d)); the gradient of the
// input is the convolution with the kernel reversed. Products of integers, as binary networks have
// them, come out without rounding: G makes quarters of them.

#pragma once

#include <algorithm>
#include <vector>

#include "common.h"

namespace {
namespace winograd {

// The places of a transformed tile. For each the convolution is a matrix product over channels, or
// over tiles where it makes the gradient of the kernel.
constexpr int kPlaces = 16;
constexpr int kSquare = kLanes * kLanes;

// B' d, G g, A' m and their transposes, of the numbers along one axis.
inline void of_input(const Vector* d, Vector* to) {
  to[0] = d[0] - d[2], to[1] = d[1] + d[2], to[2] = d[2] - d[1], to[3] = d[1] - d[3];
}
inline void of_kernel(const Vector* g, Vector* to) {
  const Vector ends = (g[0] + g[2]) * 0.5f, middle = g[1] * 0.5f;
  to[0] = g[0], to[1] = ends + middle, to[2] = ends - middle, to[3] = g[2];
}
inline void to_output(const Vector* m, Vector* to) {
  to[0] = m[0] + m[1] + m[2], to[1] = m[1] - m[2] - m[3];
}
inline void of_cotangent(const Vector* y, Vector* to) {
  to[0] = y[0], to[1] = y[0] + y[1], to[2] = y[0] - y[1], to[3] = -y[1];
}
inline void to_kernel(const Vector* m, Vector* to) {
  const Vector middle = (m[1] + m[2]) * 0.5f;
  to[0] = m[0] + middle, to[1] = (m[1] - m[2]) * 0.5f, to[2] = middle + m[3];
}

// One of these along both axes.
template <void (*line)(const Vector*, Vector*), int kFrom, int kTo>
inline void both_axes(const Vector (&from)[kFrom][kFrom], Vector (&to)[kTo][kTo]) {
  Vector half[kFrom][kTo];
  for (int i = 0; i < kFrom; ++i) line(from[i], half[i]);
  for (int j = 0; j < kTo; ++j) {
    Vector column[kFrom], made[kTo];
    for (int i = 0; i < kFrom; ++i) column[i] = half[i][j];
    line(column, made);
    for (int i = 0; i < kTo; ++i) to[i][j] = made[i];
  }
}

// A transformed tile's places, `step` floats apart.
inline void store_places(const Vector (&from)[4][4], float* to, int64_t step) {
  for (int place = 0; place < kPlaces; ++place)
    store(to + place * step, from[place / 4][place % 4]);
}

// Images in tiles of 2 x 2 outputs, which begin at the upper left; the last may reach beyond the edge.
struct Tiles {
  Shape in, out;
  int64_t top, left;  // zeros before the input
  int64_t batch;

  int64_t rows() const { return (out.height + 1) / 2; }
  int64_t cols() const { return (out.width + 1) / 2; }
  int64_t count() const { return batch * rows() * cols(); }
};

// Where a tile's kSide x kSide pixels lie: inside the image, or at `beyond`. Behind the last tile all
// lie there.
template <class Float, int kSide>
struct Pixels {
  Float* at[kSide][kSide];

  Pixels(Float* images, const Shape& shape, const Tiles& tiles, int64_t tile, int64_t top,
         int64_t left, Float* beyond) {
    const int64_t image = tile / (tiles.rows() * tiles.cols());
    const int64_t first_y = 2 * (tile / tiles.cols() % tiles.rows()) - top;
    const int64_t first_x = 2 * (tile % tiles.cols()) - left;
    for (int i = 0; i < kSide; ++i) {
      for (int j = 0; j < kSide; ++j) {
        const int64_t y = first_y + i, x = first_x + j;
        const bool is_inside =
            image < tiles.batch && y >= 0 && y < shape.height && x >= 0 && x < shape.width;
        at[i][j] = is_inside
                       ? images + ((image * shape.height + y) * shape.width + x) * shape.channels
                       : beyond;
      }
    }
  }

  void read(int64_t channel, Vector (&to)[kSide][kSide]) const {
    for (int i = 0; i < kSide; ++i)
      for (int j = 0; j < kSide; ++j) to[i][j] = load(at[i][j] + channel);
  }

  void write(int64_t channel, const Vector (&from)[kSide][kSide]) const {
    for (int i = 0; i < kSide; ++i)
      for (int j = 0; j < kSide; ++j) store(at[i][j] + channel, from[i][j]);
  }
};

// Writes the transform of kLanes channels of a tile.
template <void (*line)(const Vector*, Vector*), int kSide>
inline void transform(const Pixels<const float, kSide>& pixels, int64_t channel, float* to,
                      int64_t step) {
  Vector seen[kSide][kSide], made[4][4];
  pixels.read(channel, seen);
  both_axes<line>(seen, made);
  store_places(made, to, step);
}

// The transformed kernel, (output / kLanes, place, input, kLanes); `weight(tap, input, output)`.
template <class Weight>
Floats transform_kernel(ffi::ThreadPool& pool, const Weight& weight, int64_t inputs,
                        int64_t outputs) {
  Floats made(kPlaces * inputs * outputs);
  parallel_for(pool, outputs / kLanes, [&](int64_t block) {
    for (int64_t i = 0; i < inputs; ++i) {
      alignas(Vector) float taps[9][kLanes];
      for (int t = 0; t < 9; ++t)
        for (int lane = 0; lane < kLanes; ++lane)
          taps[t][lane] = weight(t, i, block * kLanes + lane);
      Vector kernel[3][3], to[4][4];
      for (int t = 0; t < 9; ++t) kernel[t / 3][t % 3] = load(taps[t]);
      both_axes<of_kernel>(kernel, to);
      store_places(to, &made[(block * kPlaces * inputs + i) * kLanes], inputs * kLanes);
    }
  });
  return made;
}

// out[tile] = sum over blocks and channels of tiles[block][tile][channel] * weights[block][channel]
inline void multiply(const float* tiles, int64_t blocks, const float* weights, float* out) {
  Vector sum[kLanes] = {};
  for (int64_t block = 0; block < blocks; ++block, tiles += kSquare) {
    for (int c = 0; c < kLanes; ++c, weights += kLanes) {
      const Vector weight = load(weights);
#pragma GCC unroll 16
      for (int t = 0; t < kLanes; ++t) sum[t] += tiles[t * kLanes + c] * weight;
    }
  }
  for (int t = 0; t < kLanes; ++t) store(out + t * kLanes, sum[t]);
}

// The forward pass; `weight(tap, input, output)` is the kernel, and `scale` multiplies the outputs'
// sums, if it is there. Tiles go in groups of kLanes; some groups, transformed, and their products
// for kLanes outputs stay in the second-level cache.
template <class Weight>
void convolve(ffi::ThreadPool& pool, const Tiles& tiles, const float* images, const Weight& weight,
              const float* scale, float* results) {
  const Shape &in = tiles.in, &out = tiles.out;
  const int64_t blocks = in.channels / kLanes, size = kPlaces * kLanes * in.channels;
  const Floats kernel = transform_kernel(pool, weight, in.channels, out.channels);
  const Floats zeros(in.channels, 0.f);
  const int64_t groups = (tiles.count() + kLanes - 1) / kLanes;
  const int64_t together = std::max<int64_t>((1 << 16) / size, 2);
  // A few items for each thread even out their speeds.
  const int64_t items = std::min(groups, 4 * pool.num_threads());
  parallel_for(pool, items, [&](int64_t item) {
    Floats seen(together * size), products(together * kPlaces * kSquare), beyond(out.channels);
    std::vector<Pixels<float, 2>> made;
    const int64_t end = (item + 1) * groups / items;
    for (int64_t first = item * groups / items; first < end; first += together) {
      const int64_t count = std::min(together, end - first);
      made.clear();
      for (int64_t t = 0; t < count * kLanes; ++t) {
        const int64_t tile = first * kLanes + t;
        made.emplace_back(results, out, tiles, tile, 0, 0, beyond.data());
        const Pixels<const float, 4> pixels(images, in, tiles, tile, tiles.top, tiles.left,
                                            zeros.data());
        float* to = &seen[t / kLanes * size + t % kLanes * kLanes];
        for (int64_t b = 0; b < blocks; ++b)
          transform<of_input>(pixels, b * kLanes, to + b * kSquare, blocks * kSquare);
      }
      for (int64_t o = 0; o < out.channels; o += kLanes) {
        const float* weights = &kernel[o * kPlaces * in.channels];
        for (int place = 0; place < kPlaces; ++place, weights += in.channels * kLanes)
          for (int64_t g = 0; g < count; ++g)
            multiply(&seen[g * size + place * blocks * kSquare], blocks, weights,
                     &products[(g * kPlaces + place) * kSquare]);
        for (int64_t t = 0; t < count * kLanes; ++t) {
          const float* from = &products[t / kLanes * kPlaces * kSquare + t % kLanes * kLanes];
          Vector m[4][4], y[2][2];
          for (int place = 0; place < kPlaces; ++place)
            m[place / 4][place % 4] = load(from + place * kSquare);
          both_axes<to_output>(m, y);
          if (scale != nullptr)
            for (auto& row : y)
              for (Vector& sum : row) sum *= load(scale + o);
          made[t].write(o, y);
        }
      }
    }
  });
}

// sums[input][output] += sum over tiles of inputs[tile][input] * outputs[tile][output], for kLanes of
// both.
inline void multiply_add(const float* inputs, const float* outputs, int64_t tiles, float* sums) {
  Vector sum[kLanes];
  for (int i = 0; i < kLanes; ++i) sum[i] = load(sums + i * kLanes);
  for (int64_t t = 0; t < tiles; ++t, inputs += kLanes, outputs += kLanes) {
    const Vector output = load(outputs);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) sum[i] += inputs[i] * output;
  }
  for (int i = 0; i < kLanes; ++i) store(sums + i * kLanes, sum[i]);
}

// Tiles that are transformed at once for the gradient of the kernel.
constexpr int64_t kTogether = 64;

// Gradient of the kernel. Of a part of the batch a thread owns some input channels; the parts do not
// depend on the number of threads, so neither does the result.
inline void kernel_gradient(ffi::ThreadPool& pool, const Tiles& tiles, const float* images,
                            const float* cotangents, float* dw) {
  const Shape &in = tiles.in, &out = tiles.out;
  const int64_t in_blocks = in.channels / kLanes, out_blocks = out.channels / kLanes;
  const int64_t size = kPlaces * in.channels * out.channels, count = tiles.count();
  int64_t parts = 1;  // a power of two: threads come in even numbers
  while (parts < 16 && 2 * parts * kTogether <= count && 2 * parts * size <= 1 << 21) parts *= 2;
  // Two items for each thread even out their speeds; every share transforms the whole cotangent.
  const int64_t shares = std::min(in_blocks, (2 * pool.num_threads() + parts - 1) / parts);
  Floats sums(parts * size, 0.f);  // (part, input / kLanes, place, output / kLanes, square)
  const Floats zeros(std::max(in.channels, out.channels), 0.f);
  parallel_for(pool, parts * shares, [&](int64_t item) {
    const int64_t part = item / shares, share = item % shares;
    const int64_t begin = share * in_blocks / shares;
    const int64_t blocks = (share + 1) * in_blocks / shares - begin;
    const int64_t last = (part + 1) * count / parts;
    Floats inputs(kPlaces * kTogether * blocks * kLanes);
    Floats outputs(kPlaces * kTogether * out.channels);
    for (int64_t first = part * count / parts; first < last; first += kTogether) {
      const int64_t now = std::min(kTogether, last - first);
      for (int64_t t = 0; t < now; ++t) {
        const Pixels<const float, 4> seen(images, in, tiles, first + t, tiles.top, tiles.left,
                                          zeros.data());
        for (int64_t b = 0; b < blocks; ++b)
          transform<of_input>(seen, (begin + b) * kLanes,
                              &inputs[(b * kPlaces * kTogether + t) * kLanes], kTogether * kLanes);
        const Pixels<const float, 2> made(cotangents, out, tiles, first + t, 0, 0, zeros.data());
        for (int64_t b = 0; b < out_blocks; ++b)
          transform<of_cotangent>(made, b * kLanes, &outputs[(b * kTogether + t) * kLanes],
                                  out_blocks * kTogether * kLanes);
      }
      for (int64_t place = 0; place < kPlaces; ++place)
        for (int64_t o = 0; o < out_blocks; ++o)
          for (int64_t b = 0; b < blocks; ++b)
            multiply_add(
                &inputs[(b * kPlaces + place) * kTogether * kLanes],
                &outputs[(place * out_blocks + o) * kTogether * kLanes], now,
                &sums[part * size + (((begin + b) * kPlaces + place) * out_blocks + o) * kSquare]);
    }
  });
  parallel_for(pool, in_blocks, [&](int64_t block) {
    for (int64_t i = 0; i < kLanes; ++i) {
      for (int64_t o = 0; o < out_blocks; ++o) {
        Vector m[4][4], taps[3][3];
        for (int64_t place = 0; place < kPlaces; ++place) {
          const float* from =
              &sums[((block * kPlaces + place) * out_blocks + o) * kSquare + i * kLanes];
          Vector sum = {};
          for (int64_t part = 0; part < parts; ++part) sum += load(from + part * size);
          m[place / 4][place % 4] = sum;
        }
        both_axes<to_kernel>(m, taps);
        float* to = dw + (block * kLanes + i) * out.channels + o * kLanes;
        for (int t = 0; t < 9; ++t) store(to + t * in.channels * out.channels, taps[t / 3][t % 3]);
      }
    }
  });
}

// Whether it takes a convolution with a kernel (height, width, inputs, outputs) and is faster: at 16
// channels the transforms cost what the products save, and as tiles reach beyond a small image, some
// outputs are none; at most two thirds of the literal sums' products must be left.
template <class Kernel>
bool suits(const Kernel& kernel, const Shape& out, int64_t stride) {
  const int64_t products = kPlaces * ((out.height + 1) / 2) * ((out.width + 1) / 2);
  const bool takes = kLanes >= 8 && kernel[0] == 3 && kernel[1] == 3 && stride == 1 &&
                     kernel[2] % kLanes == 0 && kernel[3] % kLanes == 0;
  return takes && kernel[2] >= 32 && kernel[3] >= 32 &&
         3 * products <= 2 * 9 * out.height * out.width;
}

}  // namespace winograd
}  // namespace

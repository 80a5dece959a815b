// Convolutions and channel sums of float32 images (batch, height, width, channels) for the CPU, as
// XLA custom calls.
//
// All run on the threads of the XLA program that calls them. Channels that a vector register
// holds side by side must come in whole registers (see `kLanes`); the caller sees to that.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <type_traits>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vector
    __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias));

inline Vector load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
inline void store(float* p, Vector v) { *reinterpret_cast<Vector*>(p) = v; }

// Runs items 0 .. count - 1 on the pool and on this thread. This thread takes whatever no other has
// begun, and waits only for items that run already: it cannot starve when the pool is busy.
void parallel_for(ffi::ThreadPool& pool, int64_t count, std::function<void(int64_t)> item) {
  struct Shared {
    std::function<void(int64_t)> item;
    int64_t count;
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::mutex mutex;
    std::condition_variable all_done;

    void work() {
      int64_t finished = 0;
      for (int64_t i; (i = next.fetch_add(1)) < count; ++finished) item(i);
      if (finished == 0) return;
      std::lock_guard<std::mutex> lock(mutex);
      done += finished;
      if (done == count) all_done.notify_all();
    }
  };
  auto shared = std::make_shared<Shared>();
  shared->item = std::move(item);
  shared->count = count;
  const int64_t helpers = std::min<int64_t>(count, pool.num_threads()) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule([shared] { shared->work(); });
  shared->work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all_done.wait(lock, [&] { return shared->done == shared->count; });
}

template <int kFloats>
void copy_each(float* to, int64_t to_step, const float* from, int64_t from_step, int64_t pixels) {
  for (int64_t p = 0; p < pixels; ++p, to += to_step, from += from_step)
    std::memcpy(to, from, kFloats * sizeof(float));  // of known size: a move or two
}

// Copies `size` channels of each pixel.
void copy_pixels(float* to, int64_t to_step, const float* from, int64_t from_step, int64_t size,
                 int64_t pixels) {
  if (size == to_step && size == from_step) {
    std::memcpy(to, from, pixels * size * sizeof(float));
  } else if (size == 8) {
    copy_each<8>(to, to_step, from, from_step, pixels);
  } else if (size == 16) {
    copy_each<16>(to, to_step, from, from_step, pixels);
  } else if (size == 32) {
    copy_each<32>(to, to_step, from, from_step, pixels);
  } else {
    for (int64_t p = 0; p < pixels; ++p)
      std::memcpy(to + p * to_step, from + p * from_step, size * sizeof(float));
  }
}

// A few images with a border of zeros. Channels lie in blocks of `block`, each block's image whole:
// (image, block, height, width, block). `pitch` >= block is the distance of two pixels.
struct Padded {
  int64_t height, width, channels, block, pitch;
  std::vector<float> values;

  Padded(int64_t images, int64_t height, int64_t width, int64_t channels, int64_t block,
         int64_t pitch)
      : height(height),
        width(width),
        channels(channels),
        block(block),
        pitch(pitch),
        values(images * image_size(), 0.f) {}

  int64_t block_size() const { return height * width * pitch; }
  int64_t image_size() const { return channels / block * block_size(); }

  // Copies channels first .. first + channels - 1 of an image that has `all_channels`.
  void fill(int64_t image, const float* from, int64_t rows, int64_t cols, int64_t all_channels,
            int64_t first, int64_t top, int64_t left) {
    for (int64_t c = 0; c < channels; c += block) {
      float* to = &values[image * image_size() + c / block * block_size()];
      for (int64_t y = 0; y < rows; ++y)
        copy_pixels(to + ((y + top) * width + left) * pitch, pitch,
                    from + y * cols * all_channels + first + c, all_channels, block, cols);
    }
  }
};

// Outputs that a tile computes at once, and where they begin.
struct Group {
  int64_t first, size;
};

std::vector<Group> groups_of(int64_t outputs) {
  std::vector<Group> groups;
  for (int64_t first = 0; first < outputs;) {
    const int64_t size = outputs - first >= 2 * kLanes ? 2 * kLanes : kLanes;
    groups.push_back({first, size});
    first += size;
  }
  return groups;
}

// The weights in the order in which tiles read them: group of outputs, tap, input, output.
// `at(tap, input, output)` is a weight.
template <class At>
std::vector<float> pack(int64_t taps, int64_t inputs, int64_t outputs, At at) {
  std::vector<float> packed(taps * inputs * outputs);
  float* to = packed.data();
  for (const Group& group : groups_of(outputs))
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t i = 0; i < inputs; ++i)
        for (int64_t o = 0; o < group.size; ++o) *to++ = at(tap, i, group.first + o);
  return packed;
}

// One tap of the kernel: its number, and where it reads relative to a pixel, in floats.
struct Tap {
  int64_t number, offset;
};

// Pixels x kVectors * kLanes outputs in registers:
// out[p] = sum over taps and inputs of in[p * in_step + tap][i] * weights[tap][i].
// kStep is in_step where it is known beforehand, else 0: known offsets need no registers.
template <int kPixels, int kVectors, int kStep>
void tile(const float* in, int64_t in_step, const std::vector<Tap>& taps, const float* weights,
          int64_t inputs, float* out, int64_t out_step) {
  const int64_t step = kStep ? kStep : in_step;
  Vector sum[kPixels][kVectors] = {};
  for (const Tap& tap : taps) {
    const float* pixel = in + tap.offset;
    const float* w = weights + tap.number * inputs * kVectors * kLanes;
    for (int64_t i = 0; i < inputs; ++i, w += kVectors * kLanes) {
      Vector row[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) row[v] = load(w + v * kLanes);
#pragma GCC unroll 16
      for (int p = 0; p < kPixels; ++p) {
        const float value = pixel[p * step + i];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[p][v] += value * row[v];
      }
    }
  }
  for (int p = 0; p < kPixels; ++p)
    for (int v = 0; v < kVectors; ++v) store(out + p * out_step + v * kLanes, sum[p][v]);
}

// A row of output pixels, in tiles of the greatest size that fits.
template <int kVectors, int kStep>
void row_of_tiles(const float* in, int64_t in_step, const std::vector<Tap>& taps,
                  const float* weights, int64_t inputs, float* out, int64_t out_step,
                  int64_t pixels) {
  while (pixels > 0) {
    const auto go = [&](auto size) {
      tile<size, kVectors, kStep>(in, in_step, taps, weights, inputs, out, out_step);
      in += size * in_step;
      out += size * out_step;
      pixels -= size;
    };
    if (kVectors == 1 && pixels >= 16) {
      go(std::integral_constant<int, 16>());
    } else if (pixels >= 8) {
      go(std::integral_constant<int, 8>());
    } else if (pixels >= 4) {
      go(std::integral_constant<int, 4>());
    } else {
      go(std::integral_constant<int, 1>());
    }
  }
}

// With two vectors to an output the loop has registers to spare, and known offsets slow it down.
auto row_of_tiles_for(int64_t vectors, int64_t in_step) {
  if (vectors == 2) return row_of_tiles<2, 0>;
  return in_step == 16 ? row_of_tiles<1, 16> : row_of_tiles<1, 0>;
}

// Output pixels that see the same taps: (y + step * i, x + step * j) for i < rows, j < cols.
struct Phase {
  int64_t y, x, rows, cols;
  std::vector<Tap> taps;
};

// Height, width and channels.
struct Shape {
  int64_t height, width, channels;
};

// What the forward pass and the gradient of the input share: an output pixel is a sum over taps of
// pixels of the input, `border` being the input's size with its border of zeros.
struct Gather {
  Shape in, border, out;
  int64_t top, left;    // of the input inside the border
  int64_t in_step;      // from one output pixel of a phase to the next, in input pixels
  int64_t out_step;     // likewise, in output pixels
  std::vector<Phase> phases;

  // Rows of a power of two would fall on the same lines of the cache.
  static int64_t pitch(int64_t channels) { return channels % 128 ? channels : channels + kLanes; }

  void run(ffi::ThreadPool& pool, const float* images, int64_t batch, const float* weights,
           int64_t taps, float* results) const {
    const int64_t step = pitch(in.channels);
    // As many images at a time as stay in the second-level cache beside the weights.
    const int64_t bytes = border.height * border.width * step * sizeof(float);
    const int64_t together = std::clamp<int64_t>((1 << 19) / bytes, 1, 8);
    // A few items for each thread even out their speeds.
    const int64_t items = std::min(batch, 4 * pool.num_threads());
    parallel_for(pool, items, [&](int64_t item) {
      const int64_t end = (item + 1) * batch / items;
      Padded padded(together, border.height, border.width, in.channels, in.channels, step);
      for (int64_t b = item * batch / items; b < end; b += together) {
        const int64_t count = std::min(together, end - b);
        for (int64_t i = 0; i < count; ++i)
          padded.fill(i, images + (b + i) * in.height * in.width * in.channels, in.height, in.width,
                      in.channels, 0, top, left);
        for (const Group& group : groups_of(out.channels))
          for (int64_t i = 0; i < count; ++i)
            one(&padded.values[i * padded.image_size()], step,
                weights + group.first * taps * in.channels, group,
                results + (b + i) * out.height * out.width * out.channels);
      }
    });
  }

  void one(const float* image, int64_t step, const float* weights, const Group& group,
           float* result) const {
    const int64_t pixel = in_step * step;
    const auto row = row_of_tiles_for(group.size / kLanes, pixel);
    for (const Phase& phase : phases)
      for (int64_t y = 0; y < phase.rows; ++y)
        row(image + y * border.width * pixel, pixel, phase.taps, weights, in.channels,
            result + ((phase.y + y * out_step) * out.width + phase.x) * out.channels + group.first,
            out_step * out.channels, phase.cols);
  }
};

// kBlock x kVectors * kLanes gradients in registers, over all pixels of an image.
constexpr int kBlock = 8;

template <int kVectors>
void gradient_tile(const float* image, int64_t row_step, int64_t pixel_step, const float* cotangent,
                   int64_t rows, int64_t cols, float* gradient, int64_t outputs) {
  Vector sum[kBlock][kVectors];
  for (int c = 0; c < kBlock; ++c)
    for (int v = 0; v < kVectors; ++v) sum[c][v] = load(gradient + c * outputs + v * kLanes);
  for (int64_t y = 0; y < rows; ++y) {
    const float* pixel = image + y * row_step;
    for (int64_t x = 0; x < cols; ++x, pixel += pixel_step, cotangent += kVectors * kLanes) {
      Vector row[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) row[v] = load(cotangent + v * kLanes);
#pragma GCC unroll 16
      for (int c = 0; c < kBlock; ++c) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[c][v] += pixel[c] * row[v];
      }
    }
  }
  for (int c = 0; c < kBlock; ++c)
    for (int v = 0; v < kVectors; ++v) store(gradient + c * outputs + v * kLanes, sum[c][v]);
}

using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;

template <class Dimensions>
Shape shape_of(const Dimensions& d) {
  return {d[1], d[2], d[3]};
}

// The input with the border that the forward pass reads.
Shape border_of(const Shape& in, const Shape& out, int64_t kernel_height, int64_t kernel_width,
                int64_t stride, int64_t top, int64_t left) {
  return {std::max(in.height + top, (out.height - 1) * stride + kernel_height),
          std::max(in.width + left, (out.width - 1) * stride + kernel_width), in.channels};
}

ffi::Error forward(ffi::ThreadPool pool, Array x, Array w, Result y, int64_t stride, int64_t top,
                   int64_t left) {
  const auto kernel = w.dimensions();
  const Shape in = shape_of(x.dimensions()), out = shape_of(y->dimensions());
  const Shape border = border_of(in, out, kernel[0], kernel[1], stride, top, left);
  Phase all{0, 0, out.height, out.width, {}};
  for (int64_t i = 0; i < kernel[0]; ++i)
    for (int64_t j = 0; j < kernel[1]; ++j)
      all.taps.push_back(
          {i * kernel[1] + j, (i * border.width + j) * Gather::pitch(in.channels)});
  const int64_t taps = kernel[0] * kernel[1];
  const float* weights = w.typed_data();
  const auto packed = pack(taps, in.channels, out.channels, [&](int64_t t, int64_t i, int64_t o) {
    return weights[(t * in.channels + i) * out.channels + o];
  });
  Gather{in, border, out, top, left, stride, 1, {all}}.run(
      pool, x.typed_data(), x.dimensions()[0], packed.data(), taps, y->typed_data());
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
                  (out.width - b + stride - 1) / stride, {}};
      for (int64_t i = 0; i < kernel[0]; ++i) {
        for (int64_t j = 0; j < kernel[1]; ++j) {
          if ((a + top - i) % stride != 0 || (b + left - j) % stride != 0) continue;
          const int64_t y = kernel[0] + (a + top - i) / stride;
          const int64_t x = kernel[1] + (b + left - j) / stride;
          phase.taps.push_back(
              {i * kernel[1] + j, (y * border.width + x) * Gather::pitch(in.channels)});
        }
      }
      phases.push_back(std::move(phase));
    }
  }
  const int64_t taps = kernel[0] * kernel[1];
  const float* weights = w.typed_data();
  const auto packed = pack(taps, in.channels, out.channels, [&](int64_t t, int64_t i, int64_t o) {
    return weights[(t * out.channels + o) * in.channels + i];
  });
  Gather{in, border, out, kernel[0], kernel[1], 1, stride, phases}.run(
      pool, g.typed_data(), g.dimensions()[0], packed.data(), taps, dx->typed_data());
  return ffi::Error::Success();
}

// Gradient of the weights. A thread owns some blocks of input channels and taps and walks over all
// images, so nothing is summed across threads: the result does not depend on their number.
ffi::Error weight_gradient(ffi::ThreadPool pool, Array x, Array g, Result dw, int64_t stride,
                           int64_t top, int64_t left) {
  const auto kernel = dw->dimensions();
  const int64_t batch = x.dimensions()[0], taps = kernel[0] * kernel[1];
  const Shape in = shape_of(x.dimensions()), out = shape_of(g.dimensions());
  const Shape border = border_of(in, out, kernel[0], kernel[1], stride, top, left);
  const int64_t pixels = out.height * out.width;
  const int64_t units = in.channels / kBlock * taps;
  const int64_t items = std::min(units, pool.num_threads());
  std::memset(dw->typed_data(), 0, dw->size_bytes());
  parallel_for(pool, items, [&](int64_t item) {
    const int64_t begin = item * units / items, end = (item + 1) * units / items;
    const int64_t first = begin / taps * kBlock, last = ((end - 1) / taps + 1) * kBlock;
    Padded padded(1, border.height, border.width, last - first, kBlock, kBlock);
    std::vector<float> cotangent(pixels * 2 * kLanes);
    for (int64_t b = 0; b < batch; ++b) {
      padded.fill(0, x.typed_data() + b * in.height * in.width * in.channels, in.height, in.width,
                  in.channels, first, top, left);
      for (const Group& group : groups_of(out.channels)) {
        const float* from = g.typed_data() + b * pixels * out.channels + group.first;
        const bool whole = group.size == out.channels;
        if (!whole)
          copy_pixels(cotangent.data(), group.size, from, out.channels, group.size, pixels);
        const auto tile = group.size == kLanes ? gradient_tile<1> : gradient_tile<2>;
        for (int64_t unit = begin; unit < end; ++unit) {
          const int64_t tap = unit % taps, c = unit / taps * kBlock;
          const int64_t pixel = tap / kernel[1] * border.width + tap % kernel[1];
          float* gradient = dw->typed_data() + (tap * in.channels + c) * out.channels + group.first;
          tile(&padded.values[(c - first) / kBlock * padded.block_size() + pixel * kBlock],
               stride * border.width * kBlock, stride * kBlock, whole ? from : cotangent.data(),
               out.height, out.width, gradient, out.channels);
        }
      }
    }
  });
  return ffi::Error::Success();
}

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
  std::vector<float> parts(items * 2 * width);
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

auto binding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Array>()
      .Arg<Array>()
      .Ret<Array>()
      .Attr<int64_t>("stride")
      .Attr<int64_t>("top")
      .Attr<int64_t>("left");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(fda_jax_forward, forward, binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(fda_jax_input_gradient, input_gradient, binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(fda_jax_weight_gradient, weight_gradient, binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    fda_jax_channel_sums, channel_sums,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Array>().Ret<Array>());
extern "C" int fda_jax_lanes() { return kLanes; }

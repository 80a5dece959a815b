// Convolutions of signs with signs: a bit for each, exclusive or for the product, a count of bits for
// the sum. A sum of n products is n less twice the bits in which both operands differ.

#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "common.h"

namespace {
namespace signs {

using Words = ffi::Buffer<ffi::U32>;
using Signs = ffi::Buffer<ffi::S8>;

constexpr int kBits = 32;
// Filters whose words lie side by side, whatever the width of the registers.
constexpr int kFilters = 16;
constexpr int64_t kGrain = 1 << 14;

typedef uint32_t Word
    __attribute__((vector_size(kFilters * sizeof(uint32_t)), aligned(sizeof(uint32_t)), may_alias));
typedef int32_t Count __attribute__((vector_size(kFilters * sizeof(int32_t)), may_alias));
typedef float Real
    __attribute__((vector_size(kFilters * sizeof(float)), aligned(sizeof(float)), may_alias));

// The number of bits that are set in each word.
inline Word count_bits(Word v) {
#if defined(__AVX512VPOPCNTDQ__)
  return (Word)_mm512_popcnt_epi32((__m512i)v);
#elif defined(__AVX2__)
  // Of each half byte by a table; then bytes are added up to words.
  const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2,
                                         1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i low = _mm256_set1_epi8(15), ones8 = _mm256_set1_epi8(1);
  const __m256i ones16 = _mm256_set1_epi16(1);
  union {
    Word words;
    __m256i halves[2];
  } to = {v};
  for (__m256i& half : to.halves) {
    const __m256i bytes =
        _mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(half, low)),
                        _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(half, 4), low)));
    half = _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, ones8), ones16);
  }
  return to.words;
#elif defined(__ARM_NEON)
  union {
    Word words;
    uint8x16_t quarters[4];
  } to = {v};
  for (uint8x16_t& quarter : to.quarters)
    quarter = vreinterpretq_u8_u32(vpaddlq_u16(vpaddlq_u8(vcntq_u8(quarter))));
  return to.words;
#else
  v = v - ((v >> 1) & 0x55555555u);
  v = (v & 0x33333333u) + ((v >> 2) & 0x33333333u);
  v = (v + (v >> 4)) & 0x0f0f0f0fu;
  return (v * 0x01010101u) >> 24;
#endif
}

// A bit for each channel of a pixel that is 1, from the lowest of a word on. Whether one of the
// channels is 0, which is neither sign.
inline bool pack(const int8_t* x, int64_t channels, uint32_t* words) {
  uint64_t zeros = 0;
  for (int64_t c = 0; c < channels; c += kBits, ++words) {
    const int64_t count = std::min<int64_t>(kBits, channels - c);
    uint32_t word = 0;
    int64_t i = 0;
#if defined(__AVX2__)
    for (; i + 32 <= count; i += 32) {
      const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + c + i));
      const __m256i zero = _mm256_setzero_si256();
      word = uint32_t(_mm256_movemask_epi8(_mm256_cmpgt_epi8(v, zero)));
      zeros |= uint32_t(_mm256_movemask_epi8(_mm256_cmpeq_epi8(v, zero)));
    }
#endif
#if defined(__SSE2__)
    for (; i + 16 <= count; i += 16) {
      const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + c + i));
      const __m128i zero = _mm_setzero_si128();
      word |= uint32_t(_mm_movemask_epi8(_mm_cmpgt_epi8(v, zero))) << i;
      zeros |= uint32_t(_mm_movemask_epi8(_mm_cmpeq_epi8(v, zero)));
    }
#elif __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    for (; i + 8 <= count; i += 8) {
      uint64_t v;
      std::memcpy(&v, x + c + i, sizeof v);
      const uint64_t ones = 0x0101010101010101, positive = v & ~(v >> 7) & ones;
      // Byte k moves by 56 - 7 k, so that its bit comes to lie at 56 + k.
      word |= uint32_t((positive * 0x0102040810204080) >> 56) << i;
      zeros |= (v - ones) & ~v & (ones << 7);
    }
#endif
    for (; i < count; ++i) {
      word |= uint32_t(x[c + i] > 0) << i;
      zeros |= x[c + i] == 0;
    }
    *words = word;
  }
  return zeros != 0;
}

// A convolution. `span` words of a row of the kernel lie side by side in the packed image, too.
struct Plan {
  Shape in, out;
  int64_t height, width, stride, top, left;  // of the kernel

  int64_t words() const { return (in.channels + kBits - 1) / kBits; }
  int64_t span() const { return width * words(); }
  int64_t size() const { return height * span(); }
  int64_t blocks() const { return (out.channels + kFilters - 1) / kFilters; }
  // Of the packed image, zeros around it included.
  int64_t columns() const { return (out.width - 1) * stride + width; }
  int64_t rows_of(int64_t outputs) const { return (outputs - 1) * stride + height; }
};

// Positions of a kernel that lie inside the image, along one axis: from `first` to before `last`.
struct Inside {
  int64_t first, last;
  Inside(int64_t output, int64_t stride, int64_t before, int64_t size, int64_t kernel)
      : first(std::min(kernel, std::max<int64_t>(0, before - output * stride))),
        last(std::max(first, std::min(kernel, size + before - output * stride))) {}
  bool operator==(const Inside& o) const { return first == o.first && last == o.last; }
  int64_t count() const { return last - first; }
};

// Along one axis, what part of the kernel lies inside the image: the different ones, and which of
// them each output has.
struct Borders {
  std::vector<Inside> kinds;
  std::vector<int> of;
  Borders(int64_t outputs, int64_t stride, int64_t before, int64_t size, int64_t kernel) {
    for (int64_t o = 0; o < outputs; ++o) {
      const Inside inside(o, stride, before, size, kernel);
      const auto found = std::find(kinds.begin(), kinds.end(), inside);
      of.push_back(found - kinds.begin());
      if (found == kinds.end()) kinds.push_back(inside);
    }
  }
};

__attribute__((noinline)) void store_some(Real from, int64_t count, float* to) {
  for (int64_t f = 0; f < count; ++f) to[f] = from[f];
}

struct Pixel {
  int64_t y, x;
};

// In how many bits the windows at `pixels` differ from kVectors blocks of filters.
template <int kPixels, int kVectors>
inline void differences(const uint32_t* const* pixels, int64_t row, const Plan& plan,
                        const uint32_t* filters, Word (&to)[kPixels][kVectors]) {
  const int64_t span = plan.span(), block = plan.size() * kFilters;
  Word sums[kPixels][kVectors] = {};  // in registers, which `to` is not
  for (int64_t k = 0; k < plan.height; ++k) {
    const uint32_t* seen[kPixels];
#pragma GCC unroll 8
    for (int p = 0; p < kPixels; ++p) seen[p] = pixels[p] + k * row;
    for (int64_t j = 0; j < span; ++j, filters += kFilters) {
      Word weights[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        weights[v] = *reinterpret_cast<const Word*>(filters + v * block);
#pragma GCC unroll 8
      for (int p = 0; p < kPixels; ++p) {
        const Word word = Word{} + seen[p][j];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[p][v] += count_bits(word ^ weights[v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < kPixels; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) to[p][v] = sums[p][v];
}

// Some rows of an image's result, for some blocks of filters.
class Rows {
 public:
  Rows(const Plan& plan, const Borders& rows, const Borders& columns, const uint32_t* filters,
       const int32_t* whole, const float* spread, const float* middle)
      : plan_(plan), rows_(rows), columns_(columns), filters_(filters), whole_(whole),
        spread_(spread), middle_(middle) {}

  void run(const int8_t* image, int64_t first, int64_t last, int64_t block, int64_t end,
           float* result) {
    pack_rows(image, first, last);
    const int64_t row = plan_.columns() * plan_.words();
    while (block < end) {
      const int vectors = end - block >= 4 ? 4 : end - block >= 2 ? 2 : 1;
      Pixel pixel{first, 0};
      int64_t left = (last - first) * plan_.out.width;
      const auto go = [&](auto pixels, auto blocks) {
        for (; left >= pixels; left -= pixels) some<pixels, blocks>(row, first, pixel, block, result);
      };
      using std::integral_constant;
      if (vectors == 4) {
        go(integral_constant<int, 4>{}, integral_constant<int, 4>{});
        go(integral_constant<int, 1>{}, integral_constant<int, 4>{});
      } else if (vectors == 2) {
        go(integral_constant<int, 4>{}, integral_constant<int, 2>{});
        go(integral_constant<int, 1>{}, integral_constant<int, 2>{});
      } else {
        go(integral_constant<int, 4>{}, integral_constant<int, 1>{});
        go(integral_constant<int, 1>{}, integral_constant<int, 1>{});
      }
      block += vectors;
    }
    if (is_nan_) spread_nan(first, last, result);
  }

 private:
  void pack_rows(const int8_t* image, int64_t first, int64_t last) {
    const int64_t words = plan_.words(), columns = plan_.columns();
    const int64_t rows = plan_.rows_of(last - first);
    packed_.assign(rows * columns * words, 0);
    nans_.assign(rows * columns, false);
    is_nan_ = false;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t y = first * plan_.stride + r - plan_.top;
      if (y < 0 || y >= plan_.in.height) continue;
      for (int64_t c = 0; c < columns; ++c) {
        const int64_t x = c - plan_.left;
        if (x < 0 || x >= plan_.in.width) continue;
        const int8_t* pixel = image + (y * plan_.in.width + x) * plan_.in.channels;
        if (pack(pixel, plan_.in.channels, &packed_[(r * columns + c) * words]))
          nans_[r * columns + c] = is_nan_ = true;
      }
    }
  }

  // The results of kPixels pixels, the next one's is left in `next`.
  template <int kPixels, int kVectors>
  void some(int64_t row, int64_t first, Pixel& next, int64_t block, float* result) const {
    Pixel at[kPixels];
    const uint32_t* pixels[kPixels];
    for (int p = 0; p < kPixels; ++p) {
      at[p] = next;
      pixels[p] = &packed_[plan_.stride * ((next.y - first) * row + next.x * plan_.words())];
      if (++next.x == plan_.out.width) next = {next.y + 1, 0};
    }
    Word sums[kPixels][kVectors];
    differences<kPixels, kVectors>(pixels, row, plan_, filters_ + block * plan_.size() * kFilters,
                                   sums);
    for (int p = 0; p < kPixels; ++p) {
      const auto [y, x] = at[p];
      const int64_t kind = rows_.of[y] * columns_.kinds.size() + columns_.of[x];
      const float window = middle_ ? sum_of_window(pixels[p], row, y, x) : 0;
      float* to = result + (y * plan_.out.width + x) * plan_.out.channels;
      for (int v = 0; v < kVectors; ++v) {
        const int64_t filter = (block + v) * kFilters;
        const Count whole = *reinterpret_cast<const Count*>(
            whole_ + kind * plan_.blocks() * kFilters + filter);
        const Count product = whole - 2 * (Count)sums[p][v];
        Real made = __builtin_convertvector(product, Real) *
                    *reinterpret_cast<const Real*>(spread_ + filter);
        if (middle_) made += window * *reinterpret_cast<const Real*>(middle_ + filter);
        const int64_t left = plan_.out.channels - filter;
        if (left >= kFilters)
          *reinterpret_cast<Real*>(to + filter) = made;
        else
          store_some(made, left, to + filter);
      }
    }
  }

  // The sum of the signs that a filter at this pixel sees.
  float sum_of_window(const uint32_t* pixel, int64_t row, int64_t y, int64_t x) const {
    const Inside &v = rows_.kinds[rows_.of[y]], &h = columns_.kinds[columns_.of[x]];
    int64_t ones = 0;
    for (int64_t k = 0; k < plan_.height; ++k)
      for (int64_t j = 0; j < plan_.span(); ++j) ones += __builtin_popcount(pixel[k * row + j]);
    return 2 * ones - v.count() * h.count() * plan_.in.channels;
  }

  void spread_nan(int64_t first, int64_t last, float* result) const {
    for (int64_t y = first; y < last; ++y) {
      for (int64_t x = 0; x < plan_.out.width; ++x) {
        bool is_nan = false;
        for (int64_t k = 0; k < plan_.height; ++k)
          for (int64_t l = 0; l < plan_.width; ++l)
            is_nan |= nans_[((y - first) * plan_.stride + k) * plan_.columns() +
                            x * plan_.stride + l];
        float* to = result + (y * plan_.out.width + x) * plan_.out.channels;
        if (is_nan)
          std::fill(to, to + plan_.out.channels, std::numeric_limits<float>::quiet_NaN());
      }
    }
  }

  const Plan& plan_;
  const Borders &rows_, &columns_;
  const uint32_t* filters_;
  const int32_t* whole_;
  const float *spread_, *middle_;
  std::vector<uint32_t, LineAllocator<uint32_t>> packed_;
  std::vector<bool> nans_;
  bool is_nan_ = false;
};

// What a window whose every product is 1 sums up to, (kinds of rows, kinds of columns, filters),
// corrected for what lies beyond the image: a bit there is 0 and differs from the ones of a filter.
std::vector<int32_t, LineAllocator<int32_t>> whole_sums(const Plan& plan, const Borders& rows,
                                                        const Borders& columns,
                                                        const uint32_t* filters) {
  const int64_t words = plan.words(), count = plan.blocks() * kFilters;
  std::vector<int32_t, LineAllocator<int32_t>> sums(rows.kinds.size() * columns.kinds.size() *
                                                    count);
  int32_t* to = sums.data();
  for (const Inside& v : rows.kinds) {
    for (const Inside& h : columns.kinds) {
      for (int64_t block = 0; block < plan.blocks(); ++block, to += kFilters) {
        Word beyond{};
        for (int64_t k = 0; k < plan.height; ++k) {
          for (int64_t l = 0; l < plan.width; ++l) {
            if (k >= v.first && k < v.last && l >= h.first && l < h.last) continue;
            const uint32_t* from =
                filters + (block * plan.size() + (k * plan.width + l) * words) * kFilters;
            for (int64_t w = 0; w < words; ++w)
              beyond += count_bits(*reinterpret_cast<const Word*>(from + w * kFilters));
          }
        }
        const int32_t inside = v.count() * h.count() * plan.in.channels;
        *reinterpret_cast<Count*>(to) = inside + 2 * (Count)beyond;
      }
    }
  }
  return sums;
}

// y = spread * (x convolved with the filters' signs) + middle * (sum of the signs seen), with zeros
// around x, whose numbers are signs, or 0 for NaN. Filters are (blocks, kernel's rows, columns, words,
// kFilters).
ffi::Error convolve(ffi::ThreadPool pool, Signs x, Words filters, Array spread, Array middle,
                    Result y, int64_t height, int64_t width, int64_t stride, int64_t top,
                    int64_t left) {
  if (y->element_count() == 0) return ffi::Error::Success();
  const Plan plan{shape_of(x.dimensions()), shape_of(y->dimensions()), height, width, stride, top,
                  left};
  // A shipped program calls this by its name, with whatever its file holds.
  if (int64_t(filters.element_count()) != plan.blocks() * plan.size() * kFilters ||
      int64_t(spread.element_count()) != plan.out.channels ||
      int64_t(middle.element_count()) != plan.out.channels || stride < 1 || top < 0 || left < 0)
    return ffi::Error::InvalidArgument("the parts of a kernel of signs do not belong together");
  const Borders rows(plan.out.height, stride, top, plan.in.height, height);
  const Borders columns(plan.out.width, stride, left, plan.in.width, width);
  const auto whole = whole_sums(plan, rows, columns, filters.typed_data());
  Floats spreads(plan.blocks() * kFilters, 0.f), middles(plan.blocks() * kFilters, 0.f);
  std::copy_n(spread.typed_data(), plan.out.channels, spreads.begin());
  std::copy_n(middle.typed_data(), plan.out.channels, middles.begin());
  const bool is_centred = std::all_of(middles.begin(), middles.end(), [](float m) { return m == 0; });
  // Images, then rows of them, then filters are dealt out, until there is work for all; to wake a
  // thread for less than kGrain words of filters costs more than it saves.
  const int64_t batch = x.dimensions()[0], image_size = plan.out.height * plan.out.width;
  const int64_t work = batch * image_size * plan.blocks() * plan.size();
  const int64_t wanted = std::clamp<int64_t>(work / kGrain, 1, 4 * pool.num_threads());
  const int64_t groups = std::min(batch, wanted);
  const int64_t bands = std::min(plan.out.height, (wanted + groups - 1) / groups);
  const int64_t parts =
      std::min(plan.blocks(), (wanted + groups * bands - 1) / (groups * bands));
  parallel_for(pool, groups * bands * parts, [&](int64_t item) {
    const int64_t group = item / (bands * parts), band = item / parts % bands, part = item % parts;
    Rows rows_of_image(plan, rows, columns, filters.typed_data(), whole.data(), spreads.data(),
                       is_centred ? nullptr : middles.data());
    for (int64_t image = group * batch / groups; image < (group + 1) * batch / groups; ++image)
      rows_of_image.run(
          x.typed_data() + image * plan.in.height * plan.in.width * plan.in.channels,
          band * plan.out.height / bands, (band + 1) * plan.out.height / bands,
          part * plan.blocks() / parts, (part + 1) * plan.blocks() / parts,
          y->typed_data() + image * image_size * plan.out.channels);
  });
  return ffi::Error::Success();
}

}  // namespace signs
}  // namespace

// What all kernels use: vectors, aligned arrays, and items of work on XLA's threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;

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

// Puts vectors where none straddles two lines of the cache.
template <class T>
struct LineAllocator {
  using value_type = T;
  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>&) {}
  static constexpr std::align_val_t kLine{64};
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* p, size_t) { ::operator delete(p, kLine); }
  template <class U>
  void construct(U*) {}  // no value given: whatever is there
  template <class U, class... Values>
  void construct(U* p, Values&&... values) {
    ::new (p) U(std::forward<Values>(values)...);
  }
  friend bool operator==(LineAllocator, LineAllocator) { return true; }
  friend bool operator!=(LineAllocator, LineAllocator) { return false; }
};

using Floats = std::vector<float, LineAllocator<float>>;

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

// Height, width and channels.
struct Shape {
  int64_t height, width, channels;
};

template <class Dimensions>
Shape shape_of(const Dimensions& d) {
  return {d[1], d[2], d[3]};
}

// weight(tap, input, output) of a convolution's kernel (taps, inputs, outputs), and of the transpose
// by which it takes a cotangent back: what it calls an input is an output of the kernel.
inline auto weights_of(const float* kernel, int64_t inputs, int64_t outputs) {
  return [=](int64_t tap, int64_t i, int64_t o) { return kernel[(tap * inputs + i) * outputs + o]; };
}
inline auto transposed_weights_of(const float* kernel, int64_t inputs, int64_t outputs) {
  return [=](int64_t tap, int64_t i, int64_t o) { return kernel[(tap * outputs + o) * inputs + i]; };
}

}  // namespace

// Convolutions, of real numbers and of signs, and channel sums of float32 images (batch, height,
// width, channels), and narrow two-layer perceptrons, for the CPU, as XLA custom calls.
//
// All run on the threads of the XLA program that calls them. Channels that a vector register
// holds side by side must come in whole registers (see `kLanes`); the caller sees to that.

#include "channel_sums.h"
#include "common.h"
#include "direct.h"
#include "perceptron.h"
#include "signs.h"
#include "winograd.h"

namespace {

// Sums are multiplied by the scales of their filters, where there are some, while they are at hand.
ffi::Error forward_with(ffi::ThreadPool pool, Array x, Array w, const float* scale, Result y,
                        int64_t stride, int64_t top, int64_t left) {
  const Shape in = shape_of(x.dimensions()), out = shape_of(y->dimensions());
  if (out.channels % kLanes != 0)
    return ffi::Error::InvalidArgument("the filters do not fill the registers of this processor");
  if (!winograd::suits(w.dimensions(), out, stride))
    return direct::forward(pool, x, w, scale, y, stride, top, left);
  winograd::convolve(pool, {in, out, top, left, x.dimensions()[0]}, x.typed_data(),
                     weights_of(w.typed_data(), in.channels, out.channels), scale,
                     y->typed_data());
  return ffi::Error::Success();
}

ffi::Error forward(ffi::ThreadPool pool, Array x, Array w, Result y, int64_t stride, int64_t top,
                   int64_t left) {
  return forward_with(pool, x, w, nullptr, y, stride, top, left);
}

ffi::Error scaled_forward(ffi::ThreadPool pool, Array x, Array w, Array scale, Result y,
                          int64_t stride, int64_t top, int64_t left) {
  if (static_cast<int64_t>(scale.element_count()) != shape_of(y->dimensions()).channels)
    return ffi::Error::InvalidArgument("there is not one scale for each filter");
  return forward_with(pool, x, w, scale.typed_data(), y, stride, top, left);
}

ffi::Error input_gradient(ffi::ThreadPool pool, Array g, Array w, Result dx, int64_t stride,
                          int64_t top, int64_t left) {
  const Shape in = shape_of(g.dimensions()), out = shape_of(dx->dimensions());
  if (!winograd::suits(w.dimensions(), out, stride))
    return direct::input_gradient(pool, g, w, dx, stride, top, left);
  const auto weight = transposed_weights_of(w.typed_data(), in.channels, out.channels);
  winograd::convolve(
      pool, {in, out, 2 - top, 2 - left, g.dimensions()[0]}, g.typed_data(),
      [&](int64_t tap, int64_t i, int64_t o) { return weight(8 - tap, i, o); },  // reversed
      nullptr, dx->typed_data());
  return ffi::Error::Success();
}

ffi::Error weight_gradient(ffi::ThreadPool pool, Array x, Array g, Result dw, int64_t stride,
                           int64_t top, int64_t left) {
  const Shape in = shape_of(x.dimensions()), out = shape_of(g.dimensions());
  if (!winograd::suits(dw->dimensions(), out, stride))
    return direct::weight_gradient(pool, x, g, dw, stride, top, left);
  winograd::kernel_gradient(pool, {in, out, top, left, x.dimensions()[0]}, x.typed_data(),
                            g.typed_data(), dw->typed_data());
  return ffi::Error::Success();
}

auto two_arrays() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Array>(); }

// What a convolution takes beside its arrays, and what it makes.
template <class Arrays>
auto convolving(Arrays arrays) {
  return std::move(arrays)
      .template Ret<Array>()
      .template Attr<int64_t>("stride")
      .template Attr<int64_t>("top")
      .template Attr<int64_t>("left");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(fda_jax_forward, forward, convolving(two_arrays()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(fda_jax_scaled_forward, scaled_forward,
                              convolving(two_arrays().Arg<Array>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(fda_jax_input_gradient, input_gradient, convolving(two_arrays()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(fda_jax_weight_gradient, weight_gradient, convolving(two_arrays()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    fda_jax_channel_sums, channel_sums,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Array>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(fda_jax_perceptron, perceptron,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(fda_jax_perceptron_gradient, perceptron_gradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(fda_jax_signs, signs::convolve,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<signs::Signs>()
                                  .Arg<signs::Words>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("height")
                                  .Attr<int64_t>("width")
                                  .Attr<int64_t>("stride")
                                  .Attr<int64_t>("top")
                                  .Attr<int64_t>("left"));
extern "C" int fda_jax_lanes() { return kLanes; }

"""Convolution whose training passes run on our own kernels on the CPU, and on XLA's elsewhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fda_jax.ops.native import FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, choose

# The largest stride that the kernel of the forward pass takes.
_MOST_STRIDE = 2
# From here on XLA's CPU backend computes a weight gradient faster as shifted matrix products.
_MANY_CHANNELS = 128

Padding = tuple[tuple[int, int], tuple[int, int]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x: jax.Array, w: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Cross-correlation of images with filters, borders filled with zeros.

    Forward:  y[b, i, j, o] = sum_{k, l, c} x[b, i s + k - top, j s + l - left, c] w[k, l, c, o]
    Backward: its exact derivatives, in both arguments.

    Where no gradient is asked for, this is `jax.lax.conv_general_dilated` and nothing else. Under
    differentiation float32 arrays on the CPU go through the kernels of `native` where these take
    the shape, which changes the order of summation only.

    Args:
      x: (batch, height, width, channels) float array.
      w: (kernel height, kernel width, channels, filters), of the dtype of x.
      stride: s, in pixels, for both axes, >= 1.
      padding: zeros before and behind each axis, ((top, bottom), (left, right)) in pixels.

    Returns:
      (batch, (height + top + bottom - kernel height) // s + 1, ..., filters), of the dtype of x.

    Laws: equal to XLA's convolution and its derivatives for every shape, stride and padding, to
      float32 rounding; gradients do not depend on the number of threads.
    """
    return _xla(x, w, stride, padding)


def _forward(x: jax.Array, w: jax.Array, stride: int, padding: Padding) -> tuple:
    y = choose(
        FORWARD,
        lambda x, w: _xla(x, w, stride, padding),
        (x, w),
        shapes=jax.eval_shape(lambda: _xla(x, w, stride, padding)),
        fits=lambda lanes: stride <= _MOST_STRIDE and w.shape[3] % lanes == 0,
        attributes=_attributes(stride, padding),
    )
    return y, (x, w)


def _backward(stride: int, padding: Padding, residual: tuple, g: jax.Array) -> tuple:
    x, w = residual
    dx = choose(
        INPUT_GRADIENT,
        lambda g, w: jax.vjp(lambda x: _xla(x, w, stride, padding), x)[1](g)[0],
        (g, w),
        shapes=jax.eval_shape(lambda: x),
        fits=lambda lanes: w.shape[2] % lanes == 0,
        attributes=_attributes(stride, padding),
    )
    dw = choose(
        WEIGHT_GRADIENT,
        lambda x, g: jax.vjp(lambda w: _xla(x, w, stride, padding), w)[1](g)[0],
        (x, g),
        shapes=jax.eval_shape(lambda: w),
        fits=lambda lanes: w.shape[3] % lanes == 0,
        otherwise=functools.partial(_shifted_products, w.shape, stride, padding)
        if min(w.shape[2:]) >= _MANY_CHANNELS
        else None,
        attributes=_attributes(stride, padding),
    )
    return dx, dw


convolve.defvjp(_forward, _backward)


def _xla(x: jax.Array, w: jax.Array, stride: int, padding: Padding) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _attributes(stride: int, padding: Padding) -> dict[str, np.int64]:
    (top, _), (left, _) = padding
    return {"stride": np.int64(stride), "top": np.int64(top), "left": np.int64(left)}


def _shifted_products(
    shape: tuple[int, ...], stride: int, padding: Padding, x: jax.Array, g: jax.Array
) -> jax.Array:
    """Gradient of the weights, a matrix product for each position of the kernel."""
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = (stride * (size - 1) + 1 for size in g.shape[1:3])
    cotangent = g.reshape(-1, shape[3])

    def product(k: int, l: int) -> jax.Array:  # noqa: E741
        seen = padded[:, k : k + rows : stride, l : l + columns : stride]
        return seen.reshape(-1, shape[2]).T @ cotangent

    products = [product(k, l) for k in range(shape[0]) for l in range(shape[1])]  # noqa: E741
    return jnp.stack(products).reshape(shape)

"""Convolution whose training passes run on our own kernels on the CPU, and on XLA's elsewhere."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fda_jax.ops.derivatives import differentiated_as
from fda_jax.ops.native import (
    FORWARD,
    INPUT_GRADIENT,
    SCALED_FORWARD,
    WEIGHT_GRADIENT,
    choose,
)
from fda_jax.ops.products import check_scale, scaled, scaled_gradients

# The largest stride that the kernel of the forward pass takes.
_MOST_STRIDE = 2
# From here on XLA's CPU backend computes a weight gradient faster as shifted matrix products.
_MANY_CHANNELS = 128
# Channels that fill a tile of a GPU's matrix unit.
_TILE_CHANNELS = 64

Padding = tuple[tuple[int, int], tuple[int, int]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 5))
def convolve(
    x: jax.Array,
    w: jax.Array,
    stride: int,
    padding: Padding,
    scale: jax.Array | None = None,
    scale_in_gradient: bool = True,
) -> jax.Array:
    """Cross-correlation of images with filters, borders filled with zeros.

    Forward:  y[b, i, j, o] = scale[o] sum_{k, l, c} x[b, i s + k - top, j s + l - left, c]
      w[k, l, c, o]
    Backward: its exact derivatives, in all arguments; without scale_in_gradient that of w has no
      scale, and that of the scale is 0.

    Where no gradient is asked for, this is `jax.lax.conv_general_dilated` and nothing else. Under
    differentiation float32 arrays on the CPU go through the kernels of `native` where these take
    the shape. They add up in another order, and 3 x 3 kernels of many channels at stride 1 by
    Winograd's minimal filtering (Lavin & Gray 2016), which is without rounding for products of
    signs, as the literal sum is; a NaN or an infinity may spread to the next pixel there.
    Forward-mode differentiation raises JAX's TypeError for custom_vjp functions.

    Args:
      x: (batch, height, width, channels) float array.
      w: (kernel height, kernel width, channels, filters), of the dtype of x.
      stride: s, in pixels, for both axes, >= 1.
      padding: zeros before and behind each axis, ((top, bottom), (left, right)) in pixels.
      scale: of the filters, (filters,) or () for one that they share, of the dtype of x; None for
        1. It multiplies sums that are whole: those of signs are exact.
      scale_in_gradient: whether it multiplies the gradient of w.

    Returns:
      (batch, (height + top + bottom - kernel height) // s + 1, ..., filters), of the dtype of x.

    Raises:
      ValueError: a stride below 1, a negative padding, or a scale of another shape.

    Laws: equal to XLA's convolution and its derivatives for every shape, stride and padding, to
      float32 rounding of the largest sum; gradients do not depend on the number of threads.
    """
    check_geometry(stride, padding)
    check_scale(scale, w.shape[3])
    return scaled(_xla(x, w, stride, padding), scale)


def check_geometry(stride: int, padding: Padding) -> None:
    """Refuse what no convolution has, before a kernel meets it.

    Raises:
      ValueError: names the value, the limit and the remedy.
    """
    if stride < 1:
        raise ValueError(f"stride is {stride}: use 1 or more")
    if min(map(min, padding)) < 0:
        raise ValueError(
            f"padding is {padding}, which cuts pixels off: use 0 or more, and a slice of the images"
        )


def _forward(
    x: jax.Array,
    w: jax.Array,
    stride: int,
    padding: Padding,
    scale: jax.Array | None,
    scale_in_gradient: bool,
) -> tuple:
    check_geometry(stride, padding)
    check_scale(scale, w.shape[3])
    on_cpu, elsewhere = _programs(x.shape, w.shape, stride, padding)
    scales = () if scale is None else (jnp.broadcast_to(scale, w.shape[3:]),)
    y = choose(
        FORWARD if scale is None else SCALED_FORWARD,
        _with_scale(_one_by_one(elsewhere)),
        (x, w, *scales),
        shapes=jax.eval_shape(lambda: on_cpu(x, w)),
        fits=lambda lanes: stride <= _MOST_STRIDE and w.shape[3] % lanes == 0,
        otherwise=_with_scale(on_cpu),
        attributes=_attributes(stride, padding),
    )
    return y, (x, w, scale)


def _with_scale(fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return lambda x, w, scale=None: scaled(fn(x, w), scale)


def _backward(
    stride: int, padding: Padding, scale_in_gradient: bool, residual: tuple, g: jax.Array
) -> tuple:
    x, w, scale = residual
    # A convolution is linear in either operand, so its transpose needs the shape alone.
    like_x, like_w = jax.eval_shape(lambda: (x, w))

    def input_gradient(fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return lambda g, w: jax.linear_transpose(lambda x: fn(x, w), like_x)(g)[0]

    def weight_gradient(fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return lambda x, g: jax.linear_transpose(lambda w: fn(x, w), like_w)(g)[0]

    on_cpu, elsewhere = _programs(x.shape, w.shape, stride, padding)
    dx = choose(
        INPUT_GRADIENT,
        _one_by_one(input_gradient(elsewhere)),
        (g, scaled(w, scale)),
        shapes=like_x,
        fits=lambda lanes: w.shape[2] % lanes == 0,
        otherwise=input_gradient(on_cpu),
        attributes=_attributes(stride, padding),
    )
    dw = choose(
        WEIGHT_GRADIENT,
        _one_by_one(weight_gradient(elsewhere)),
        (x, g),
        shapes=like_w,
        fits=lambda lanes: w.shape[3] % lanes == 0,
        otherwise=functools.partial(_shifted_products, w.shape, stride, padding)
        if min(w.shape[2:]) >= _MANY_CHANNELS
        else weight_gradient(on_cpu),
        attributes=_attributes(stride, padding),
    )
    return dx, *scaled_gradients(dw, w, scale, scale_in_gradient)


convolve.defvjp(_forward, _backward)


def _xla(x: jax.Array, w: jax.Array, stride: int, padding: Padding) -> jax.Array:
    # A border wider than the kernel's reach would be negative padding in the gradient, for which
    # XLA's CPU backend of JAX 0.10 reads beyond its arrays.
    kept = _reached(padding[0], w.shape[0]), _reached(padding[1], w.shape[1])
    if kept != padding:
        sides = zip(padding, kept, strict=True)
        beyond = [(low - least, high - most) for (low, high), (least, most) in sides]
        x = jnp.pad(x, ((0, 0), *beyond, (0, 0)))
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), kept, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _reached(sides: tuple[int, int], size: int) -> tuple[int, int]:
    """What a kernel of this size reaches over of a border, from the image."""
    low, high = sides
    return min(low, size - 1), min(high, size - 1)


def _programs(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], stride: int, padding: Padding
) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
    """(x, w) -> y as XLA computes it best, on a CPU and elsewhere."""
    plain = functools.partial(_xla, stride=stride, padding=padding)
    fold = _most_folded(x_shape, w_shape, stride, padding)
    return plain, plain if fold == 1 else functools.partial(_folded, fold=fold, padding=padding)


def _most_folded(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], stride: int, padding: Padding
) -> int:
    """How many neighbours of a row become one pixel; 1 for none."""
    keeps_width = padding[1][0] + padding[1][1] == w_shape[1] - 1
    if stride != 1 or not keeps_width or w_shape[1] == 1:
        return 1
    fold = 1
    while 2 * fold * max(w_shape[2:]) <= _TILE_CHANNELS and x_shape[2] % (2 * fold) == 0:
        fold *= 2
    return fold


def _folded(x: jax.Array, w: jax.Array, *, fold: int, padding: Padding) -> jax.Array:
    """The same convolution with `fold` neighbours of a row as one pixel of that many more channels.

    A matrix unit multiplies tiles of 64 filters, so with 16 it idles for three quarters. Here it
    has four times the filters for a quarter of the pixels; the multiplications by the zeros that
    come in cost nothing that was not idle.

    Forward: pixel (J, b) sums x[(I, a)] w[k] over all (I, a) with k = fold (I - J) + a - b + left
      inside the kernel
    """
    batch, height, width, channels = x.shape
    left = padding[1][0]
    offsets = range(-((left + fold - 1) // fold), (w.shape[1] - 1 - left + fold - 1) // fold + 1)
    chosen = np.zeros((len(offsets), fold, fold, w.shape[1]))
    for d, a, b in np.ndindex(chosen.shape[:3]):
        k = fold * offsets[d] + a - b + left
        if 0 <= k < w.shape[1]:
            chosen[d, a, b, k] = 1
    # (row, offset, in pixel, in, out pixel, out, k); for each but one k the term is 0.
    terms = w.transpose(0, 2, 3, 1)[:, None, None, :, None] * jnp.asarray(
        chosen[:, :, None, :, None], w.dtype
    )
    kernel = jnp.sum(terms, axis=-1).reshape(
        w.shape[0], len(offsets), fold * channels, fold * w.shape[3]
    )
    # An axis is split first and merged then, which a batch that is shared by devices allows.
    folded = x.reshape(batch, height, width // fold, fold, channels)
    folded = folded.reshape(batch, height, width // fold, fold * channels)
    y = _xla(folded, kernel, 1, (padding[0], (-offsets[0], offsets[-1])))
    return y.reshape(*y.shape[:3], fold, w.shape[3]).reshape(*y.shape[:2], width, w.shape[3])


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


def _one_by_one(fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`fn`, a mapped call of which (vmap) is a call for each where all its arguments differ.

    XLA makes one convolution in groups of it, which GPUs run many times slower than the single
    ones; of the weight gradient it even makes one whose window is the whole image.
    """

    @jax.custom_batching.custom_vmap
    def call(*arguments: jax.Array) -> jax.Array:
        return fn(*arguments)

    @call.def_vmap
    def rule(size: int, mapped: Sequence[bool], *arguments: jax.Array) -> tuple[jax.Array, bool]:
        if all(mapped):
            return jnp.stack([call(*(a[i] for a in arguments)) for i in range(size)]), True
        axes = [0 if is_mapped else None for is_mapped in mapped]
        return jax.vmap(fn, axes)(*arguments), True

    return differentiated_as(fn, call)

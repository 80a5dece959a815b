"""Convolution of signs with signs by bits: exclusive or for the product, a count for the sum."""

import dataclasses
import functools
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from fda_jax.ops import native
from fda_jax.ops.convolution import Padding, check_geometry

# As kernels/signs.h lays them out.
WORD_BITS, FILTERS = 32, 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SignKernel:
    """A kernel of two values a filter, as the kernel `SIGNS` takes it.

    Weight = spread * sign + middle.

    Attributes:
      words: uint32 (ceil(filters / 16), height, width, ceil(channels / 32), 16), a bit for each
        positive sign, channels from the lowest bit on; what is filled up is 0.
      spread: float32 (filters,), half of the difference of a filter's two values, >= 0.
      middle: float32 (filters,), half of their sum.
    """

    words: jax.Array | np.ndarray
    spread: jax.Array | np.ndarray
    middle: jax.Array | np.ndarray


def sign_kernel(is_positive: np.ndarray, low: np.ndarray, high: np.ndarray) -> SignKernel:
    """Lay out a kernel.

    Args:
      is_positive: bool (height, width, channels, filters), where a weight is the high value.
      low: float32 (filters,), what the others are.
      high: float32 (filters,), >= low.

    Returns:
      A `SignKernel` of NumPy arrays.
    """
    height, width, channels, filters = is_positive.shape
    space = ((0, 0), (0, 0), (0, -channels % WORD_BITS), (0, -filters % FILTERS))
    shape = (height, width, -(-channels // WORD_BITS), WORD_BITS, -1, FILTERS)
    bits = np.pad(is_positive, space).reshape(shape)
    weights = np.uint32(1) << np.arange(WORD_BITS, dtype=np.uint32)[:, None, None]
    words = np.sum(bits * weights, axis=3, dtype=np.uint32)
    half = np.float32(0.5)
    laid_out = np.ascontiguousarray(np.transpose(words, (3, 0, 1, 2, 4)))
    return SignKernel(laid_out, half * high - half * low, half * high + half * low)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve_signs(x: jax.Array, kernel: SignKernel, stride: int, padding: Padding) -> jax.Array:
    """Cross-correlation of the signs of images with a binary kernel, borders filled with zeros.

    Forward: sum_{k, l, c} sign(x)[b, i s + k - top, j s + l - left, c] w[k, l, c, o], where
      w = middle[o] +- spread[o]; what the spread multiplies is a whole number, not rounded

    It is for inference: it runs on CPUs alone, by a kernel that a C++ compiler makes, and has no
    derivative.

    Args:
      x: (batch, height, width, channels), float array; only the sign of each number counts.
      kernel: of as many channels.
      stride: s, in pixels, for both axes, >= 1.
      padding: zeros before and behind each axis, ((top, bottom), (left, right)) in pixels.

    Returns:
      (batch, (height + top + bottom - kernel height) // s + 1, ..., filters), of the dtype of x.
      Where a window holds a NaN, all its results are.

    Raises:
      ValueError: the kernel is of another number of channels, as far as its words tell, or its
        parts do not belong together; a stride below 1, a negative padding, or images smaller than
        the kernel.
      RuntimeError: there is no C++ compiler, or FDA_JAX_NATIVE=0 is set.
    """
    if native.kernels() is None:
        raise RuntimeError(
            "signs are multiplied as bits by a kernel in C++, which cannot be had here: install "
            f"g++ or clang++, do not set {native.SWITCH}=0, or use `convolve`"
        )
    check_geometry(stride, padding)
    filters = len(kernel.spread)
    blocks = -(-filters // FILTERS)
    shape = kernel.words.shape
    if len(shape) != 5 or (shape[0], shape[4]) != (blocks, FILTERS):
        raise ValueError(
            f"the words of a kernel of {filters} filters have shape {shape} instead of ({blocks}, "
            f"height, width, words, {FILTERS}): lay it out with `sign_kernel`"
        )
    if len(kernel.middle) != filters:
        raise ValueError(
            f"spread is of {filters} filters and middle of {len(kernel.middle)}: lay the kernel "
            "out with `sign_kernel`"
        )
    height, width, words = shape[1:4]
    if -(-x.shape[-1] // WORD_BITS) != words:
        raise ValueError(
            f"the images have {x.shape[-1]} channels, but the kernel is of "
            f"{WORD_BITS * (words - 1) + 1} to {WORD_BITS * words}: use the kernel of this layer"
        )
    (top, bottom), (left, right) = padding
    rows = (x.shape[1] + top + bottom - height) // stride + 1
    columns = (x.shape[2] + left + right - width) // stride + 1
    if rows < 1 or columns < 1:
        raise ValueError(
            f"images of {x.shape[1]} by {x.shape[2]} pixels and padding {padding} are smaller than "
            f"the kernel, {height} by {width}: use larger images or more padding"
        )
    result = jax.ShapeDtypeStruct((x.shape[0], rows, columns, filters), jnp.float32)
    y = jax.ffi.ffi_call(native.SIGNS, result, vmap_method="sequential")(
        # A byte each, a quarter of x in memory: -1 or 1, and 0 for NaN.
        (x > 0).astype(jnp.int8) - (x <= 0).astype(jnp.int8),
        kernel.words,
        # As a product in the type of x would have them.
        jnp.asarray(kernel.spread, x.dtype).astype(jnp.float32),
        jnp.asarray(kernel.middle, x.dtype).astype(jnp.float32),
        height=np.int64(height),
        width=np.int64(width),
        stride=np.int64(stride),
        top=np.int64(top),
        left=np.int64(left),
    )
    return y.astype(x.dtype)


def _forward(x: jax.Array, kernel: SignKernel, stride: int, padding: Padding) -> tuple:
    return convolve_signs(x, kernel, stride, padding), None


def _backward(*_: object) -> tuple:
    raise TypeError("a convolution of bits has no derivative: train with `binarize` and `convolve`")


convolve_signs.defvjp(_forward, _backward)


def multiply_signs(x: jax.Array, kernel: SignKernel) -> jax.Array:
    """Product of the signs of x (..., inputs) with a binary matrix, see `convolve_signs`.

    Args:
      x: float array (..., inputs).
      kernel: of a matrix (1, 1, inputs, outputs).

    Returns:
      (..., outputs), of the dtype of x.
    """
    images = x.reshape(1, -1, 1, x.shape[-1])
    rows = cast(jax.Array, convolve_signs(images, kernel, 1, ((0, 0), (0, 0))))
    return rows.reshape(*x.shape[:-1], rows.shape[-1])

"""Pooling of square windows: the largest value, whose derivative is comparisons, and the mean."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# A place in a window of this side fits a byte.
_LARGEST = 16


class _Windows(NamedTuple):
    """Where the windows lie: side, stride and border in pixels, of images of height x width."""

    side: int
    stride: int
    padding: int
    image: tuple[int, int]

    def counts(self) -> tuple[int, int]:
        """Rows and columns of windows."""
        rows, columns = (
            (size + 2 * self.padding - self.side) // self.stride + 1 for size in self.image
        )
        return rows, columns

    def places(self, x: jax.Array) -> list[jax.Array]:
        """The first pixels of all windows, then the second ones, ..., row by row."""
        if self.padding:
            border, none = (self.padding, self.padding, 0), (0, 0, 0)
            x = jax.lax.pad(x, np.asarray(-np.inf, x.dtype), (none, border, border, none))
        height, width = (self.stride * (count - 1) + 1 for count in self.counts())
        batch, *_, channels = x.shape
        return [
            jax.lax.slice(
                x,
                (0, k, l, 0),
                (batch, k + height, l + width, channels),
                (1, self.stride, self.stride, 1),
            )
            for k in range(self.side)
            for l in range(self.side)  # noqa: E741
        ]


def max_pool(
    x: jax.Array, window: int, *, stride: int | None = None, padding: int = 0
) -> jax.Array:
    """Largest value of each square window.

    Forward:  y[b, i, j, c] = max over k, l < window of x[b, s i + k - p, s j + l - p, c]
    Backward: the gradient goes to the first of a window's largest values, row by row. Binary layers
      before it make ties common; XLA and PyTorch decide them in the same way.

    Rows and columns that do not fill a window are left out. XLA's own derivative, a scatter, takes
    ten times as long on a CPU. This one keeps a byte for each window: the place of its value.
    Forward-mode differentiation raises JAX's TypeError for custom_vjp functions.

    Args:
      x: (batch, height, width, channels) float array.
      window: >= 1 and at most 16, in pixels.
      stride: s, in pixels, at most the window; None for the window, so that none overlap.
      padding: p, pixels round the image that no value comes from, less than the window.

    Returns:
      (batch, (height + 2 p - window) // s + 1, ..., channels), of the dtype of x; NaN where a
      window holds one.

    Raises:
      ValueError: windows that leave pixels out or lie in the border alone, too large a window, or
        images that hold none.
    """
    step = window if stride is None else stride
    if not (1 <= step <= window <= _LARGEST and 0 <= padding < window):
        raise ValueError(
            f"windows of {window} pixels with stride {step} and a border of {padding} pixels: the "
            f"window must be at most {_LARGEST}, the stride from 1 to the window, and the border "
            "less than the window"
        )
    windows = _Windows(window, step, padding, (x.shape[1], x.shape[2]))
    if min(windows.counts()) < 1:
        raise ValueError(
            f"{x.shape[1]} by {x.shape[2]} pixels hold no window of {window}: use larger "
            "images, or a network for small ones"
        )
    return _max_pool(x, windows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x: jax.Array, windows: _Windows) -> jax.Array:
    return functools.reduce(jnp.maximum, windows.places(x))


def _forward(x: jax.Array, windows: _Windows) -> tuple[jax.Array, jax.Array]:
    y, *others = windows.places(x)
    chosen = jnp.zeros(y.shape, jnp.uint8)
    for place, value in enumerate(others, start=1):
        chosen = jnp.where(value > y, jnp.uint8(place), chosen)
        y = jnp.maximum(y, value)
    return y, chosen


def _backward(windows: _Windows, chosen: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    side, stride, padding, image = windows
    # Pixels of the image with its border lie at stride * (row, column) + (k, l) with k, l < stride;
    # a place beyond the stride is one of the next windows'.
    rows, columns = (count + (side - 1) // stride for count in g.shape[1:3])
    gradients = []
    for k, l in np.ndindex(stride, stride):  # noqa: E741
        parts = []
        for top, left in np.ndindex(-(-(side - k) // stride), -(-(side - l) // stride)):
            place = (k + stride * top) * side + l + stride * left
            part = jnp.where(chosen == place, g, 0)
            below, right = rows - g.shape[1] - top, columns - g.shape[2] - left
            parts.append(jnp.pad(part, ((0, 0), (top, below), (left, right), (0, 0))))
        gradients.append(functools.reduce(jnp.add, parts))
    batch, channels = g.shape[0], g.shape[3]
    pixels = jnp.stack(gradients, axis=3).reshape(batch, rows, columns, stride, stride, channels)
    whole = pixels.transpose(0, 1, 3, 2, 4, 5).reshape(
        batch, rows * stride, columns * stride, channels
    )
    inner = whole[:, padding : padding + image[0], padding : padding + image[1]]
    rest = [(0, size - filled) for size, filled in zip(image, inner.shape[1:3], strict=True)]
    return (jnp.pad(inner, ((0, 0), *rest, (0, 0))),)


_max_pool.defvjp(_forward, _backward)


def mean_pool(x: jax.Array, window: int) -> jax.Array:
    """Mean of each square window; windows do not overlap.

    Forward:  y[b, i, j, c] = mean over k, l < window of x[b, window i + k, window j + l, c]

    A window that sticks out behind the image has the mean of the pixels it does hold, so that the
    result is as large as that of a convolution with this stride.

    Args:
      x: (batch, height, width, channels) float array.
      window: >= 1, in pixels; also the stride.

    Returns:
      (batch, ceil(height / window), ceil(width / window), channels), of the dtype of x.
    """
    image = x.shape[1:3]
    behind = [(0, -size % window) for size in image]
    sides, padding = (1, window, window, 1), ((0, 0), *behind, (0, 0))
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    sums = jax.lax.reduce_window(wide, np.zeros((), wide.dtype), jax.lax.add, sides, sides, padding)
    held = [np.minimum(window, size - np.arange(0, size, window)) for size in image]
    return (sums / np.outer(*held)[..., None].astype(wide.dtype)).astype(x.dtype)

"""Parts that every network shares: the real layers and batch normalisation."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fda_jax import ops
from fda_jax.layers import Method, make_method

MOMENTUM, EPSILON = 0.9, 1e-5


class BatchNorm(nn.Module):
    """Batch normalisation with running statistics, synchronised over devices in training.

    Forward in training: see `ops.batch_norm`; the running statistics keep 0.9 of what they were.
    Otherwise: scale (x - mean) / sqrt(variance + 1e-5) + bias with the running statistics.

    Attributes:
      train: normalise by the batch's statistics and update the running ones.
      dtype: of the result; parameters, statistics and their sums stay float32.
      axis_name: mapped axis over which the batch's statistics are averaged, or None.

    Parameters and statistics, (channels,) each: `scale`, `bias`; `mean`, `var` in "batch_stats".
    """

    train: bool
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise x (..., channels)."""
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        x = x.astype(self.dtype)
        if not self.train or self.is_initializing():
            factor = jax.lax.rsqrt(variance.value + EPSILON) * scale
            return ((x - mean.value) * factor + bias).astype(self.dtype)
        normalised = cast(tuple, ops.batch_norm(x, scale, bias, EPSILON, self.axis_name))
        for running, new in zip((mean, variance), normalised[1:], strict=True):
            running.value = MOMENTUM * running.value + (1 - MOMENTUM) * new
        return normalised[0]


def batch_norm(dtype: DTypeLike, axis_name: str | None, *, train: bool) -> Callable[..., BatchNorm]:
    """Make `BatchNorm`s from their names."""
    return functools.partial(BatchNorm, train=train, dtype=dtype, axis_name=axis_name)


def stem(
    features: int,
    dtype: DTypeLike,
    *,
    side: int = 3,
    strides: int = 1,
    padding: int | None = None,
) -> nn.Conv:
    """The first convolution, always in full precision."""
    return real_conv(features, dtype, side=side, strides=strides, padding=padding, name="stem")


def hard_tanh_of_stem(x: jax.Array, method: str | Method) -> jax.Array:
    """Hardtanh of what the stem hands to the first binary layer; x for the nonlinearity "none".

    Levels and windows of a method that wants none may lie beyond 1. Trained nonlinearities (PReLU,
    RPReLU, Maxout) stand behind binary layers alone, as in the ResNets, so that the stem's stays.
    """
    return x if make_method(method).nonlinearity == "none" else nn.hard_tanh(x)


def real_conv(
    features: int,
    dtype: DTypeLike,
    *,
    side: int,
    strides: int = 1,
    padding: int | None = None,
    name: str,
) -> nn.Conv:
    """A convolution in full precision without bias.

    `padding` pixels of zeros lie round the image; None centres it on each `strides`-th pixel.
    """
    return nn.Conv(
        features,
        (side, side),
        strides=strides,
        padding=side // 2 if padding is None else padding,
        use_bias=False,
        kernel_init=nn.initializers.he_normal(),
        dtype=dtype,
        conv_general_dilated=_convolve,
        name=name,
    )


def _convolve(
    x: jax.Array, w: jax.Array, strides: Sequence[int], padding: Sequence[Any], **_: Any
) -> jax.Array:
    """`ops.convolve` as Flax calls a convolution, with the same stride on both axes."""
    (top, bottom), (left, right) = padding
    return ops.convolve(x, w, strides[0], ((top, bottom), (left, right)))


def classifier(num_classes: int) -> nn.Dense:
    """The last layer, always in full precision; float32, for the loss reads its logits."""
    return nn.Dense(num_classes, dtype=jnp.float32, name="classifier")


def check_images(images_bhwc: jax.Array) -> None:
    """Refuse anything but a float batch (batch, height, width, channels).

    Raises:
      ValueError: names the shape or dtype and the remedy.
    """
    if images_bhwc.ndim != 4:
        raise ValueError(
            f"images have shape {images_bhwc.shape}, but a network takes (batch, height, width, "
            "channels): add the missing axis, e.g. images[None] for one image"
        )
    if not jnp.issubdtype(images_bhwc.dtype, jnp.floating):
        raise ValueError(
            f"images are {images_bhwc.dtype}, but a network takes normalised floats: "
            "use fda_jax.data.normalize(images, mean, std)"
        )

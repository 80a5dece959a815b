"""Batch normalisation with statistics of the batch, and its derivative in closed form."""

import functools

import jax
import jax.numpy as jnp

from fda_jax.ops.derivatives import cotangent_of
from fda_jax.ops.native import CHANNEL_SUMS, choose


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalise each channel by its mean and variance over the batch.

    Forward:  y = scale xhat + bias, xhat = (x - mean) / sqrt(variance + epsilon)
    Backward: dx = scale (g - mean(g) - xhat mean(g xhat)) / sqrt(variance + epsilon),
              dscale = sum(g xhat), dbias = sum(g); none through the two statistics returned
    Source:   Ioffe and Szegedy 2015 (arXiv 1502.03167), section 3.

    Only x and numbers of a channel are kept for the backward pass. The variance is the mean of
    squares less the square of the mean, in float32.
    Forward-mode differentiation raises JAX's TypeError for custom_vjp functions.

    Args:
      x: (..., channels) float array.
      scale: (channels,) float32.
      bias: (channels,) float32.
      epsilon: added to the variance, > 0.
      axis_name: mapped axis over which all means are taken too, or None.

    Returns:
      y, shaped and typed like x; the mean and the variance, (channels,) float32.

    Laws: y and all derivatives equal those of flax.linen.BatchNorm.
    """
    return _forward(x, scale, bias, epsilon, axis_name)[0]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis_name: str | None
) -> tuple:
    mean, mean_of_squares = _averaged(_channel_means(x, x), axis_name)
    variance = jnp.maximum(mean_of_squares - mean**2, 0.0)
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = (x - mean) * (inverse * scale) + bias
    return (y.astype(x.dtype), mean, variance), (x, scale, mean, inverse)


def _backward(
    epsilon: float, axis_name: str | None, residual: tuple, cotangents: tuple
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, mean, inverse = residual
    g = cotangents[0]
    mean_g, mean_gx = _channel_means(g, x)
    mean_g_xhat = (mean_gx - mean * mean_g) * inverse
    count = x.size // x.shape[-1]
    dscale, dbias = count * mean_g_xhat, count * mean_g
    mean_g, mean_g_xhat = _averaged((mean_g, mean_g_xhat), axis_name)
    dx = (scale * inverse) * (g - mean_g - (x - mean) * (inverse * mean_g_xhat))
    return dx.astype(x.dtype), cotangent_of(scale, dscale), cotangent_of(scale, dbias)


batch_norm.defvjp(_forward, _backward)


def _averaged(
    means: tuple[jax.Array, jax.Array], axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
    return means if axis_name is None else jax.lax.pmean(means, axis_name)


def _channel_means(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Means of a and of a b over all axes but the last, float32."""
    axes = tuple(range(a.ndim - 1))

    def plain(a: jax.Array, b: jax.Array) -> jax.Array:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        return jnp.stack([jnp.sum(a, axes), jnp.sum(a * b, axes)])

    channels = a.shape[-1]
    sums = choose(
        CHANNEL_SUMS,
        plain,
        (a, b),
        shapes=jax.ShapeDtypeStruct((2, channels), jnp.float32),
        fits=lambda lanes: channels % lanes == 0,
    )
    count = a.size // channels
    return sums[0] / count, sums[1] / count

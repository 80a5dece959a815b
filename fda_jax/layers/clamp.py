"""Weights of ReCU: the outliers, which would hardly ever flip, brought back."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from fda_jax import ops
from fda_jax.layers.normalize import StandardizedFilters


class RectifiedClampWeights(nn.Module):
    """Rectified clamp unit: standardized weights, clamped at two quantiles, then their signs.

    Forward: sign(clip(w1, -Q, Q)), w1 the standardized filters of IR-Net times 2 sqrt(2), and
      Q = -mean|w1| ln(2 - 2 tau), the mean over the layer
    Backward: 1 through the sign and 0 beyond the clamp; no gradient flows through Q, but it does
      through the filters' mean and spread
    Source: Xu et al. 2021, "ReCU: Reviving the Dead Weights in Binary Neural Networks" (arXiv
      2103.12369), by the authors' code: Q is the quantile tau of a Laplace distribution with that
      mean magnitude, and tau = A e^progress + B runs from `tau_start` to `tau_end`. The 1e-5 that
      their code adds to the variance is left out.

    Attributes:
      tau_start: at progress 0, in (1/2, 1).
      tau_end: at progress 1, in [tau_start, 1).

    Raises:
      ValueError: an attribute out of its range.
    """

    tau_start: float = 0.85
    tau_end: float = 0.99

    def __post_init__(self) -> None:
        if not 0.5 < self.tau_start <= self.tau_end < 1:
            raise ValueError(
                f"tau runs from {self.tau_start} to {self.tau_end}, but it is a quantile above the "
                "median and may only grow: use 0.5 < tau_start <= tau_end < 1, e.g. 0.85 and 0.99"
            )
        super().__post_init__()

    def tau(self, progress: jax.Array | float) -> jax.Array:
        """The quantile at this progress, a scalar."""
        share = jnp.expm1(jnp.asarray(progress, jnp.float32)) / (math.e - 1.0)
        return self.tau_start + (self.tau_end - self.tau_start) * share

    def bound(self, w1: jax.Array, progress: jax.Array | float) -> jax.Array:
        """Q for the standardized weights w1 of a layer, a scalar."""
        mean = jnp.mean(jnp.abs(jax.lax.stop_gradient(w1)))
        return -mean * jnp.log(2.0 - 2.0 * self.tau(progress))

    def __call__(self, w: jax.Array, *, train: bool, progress: jax.Array | float) -> jax.Array:
        """Quantize w (..., filters); same shape and dtype."""
        w1 = 2.0 * math.sqrt(2.0) * StandardizedFilters()(w, progress)
        bound = self.bound(w1, progress)
        return ops.binarize(jnp.clip(w1, -bound, bound), ops.Identity(), progress)

"""Binary sets of AdaBin: two values that need not be each other's negatives."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fda_jax import ops
from fda_jax.ops.derivatives import broadcast_like


class AdaptiveWeights(nn.Module):
    """Two values for each filter: its mean and its spread to either side.

    Forward: alpha sign((w - beta) / alpha) + beta, with beta the mean and alpha the standard
      deviation of the filter (divisor n)
    Backward: the estimator's slope at (w - beta) / alpha; the gradient flows through alpha and beta
      too, wherever they stand, as in the authors' code
    Source: Tu et al. 2022, "AdaBin" (arXiv 2208.08084).

    The signs and the two scalars of a filter are all that is left at inference. A filter whose
    weights are all equal has no spread: its alpha is 0 and both its values are beta.

    A layer's sums are rounded. With the activations of two values, too, each is made of four whole
    numbers with factors of their own, and 0 by accident alone once the activations' beta is not 0.

    Attributes:
      estimator: the rule of `ops.binarize`.
    """

    estimator: ops.Rule = ops.EDE()

    def __call__(self, w: jax.Array, *, train: bool, progress: jax.Array | float) -> jax.Array:
        """Quantize w (..., filters); same shape and dtype."""
        axes = tuple(range(w.ndim - 1))
        beta = jnp.mean(w, axis=axes, keepdims=True)
        variance = jnp.mean((w - beta) ** 2, axis=axes, keepdims=True)
        # NaN is no flat filter.
        flat = variance == 0
        # The root of 0 has no derivative, not even where `where` throws it away.
        alpha = jnp.sqrt(jnp.where(flat, 1.0, variance))
        binary = ops.binarize((w - beta) / alpha, self.estimator, progress)
        return jnp.where(flat, 0.0, alpha) * binary + beta


class AdaptiveActivations(nn.Module):
    """Two trained values for a layer's activations.

    Forward: alpha sign((a - beta) / alpha) + beta
    Backward: the estimator's slope at (a - beta) / alpha; alpha and beta learn from both places
      where they stand
    Source: Tu et al. 2022, "AdaBin" (arXiv 2208.08084). The authors' code has
      alpha (sign(...) + beta), which is the same until alpha leaves 1.

    At inference the layer is a binary one with a threshold: the constant beta of its input adds
    beta times the sum of the weights that meet it to each output.

    Attributes:
      estimator: the rule of `ops.binarize`.

    Parameters: `alpha` (), 1; `beta` (), 0.
    """

    estimator: ops.Rule = ops.ApproxSign()

    @nn.compact
    def __call__(self, a: jax.Array, *, train: bool, progress: jax.Array | float) -> jax.Array:
        """Quantize a (..., channels); same shape and dtype."""
        alpha = broadcast_like(self.param("alpha", nn.initializers.ones, (), jnp.float32), a)
        beta = broadcast_like(self.param("beta", nn.initializers.zeros, (), jnp.float32), a)
        return alpha * ops.binarize((a - beta) / alpha, self.estimator, progress) + beta

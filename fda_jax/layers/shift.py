"""Activations with a trained threshold."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fda_jax import ops


class ShiftedSign(nn.Module):
    """RSign: the sign of a shifted activation, the shift trained for each channel.

    Forward: sign(a + shift)
    Backward: the estimator's slope at a + shift
    Source: ReActNet (arXiv 2003.03488), Eq. 1, where the threshold is -shift.

    Attributes:
      estimator: the rule of `ops.binarize`.

    Parameters: `shift` (channels,), 0 at the start.
    """

    estimator: ops.Rule = ops.ApproxSign()

    @property
    def makes_signs(self) -> bool:
        """Whether its activations end as -1 and 1."""
        return ops.ends_in_signs(self.estimator)

    @nn.compact
    def __call__(self, a: jax.Array, *, train: bool, progress: jax.Array | float) -> jax.Array:
        """Quantize a (..., channels); same shape and dtype."""
        shift = self.param("shift", nn.initializers.zeros, (a.shape[-1],), jnp.float32)
        return ops.binarize(a + shift.astype(a.dtype), self.estimator, progress)

"""Activations with a trained threshold."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fda_jax import ops
from fda_jax.layers.quantizers import ActivationQuantizer, Quantizer
from fda_jax.ops.derivatives import broadcast_like


class ShiftedSign(nn.Module):
    """RSign: the sign of a shifted activation, the shift trained for each channel.

    Forward: sign(a + shift), in training plus the noise module's estimate where there is one
    Backward: the estimator's slope at a + shift, and the module's
    Source: ReActNet (arXiv 2003.03488), Eq. 1, where the threshold is -shift.

    Attributes:
      quantizer: what becomes of a + shift.

    Parameters: `shift` (channels,), 0 at the start; in `sign` those of the noise module.
    """

    quantizer: Quantizer = Quantizer(ops.ApproxSign())

    @property
    def makes_signs(self) -> bool:
        """Whether its activations end as -1 and 1."""
        return ops.ends_in_signs(self.quantizer.estimator)

    @nn.compact
    def __call__(self, a: jax.Array, *, train: bool, progress: jax.Array | float) -> jax.Array:
        """Quantize a (..., channels); same shape and dtype."""
        shift = self.param("shift", nn.initializers.zeros, (a.shape[-1],), jnp.float32)
        sign = ActivationQuantizer(self.quantizer, name="sign")
        return sign(a + broadcast_like(shift, a), train=train, progress=progress)

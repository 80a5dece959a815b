"""Weights of several bits."""

import flax.linen as nn
import jax

from fda_jax import ops


class UniformWeights(nn.Module):
    """DoReFa weights of several bits, see `ops.uniform_weights`.

    Attributes:
      bits: of a weight, 1 to 16.

    Raises:
      ValueError: bits out of its range.
    """

    bits: int = 2

    def __post_init__(self) -> None:
        ops.UniformActivation(self.bits)  # refuses what cannot be
        super().__post_init__()

    def __call__(self, w: jax.Array, *, train: bool, progress: jax.Array | float) -> jax.Array:
        """Quantize w (..., filters); same shape and dtype."""
        return ops.uniform_weights(w, self.bits)

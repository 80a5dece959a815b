"""What BiPer adds to the loss."""

import dataclasses

import jax
import jax.numpy as jnp

from fda_jax import ops


@dataclasses.dataclass(frozen=True)
class SinePenalty:
    """Regulariser of BiPer: the mean squared sine of the weights.

    Forward: weight * mean(sin(f w)^2), that is weight * mean(1/2 - cos(2 f w) / 2)
    Source: Vargas et al. 2024 (arXiv 2404.01278), by the authors' code for CIFAR-10, where weight
      is 0.037 in the first stage and 0.0468 in the second; their ImageNet code leaves it out.

    As that code has it, the penalty is least where sin(f w) is 0: it draws the sine away from its
    signs, not towards them.

    Attributes:
      frequency: f, radians per unit of w, > 0.
      weight: tau, >= 0.

    Raises:
      ValueError: an attribute out of its range.
    """

    frequency: float = 20.0
    weight: float = 0.037

    def __post_init__(self) -> None:
        ops.Periodic(self.frequency)  # refuses what cannot be
        if not self.weight >= 0:
            raise ValueError(f"regularizer is {self.weight}: use a number >= 0, e.g. 0.037")

    def __call__(self, w: jax.Array, progress: jax.Array | float) -> jax.Array:
        """Penalty of the weights w of one layer."""
        wave = ops.Periodic(self.frequency).twin(w, jnp.asarray(progress, jnp.float32))
        return self.weight * jnp.mean(wave**2)

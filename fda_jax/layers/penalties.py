"""What a method adds to the training loss: frozen maps (w, progress) -> scalar."""

import dataclasses

import jax
import jax.numpy as jnp

from fda_jax.layers.quantizers import SCALES, weight_scale

FORMS = ("l1", "l2")


@dataclasses.dataclass(frozen=True)
class TowardsScale:
    """Regulariser of BNN+: draws the magnitudes of weights towards the scale of their signs.

    Forward: weight * sum |a - |w|| for "l1", weight * sum (a^2 - w^2)^2 for "l2", with a the scale,
      see `weight_scale`, through which no gradient flows
    Source: Darabi et al. 2018 (arXiv 1812.11800). There a is trained or computed; a mean that is
      held fixed is what makes the penalty act on the weights around it alone.

    Attributes:
      form: "l1" or "l2".
      weight: lambda, >= 0.
      scale: that of the weights' quantizer; not "learned", for the penalty sees the weights alone.

    Raises:
      ValueError: an attribute out of its range.
    """

    form: str = "l1"
    weight: float = 1e-6
    scale: str = "filter"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"regularizer is {self.form!r}: use one of none, {', '.join(FORMS)}")
        if not self.weight >= 0:
            raise ValueError(f"regularizer_weight is {self.weight}: use a number >= 0, e.g. 1e-6")
        if self.scale not in SCALES[:-1]:
            raise ValueError(
                f"the regularizer draws weights towards their scale, which is {self.scale!r}: use "
                f"one of {', '.join(SCALES[:-1])}, or regularizer='none'"
            )

    def __call__(self, w: jax.Array, progress: jax.Array | float) -> jax.Array:
        """Penalty of the weights w (..., filters) of one layer."""
        scale = jax.lax.stop_gradient(weight_scale(w, self.scale))
        if self.form == "l1":
            return self.weight * jnp.sum(jnp.abs(scale - jnp.abs(w)))
        return self.weight * jnp.sum((scale**2 - w**2) ** 2)

"""What becomes of activations before their signs are taken: frozen maps (a, progress) -> a."""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class StandardizedSamples:
    """Activations of unit spread, so that the window of a slope fits every example alike.

    Forward: a / sqrt(var + 1e-5), or (a - mean) / sqrt(var + 1e-5) where `center`; both of each
      example, that is over all axes but the first, var with the divisor n - 1
    Source: the code of ReCU (arXiv 2103.12369) and of BiPer (arXiv 2404.01278), which divide in
      training only, for signs do not feel it; the ImageNet code of RBNN (arXiv 2009.13055), which
      also centres, so that inference has to subtract the mean too. There is no 1e-5 in RBNN's.

    The gradient flows through mean and var, as in all three. Computed in float32 for 16-bit inputs.

    Attributes:
      center: whether the mean is subtracted, which moves the sign's threshold.
    """

    center: bool = False

    def __call__(self, a: jax.Array, progress: jax.Array | float) -> jax.Array:
        """Map a (examples, ...) to the same shape and dtype."""
        wide = a.astype(jnp.promote_types(a.dtype, jnp.float32))
        axes = tuple(range(1, a.ndim))
        centered = wide - jnp.mean(wide, axis=axes, keepdims=True)
        squares = jnp.sum(centered**2, axis=axes, keepdims=True)
        variance = squares / max(math.prod(a.shape[1:]) - 1, 1)
        kept = centered if self.center else wide
        return (kept / jnp.sqrt(variance + 1e-5)).astype(a.dtype)

"""What becomes of latent weights before their signs are taken: frozen maps (w, progress) -> w.

Filters are last, as in HWIO kernels (height, width, in, out) and matrices (in, out).
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class CenteredWeights:
    """Weights of XNOR-Net: centred over their input channels, then clipped.

    Forward: clip(w - mean of w over input channels, -bound, bound)
    Source: XNOR-Net (arXiv 1603.05279), by its public code, which does this to the latent weights
      themselves before every step. Here they stay as they are and the gradient flows through: it
      is centred in the same way, where that code multiplies it by 1 - 1 / channels.

    Attributes:
      bound: > 0.

    Raises:
      ValueError: bound is not positive.
    """

    bound: float = 1.0

    def __post_init__(self) -> None:
        if not self.bound > 0:
            raise ValueError(f"bound is {self.bound}: use a number > 0, e.g. 1.0")

    def __call__(self, w: jax.Array, progress: jax.Array | float) -> jax.Array:
        """Map w (..., in, filters) to the same shape."""
        return jnp.clip(w - jnp.mean(w, axis=-2, keepdims=True), -self.bound, self.bound)


@dataclasses.dataclass(frozen=True)
class StandardizedFilters:
    """Weights of IR-Net: each filter has mean 0 and variance 1, so its signs are balanced.

    Forward: (w - mean) / std, both of the filter, std with the divisor n - 1
    Source: IR-Net (arXiv 1909.10788), section 3.2. The gradient flows through mean and std, as in
      the authors' code.

    A filter whose weights are all equal has no spread to divide by, and becomes 0.
    """

    def __call__(self, w: jax.Array, progress: jax.Array | float) -> jax.Array:
        """Map w (..., filters) to the same shape."""
        axes = tuple(range(w.ndim - 1))
        centered = w - jnp.mean(w, axis=axes, keepdims=True)
        weights_per_filter = w.size // w.shape[-1]
        squares = jnp.sum(centered**2, axis=axes, keepdims=True)
        # The root of 0 has no derivative, not even where `where` throws it away.
        variance = jnp.where(squares > 0, squares, 1.0) / max(weights_per_filter - 1, 1)
        return centered / jnp.sqrt(variance)

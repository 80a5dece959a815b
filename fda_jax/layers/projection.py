"""Weights of PCNN: projected on two values by a trained matrix."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fda_jax import ops
from fda_jax.layers.quantizers import ScaledOperand, ScaledQuantizer, sow_penalty, weight_scale


class ProjectedWeights(ScaledQuantizer):
    """Latent weights times a trained matrix, projected on the nearest of two values.

    Forward: a sign(m c), c the latent weights, a their mean magnitude over the layer, m the mean of
      the projection matrix W over its positions; nearest to m c in {-a, a}
    Backward: 1[|W c| <= 1] from the projection to W c, and from there to c and W; as in the paper
      with W in place of its mean and without a factor a
    Penalty: (weight / 2) sum (a sign(m c) - W c)^2, the projection a constant in it
    Source: Gu et al. 2019, "Projection Convolutional Neural Networks for 1-bit CNNs via Discrete
      Back Propagation" (arXiv 1811.12755); the weight 1e-4 is the best of its ablation on
      CIFAR-10. Its penalty has c after the next step in place of c, which changes the gradient by
      a share of the order weight * learning rate, and is left out. Of its J projections, whose
      outputs are joined as channels and make another network, there is one.

    W has one value for each position of the kernel, and is the same for all channels and filters;
    it starts at 1, which the paper leaves open. Signs and a are all that is left at inference.

    Attributes:
      penalty_weight: lambda, >= 0.

    Parameters: `projection` (height, width) of the kernel, () for a dense layer.

    Raises:
      ValueError: penalty_weight is negative.
    """

    penalty_weight: float = 1e-4

    def __post_init__(self) -> None:
        if not self.penalty_weight >= 0:
            raise ValueError(f"regularizer is {self.penalty_weight}: use a number >= 0, e.g. 1e-4")
        super().__post_init__()

    @nn.compact
    def apart(
        self, w: jax.Array, *, train: bool, progress: jax.Array | float
    ) -> jax.Array | ScaledOperand:
        """Quantize w (..., in, filters); same shape and dtype."""
        matrix = self.param("projection", nn.initializers.ones, w.shape[:-2], jnp.float32)
        scale = jax.lax.stop_gradient(weight_scale(w, "layer"))
        projected = matrix[..., None, None] * w
        signs = jax.lax.stop_gradient(ops.sign(jnp.mean(matrix) * w))
        if train:
            sow_penalty(self, lambda x, _: self._penalty(scale * signs - x), projected, progress)
        inside = jnp.where(jnp.abs(projected) > 1.0, 0.0, projected)
        # Exactly 0 forward, the slope backward.
        kernel = signs + (inside - jax.lax.stop_gradient(inside))
        return ScaledOperand(kernel, scale, scale_in_gradient=False)

    def _penalty(self, error: jax.Array) -> jax.Array:
        return self.penalty_weight / 2.0 * jnp.sum(error**2)

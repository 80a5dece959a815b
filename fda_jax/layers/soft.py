"""DSQ with everything learned that the paper learns."""

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from fda_jax import ops
from fda_jax.layers.quantizers import ScaledOperand, ScaledQuantizer, weight_scale


class LearnedDSQ(ScaledQuantizer):
    """Differentiable soft quantization for one bit, its steepness and clipping range trained.

    Forward: scale * sign(phi(x)), phi(x) = s tanh(k (clip(x, l, u) - (l + u) / 2)) with
      s = 1 / (1 - alpha) and k = ln(2 / alpha - 1) / (u - l)
    Backward: the derivative of phi by x, alpha, l and u, straight through the sign: 1 from phi to
      its sign. Beyond [l, u], where phi is +-1 whatever the parameters, there is none.
    Source: Gong et al. 2019, "Differentiable Soft Quantization" (arXiv 1908.05033): one bit has
      a single interval, of length u - l.

    The gradient of the range, a sum over n weights, or n activations of an example, is divided by
    sqrt(n), as that of LSQ's step size (arXiv 1902.08153, section 2.2), which is a length beside
    the operand's, too. That is our choice: without it the middle of the range leaves the weights of
    ResNet-20 within an epoch, at a learning rate of 0.1, and all weights of a layer have one sign.
    Alpha has no such unit, and its logit, far larger than a weight, would hardly move by a divided
    gradient: its own is the whole sum.

    Public code keeps alpha in its range by a bound; here alpha = sigmoid of a parameter, and the
    range is held by its middle and the logarithm of its half-width, so that l < u. Weight decay
    leaves the logit and the logarithm alone by default (`models.summary`, the group "log"): it
    would draw alpha to 1/2. At inference the middle alone is left, as a threshold.

    Attributes:
      alpha: at the start, in (0, 1).
      window: half-width of the range at the start, > 0.
      scale: of weights, see `weight_scale`; no gradient flows through it. Activations use "none".
      batched: whether the first axis is that of the examples, as activations have it.

    Parameters: `alpha_logit`, `middle`, `log_half_width`, all ().

    Raises:
      ValueError: alpha or window out of its range.
    """

    alpha: float = 0.2
    window: float = 1.0
    scale: str = "none"
    batched: bool = False
    makes_signs: ClassVar[bool] = True  # of activations; weights have a scale

    def __post_init__(self) -> None:
        ops.DSQ(self.alpha, self.window)  # refuses what cannot be
        super().__post_init__()

    @nn.compact
    def apart(
        self, x: jax.Array, *, train: bool, progress: jax.Array | float
    ) -> jax.Array | ScaledOperand:
        """Quantize x: weights (..., filters) or activations (..., channels); same shape, dtype."""
        start = {
            "alpha_logit": math.log(self.alpha / (1.0 - self.alpha)),
            "middle": 0.0,
            "log_half_width": math.log(self.window),
        }
        size = math.prod(x.shape[1:]) if self.batched else x.size
        logit, *ends = (
            self.param(name, nn.initializers.constant(value), (), jnp.float32)
            for name, value in start.items()
        )
        middle, log_half_width = (_slowed(end, size) for end in ends)
        soft = self._phi(x, jax.nn.sigmoid(logit), middle, jnp.exp(log_half_width))
        binary = ops.binarize(soft, ops.Identity(), progress).astype(x.dtype)
        if self.scale == "none":
            return binary
        return ScaledOperand(binary, jax.lax.stop_gradient(weight_scale(x, self.scale)))

    def _phi(
        self, x: jax.Array, alpha: jax.Array, middle: jax.Array, half_width: jax.Array
    ) -> jax.Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        steepness = jnp.log(2.0 / alpha - 1.0) / (2.0 * half_width)
        # Not clip, whose derivative at a bound is 1/2.
        inside = wide - middle
        inside = jnp.where(jnp.abs(inside) > half_width, jnp.sign(inside) * half_width, inside)
        return jnp.tanh(steepness * inside) / (1.0 - alpha)


def _slowed(parameter: jax.Array, size: int) -> jax.Array:
    """The parameter, with its gradient divided by sqrt(size)."""
    share = 1.0 / math.sqrt(max(size, 1))
    return share * parameter + jax.lax.stop_gradient((1.0 - share) * parameter)

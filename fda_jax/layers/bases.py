"""Binary bases of ABC-Net: an operand as a weighted sum of several signs."""

from collections.abc import Iterable

import flax.linen as nn
import jax
import jax.numpy as jnp

from fda_jax import ops
from fda_jax.layers.quantizers import ScaledOperand, ScaledQuantizer, whole
from fda_jax.ops.checks import check_choice
from fda_jax.ops.derivatives import broadcast_like

SCALES = ("layer", "filter")


class WeightBases(ScaledQuantizer):
    """Weights as the sum of M signs, each with its own threshold and factor.

    Forward: sum_i alpha_i B_i, B_i = sign(w - mean(w) + u_i std(w)), the u_i evenly from -1 to 1
      (0 where M = 1), alpha the least-squares solution of w = sum_i alpha_i B_i
    Backward: sum_i alpha_i times the gradient of B_i, 1 through each sign; alpha, mean and std are
      constants there
    Source: Lin, Zhao & Pan 2017, "Towards Accurate Binary Convolutional Neural Network" (arXiv
      1711.11294).

    M thresholds leave M + 1 values of a weight; M = 1 is two-valued. At inference each B_i is a
    binary kernel of its own and alpha_i its scale. Only for M = 1 a layer's sums are whole numbers
    times a scale: for more it multiplies by the sum of all, not M times as often by each.

    Attributes:
      bases: M, >= 1.
      scale: whether mean, std and alpha are the layer's, "layer", or each filter's, "filter".

    Raises:
      ValueError: an attribute out of its range.
    """

    bases: int = 1
    scale: str = "layer"

    def __post_init__(self) -> None:
        _check_bases("weight_bases", self.bases)
        check_choice("scale", self.scale, SCALES)
        super().__post_init__()

    def apart(
        self, w: jax.Array, *, train: bool, progress: jax.Array | float
    ) -> jax.Array | ScaledOperand:
        """Quantize w (..., filters); same shape and dtype."""
        shape = (-1, w.shape[-1]) if self.scale == "filter" else (-1, 1)
        flat = w.reshape(shape)
        fixed = jax.lax.stop_gradient(flat)
        mean, std = jnp.mean(fixed, axis=0), jnp.std(fixed, axis=0)
        signs = [
            ops.binarize(flat - mean + u * std, ops.Identity(), progress)
            for u in _grid(self.bases, 1.0)
        ]
        alpha = _least_squares(jax.lax.stop_gradient(jnp.stack(signs)), fixed)
        return _sum(
            ScaledOperand(b.reshape(w.shape), jnp.squeeze(factor))
            for b, factor in zip(signs, alpha, strict=True)
        )


class ActivationBases(ScaledQuantizer):
    """Activations as the sum of N signs, each with a trained threshold and factor.

    Forward: sum_n beta_n A_n, A_n = 2 I[clip(a + v_n, 0, 1) > 1/2] - 1, that is
      sign(a + v_n - 1/2); the paper has >=, and no word about the sign of 0
    Backward: beta_n times the incoming gradient where 0 <= a + v_n <= 1, 0 elsewhere; v_n learns
      from the same
    Source: Lin, Zhao & Pan 2017 (arXiv 1711.11294), whose slope of A_n by the clipped value is
      read as 1. The start is our choice: v_n evenly from -1/2 to 3/2 (1/2 where N = 1), so that
      the thresholds 1/2 - v_n surround 0, and beta_n = 1.

    N thresholds leave N + 1 values. At inference each A_n is a binary input of its own. In training
    their sum is one input, as that of `WeightBases` is one kernel.

    Attributes:
      bases: N, >= 1.

    Parameters: `shift` (N,), v; `scale` (N,), beta.

    Raises:
      ValueError: bases is below 1.
    """

    bases: int = 1

    def __post_init__(self) -> None:
        _check_bases("activation_bases", self.bases)
        super().__post_init__()

    @nn.compact
    def apart(
        self, a: jax.Array, *, train: bool, progress: jax.Array | float
    ) -> jax.Array | ScaledOperand:
        """Quantize a (..., channels); same shape and dtype."""
        start = [0.5 + u for u in _grid(self.bases, 1.0)]
        shift = self.param("shift", lambda _: jnp.asarray(start, jnp.float32))
        scale = self.param("scale", nn.initializers.ones, (self.bases,), jnp.float32)
        rule = ops.ClippedSTE(0.5)
        return _sum(
            ScaledOperand(ops.binarize(a + broadcast_like(v, a) - 0.5, rule, progress), beta)
            for v, beta in zip(shift, scale, strict=True)
        )


def _sum(bases: Iterable[ScaledOperand]) -> jax.Array | ScaledOperand:
    """A single basis as it is, the sum of several as numbers."""
    first, *others = bases
    return sum(map(whole, others), whole(first)) if others else first


def _grid(size: int, end: float) -> list[float]:
    """Evenly from -end to end; 0 for a single one."""
    if size == 1:
        return [0.0]
    return [end * (2.0 * i / (size - 1) - 1.0) for i in range(size)]


def _least_squares(signs: jax.Array, w: jax.Array) -> jax.Array:
    """alpha (bases, columns) of w (n, columns) = sum_i alpha_i signs_i (bases, n, columns)."""
    if len(signs) == 1:
        return jnp.mean(signs * w, axis=1)
    precise = jax.lax.Precision.HIGHEST
    gram = jnp.einsum("inc,jnc->cij", signs, signs, precision=precise) / len(w)
    right = jnp.einsum("inc,nc->ci", signs, w, precision=precise) / len(w)
    # Bases are equal where no weight lies between their thresholds; this lets them share alpha.
    gram += 1e-6 * jnp.eye(len(signs))
    return jnp.linalg.solve(gram, right[..., None])[..., 0].T


def _check_bases(name: str, bases: int) -> None:
    if not bases >= 1:
        raise ValueError(f"{name} is {bases}: use a whole number >= 1")

"""Weights of RBNN: turned towards their signs before these are taken."""

import math
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from fda_jax import ops
from fda_jax.layers.normalize import StandardizedFilters
from fda_jax.ops.stages import stages_behind

ALTERNATIONS = 3


def factors(size: int) -> tuple[int, int]:
    """The two whole numbers whose product is size and which lie nearest, the smaller one first."""
    small = next(n for n in range(math.isqrt(size), 0, -1) if size % n == 0)
    return small, size // small


def rotate(x: jax.Array, r1: jax.Array, r2: jax.Array) -> jax.Array:
    """Turn filters: r1^T x_i r2 for each matrix x_i of x (filters, n1, n2)."""
    return _product("ba,fbc,cd->fad", r1, x, r2)


def fit_rotation(
    x: jax.Array, r1: jax.Array, r2: jax.Array, alternations: int = ALTERNATIONS
) -> tuple[jax.Array, jax.Array]:
    """Rotations that bring filters nearer to their signs.

    Forward: repeat B = sign(r1^T x r2);
             r1 = polar(sum_i x_i r2 B_i^T);
             r2 = polar(sum_i x_i^T r1 B_i)
    Source:  RBNN (arXiv 2009.13055), its bi-rotation: each line maximises sum_i <B_i, r1^T x_i r2>
      over what it replaces, so that no repetition lowers sum_i |r1^T x_i r2|_1, and with it the
      mean cosine between filters of equal norm and their signs. polar(U S V^T) = U V^T.

    Args:
      x: (filters, n1, n2), float32.
      r1: orthogonal (n1, n1).
      r2: orthogonal (n2, n2).
      alternations: repetitions; 3 in the authors' code.

    Returns:
      Orthogonal matrices shaped like r1 and r2.
    """
    for _ in range(alternations):
        signs = ops.sign(rotate(x, r1, r2))
        r1 = _polar(_product("fab,bc,fdc->ad", x, r2, signs))
        r2 = _polar(_product("fba,bc,fcd->ad", x, r1, signs))
    return r1, r2


class RotatedWeights(nn.Module):
    """Signs of weights that a learned share of a fitted rotation has turned.

    Forward: sign(w2 + |sin(theta)| (R w2 - w2)), w2 the standardized filters of IR-Net and R w2
      each of them as an n1 x n2 matrix between two rotations, see `fit_rotation`; n1 n2 is the
      filter's length and both are as near as can be
    Backward: the estimator's slope; no gradient flows through R w2, so that w2 gets the share
      1 - |sin(theta)| and theta the rest
    Source: Lin et al. 2020, "Rotated Binary Neural Network" (arXiv 2009.13055), by the authors'
      code: theta is one a filter, uniform in (0, pi / 2) at the start as in their code for
      CIFAR-10 (at pi / 2, as in that for ImageNet, no gradient would reach the weights).

    The rotations are part of the batch statistics: the identity at the start (random ones in the
    authors' code for CIFAR-10), fitted in the first training step and each time that
    floor(refits * progress) changes, inside the compiled step. They are used as they are stored at
    inference, where a filter is still two values: what is left of all this is its signs. Moving
    averages of statistics average the rotations too, and a mean of rotations is none; it changes
    R w2 a little between two refits.

    Attributes:
      estimator: the rule of `ops.binarize`.
      refits: how often the rotations are fitted in a run; by the authors' default once an epoch.

    Parameters: `theta` (filters,). State: `rotation1` (n1, n1), `rotation2` (n2, n2), `refit` ().

    Raises:
      ValueError: refits is below 1.
    """

    estimator: ops.Rule = ops.RotationAware()
    refits: int = 400

    def __post_init__(self) -> None:
        if not self.refits >= 1:
            raise ValueError(f"refits is {self.refits}: use a whole number >= 1, e.g. 400")
        super().__post_init__()

    @nn.compact
    def __call__(self, w: jax.Array, *, train: bool, progress: jax.Array | float) -> jax.Array:
        """Quantize w (..., filters); same shape and dtype."""
        w2 = StandardizedFilters()(w, progress)
        filters = w.shape[-1]
        matrices = w2.reshape(-1, filters).T.reshape(filters, *factors(w.size // filters))
        angle = nn.initializers.uniform(math.pi / 2)
        theta = self.param("theta", angle, (filters,), jnp.float32)
        r1, r2 = self._rotations(matrices, train, progress)
        turned = rotate(jax.lax.stop_gradient(matrices), r1, r2)
        turned = turned.reshape(filters, -1).T.reshape(w.shape)
        return ops.binarize(w2 + jnp.abs(jnp.sin(theta)) * (turned - w2), self.estimator, progress)

    def _rotations(
        self, matrices: jax.Array, train: bool, progress: jax.Array | float
    ) -> tuple[jax.Array, jax.Array]:
        n1, n2 = matrices.shape[1:]
        first = self.variable("batch_stats", "rotation1", jnp.eye, n1, dtype=jnp.float32)
        second = self.variable("batch_stats", "rotation2", jnp.eye, n2, dtype=jnp.float32)
        # Of which share of the run they are; a float, as all statistics that are averaged.
        refit = self.variable("batch_stats", "refit", lambda: jnp.full((), -1.0, jnp.float32))
        if train and not self.is_initializing():
            share = stages_behind(progress, self.refits)
            first.value, second.value = jax.lax.cond(
                share != refit.value,
                fit_rotation,
                lambda _, r1, r2: (r1, r2),
                jax.lax.stop_gradient(matrices),
                first.value,
                second.value,
            )
            refit.value = share
        return cast(tuple[jax.Array, jax.Array], (first.value, second.value))


def _polar(matrix: jax.Array) -> jax.Array:
    u, _, vh = jnp.linalg.svd(matrix, full_matrices=False)
    return jnp.matmul(u, vh, precision=jax.lax.Precision.HIGHEST)


def _product(formula: str, *operands: jax.Array) -> jax.Array:
    return jnp.einsum(formula, *operands, precision=jax.lax.Precision.HIGHEST)

"""The primitive: a binary forward pass with a chosen backward pass."""

import dataclasses
import functools
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np


def sign(x: jax.Array) -> jax.Array:
    """Two-valued sign: +1 where x > 0, -1 elsewhere (so sign(0) = sign(-0) = -1); NaN stays NaN.

    Source: [FDA Eq. 1]. A sign that swallows NaN hides a run that is already lost.

    Args:
      x: float array of any shape.

    Returns:
      Array shaped and typed like x.

    Examples:
      >>> import jax.numpy as jnp
      >>> from fda_jax import ops
      >>> ops.sign(jnp.array([-0.3, 0.0, 0.7])).tolist()
      [-1.0, -1.0, 1.0]
    """
    x = jnp.asarray(x)
    binary = jnp.where(x > 0, jnp.ones_like(x), -jnp.ones_like(x))
    return jnp.where(jnp.isnan(x), x, binary)


class Rule(Protocol):
    """What `binarize` needs: a frozen, hashable value with two maps.

    `forward(x, progress)` is what the network computes; `slope(x, progress)` is the factor that
    the incoming gradient is multiplied by. Both get float arrays of any shape and a float32
    scalar in [0, 1]; `slope` always sees float32 or wider.
    """

    def forward(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """What the network computes at x, same shape as x."""
        ...

    def slope(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """Factor of the backward pass at x, same shape as x."""
        ...

    def __hash__(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Estimator:
    """Base of the rules: sign forward, and a `twin` whose true derivative is the slope.

    A new estimator overrides `slope` and `twin`. The twin is the smooth (or piecewise smooth)
    function that the backward pass pretends to differentiate; it is plotted beside the slope, and
    one law tests every rule by it: vjp(binarize) = vjp(twin) away from the twin's kinks.
    """

    def forward(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """What the network computes; `sign` unless a rule says otherwise."""
        del progress  # sign does not change during training
        return sign(x)

    def slope(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """Factor of the backward pass at x, same shape as x."""
        raise NotImplementedError

    def twin(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """The function whose derivative `slope` is, same shape as x."""
        raise NotImplementedError


def ends_in_signs(rule: Rule) -> bool:
    """Whether a rule makes -1 or 1 of every number when training is over.

    It is tried on numbers of all sizes.

    Args:
      rule: whose `forward` takes each number by itself, or several together.

    Examples:
      >>> from fda_jax import ops
      >>> ops.ends_in_signs(ops.Fourier()), ops.ends_in_signs(ops.Ternary())
      (True, False)
    """
    sizes = np.float32(2.0) ** np.arange(-126, 127, dtype=np.float32)
    numbers = np.concatenate([-sizes, np.zeros(1, np.float32), sizes])[None]
    return bool(_makes_ones(np.float32(1.0), numbers, rule))


@functools.partial(jax.jit, static_argnums=2)
def _makes_ones(progress: jax.Array, numbers: jax.Array, rule: Rule) -> jax.Array:
    return jnp.all(jnp.abs(rule.forward(numbers, progress)) == 1.0)


def binarize(x: jax.Array, estimator: Rule, progress: jax.Array | float = 1.0) -> jax.Array:
    """Apply an estimator: its forward map, with its slope as the derivative.

    Forward:  estimator.forward(x, progress)
    Backward: cotangent * estimator.slope(x, progress), in float32 or wider, cast back
    Source:   straight-through estimation as in [FDA Eq. 2], any slope in place of the clip.

    Only x is kept for the backward pass (4 bytes an element in float32); the slope is computed
    again from it. Forward-mode differentiation raises JAX's TypeError for custom_vjp functions.

    Args:
      x: float array of any shape.
      estimator: a `Rule`, such as `ESTIMATORS["fourier"]()`; static under jit.
      progress: finished share of training, scalar in [0, 1]; may be traced; gets no gradient.

    Returns:
      Array shaped and typed like x.

    Raises:
      TypeError: x is not a float array: an integer has no gradient to estimate; or the estimator
        is a name or a class.

    Examples:
      >>> import jax
      >>> from fda_jax import ops
      >>> rule = ops.ESTIMATORS["approx_sign"]()
      >>> value, slope = jax.value_and_grad(lambda x: ops.binarize(x, rule))(0.25)
      >>> float(value), float(slope)
      (1.0, 1.5)
    """
    if isinstance(estimator, str | type):
        raise TypeError(
            f"the estimator is {estimator!r}, but binarize takes a rule: give it one, such as "
            'ops.Fourier() or ops.ESTIMATORS["fourier"]()'
        )
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"binarize got an array of {x.dtype}, but only float arrays carry gradients: "
            "convert it first, e.g. x.astype(jnp.float32)"
        )
    return _binarize(x, jnp.asarray(progress, jnp.float32), estimator)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _binarize(x: jax.Array, progress: jax.Array, estimator: Rule) -> jax.Array:
    return estimator.forward(x, progress)


def _binarize_fwd(x: jax.Array, progress: jax.Array, estimator: Rule) -> tuple:
    return estimator.forward(x, progress), (x, progress)


def _binarize_bwd(estimator: Rule, residual: tuple, cotangent: jax.Array) -> tuple:
    x, progress = residual
    wide = jnp.promote_types(x.dtype, jnp.float32)
    slope = estimator.slope(x.astype(wide), progress)
    return (cotangent.astype(wide) * slope).astype(x.dtype), None


_binarize.defvjp(_binarize_fwd, _binarize_bwd)

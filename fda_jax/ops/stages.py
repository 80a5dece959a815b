"""Schedules in steps: which of several equal shares of a run it is in."""

import jax
import jax.numpy as jnp

# More than float32 loses of the progress, less than a step of a run of a million.
_ROUNDING = 2.0**-21


def stages_behind(progress: jax.Array | float, stages: int) -> jax.Array:
    """How many of a run's equal stages lie behind: floor(stages progress).

    A progress that rounding has left just short of a stage's start counts as that start: XLA
    divides by a number of steps by multiplying with its reciprocal, and 10 / 50 comes out below
    1 / 5.

    Args:
      progress: finished share of training, in [0, 1].
      stages: >= 1.

    Returns:
      A whole float32 scalar.

    Examples:
      >>> import numpy as np
      >>> from fda_jax.ops.stages import stages_behind
      >>> [int(stages_behind(p, 5)) for p in (0.0, 0.19, np.nextafter(np.float32(0.2), 0), 1.0)]
      [0, 0, 1, 5]
    """
    share = jnp.asarray(progress, jnp.float32)
    return jnp.floor(share * (stages * (1.0 + _ROUNDING)))

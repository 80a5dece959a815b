"""What a run carries from step to step: arrays only."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """The state of training after `step` steps.

    Attributes:
      step: int32 scalar, number of finished steps.
      params: latent weights and all other trained parameters, float32.
      batch_stats: running statistics of batch normalisation.
      opt_state: of the optimizer.
      ema: exponential moving averages of params and batch_stats, or {} without them.
    """

    step: jax.Array
    params: Mapping[str, Any]
    batch_stats: Mapping[str, Any]
    opt_state: optax.OptState
    ema: Mapping[str, Any]

    def inference_variables(self) -> dict[str, Any]:
        """The variables that evaluation uses: the averaged ones where there are some."""
        raw = {"params": self.params, "batch_stats": self.batch_stats}
        return dict(self.ema) if self.ema else raw


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    image_shape_hwc: tuple[int, ...],
    *,
    with_ema: bool,
) -> TrainState:
    """The state before the first step.

    Args:
      model: network.
      optimizer: optax transform.
      key: of the random initial weights.
      image_shape_hwc: height, width and channels of one image.
      with_ema: keep moving averages, which start at the initial values.

    Returns:
      A `TrainState` at step 0.
    """
    variables = dict(jax.jit(model.init)(key, jnp.zeros((1, *image_shape_hwc), jnp.float32)))
    params, batch_stats = variables["params"], variables.get("batch_stats") or {}
    averaged = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        ema=averaged if with_ema else {},
    )

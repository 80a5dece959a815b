"""What a run carries from step to step: arrays only."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fda_jax.training.packing import pack_parameters, pack_statistics, unpacked


@flax.struct.dataclass
class TrainState:
    """The state of training after `step` steps.

    Attributes:
      step: int32 scalar, number of finished steps.
      params: latent weights and all other trained parameters, float32.
      batch_stats: running statistics of batch normalisation.
      opt_state: of the optimizer, which sees the parameters packed.
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

    def pack(self) -> "TrainState":
        """The same with parameters and statistics packed, as a loop of steps carries them."""
        return self._mapped(pack_parameters, pack_statistics)

    def unpack(self) -> "TrainState":
        """The same with every tree as it is between calls."""
        return self._mapped(unpacked, unpacked)

    def _mapped(
        self, params: Callable[[Any], Any], batch_stats: Callable[[Any], Any]
    ) -> "TrainState":
        mapped = {
            "params": params(self.params),
            "batch_stats": batch_stats(self.batch_stats),
        }
        averaged = {}
        if self.ema:
            averaged = {
                "params": params(self.ema["params"]),
                "batch_stats": batch_stats(self.ema["batch_stats"]),
            }
        return dataclasses.replace(self, **mapped, ema=averaged)


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    image_shape_hwc: tuple[int, ...],
    *,
    with_ema: bool,
    values: Mapping[str, Any] | None = None,
) -> TrainState:
    """The state before the first step.

    Args:
      model: network.
      optimizer: optax transform.
      key: of the random initial weights.
      image_shape_hwc: height, width and channels of one image.
      with_ema: keep moving averages, which start at the initial values.
      values: of "params" and "batch_stats" to start from; what they leave out starts as it does
        in a new network round these values (a learned scale, say, at the mean of these weights).

    Returns:
      A `TrainState` at step 0.
    """
    initializer = _initializer(model)

    # One program for all of it: outside, each array of another shape would be one more to compile.
    def initialize(key: jax.Array, image: jax.Array, values: Mapping[str, Any]) -> TrainState:
        variables = dict(initializer(key, image, values))
        params, batch_stats = variables["params"], variables.get("batch_stats") or {}
        averaged = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=batch_stats,
            opt_state=optimizer.init(cast(Any, pack_parameters(params))),
            ema=averaged if with_ema else {},
        )

    image = np.zeros((1, *image_shape_hwc), np.float32)
    return jax.jit(initialize, compiler_options=_quick_to_compile())(key, image, values or {})


def _quick_to_compile() -> dict[str, Any] | None:
    """Options for a program that runs once: a hundred random draws take LLVM long to optimize."""
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None


def variable_shapes(
    model: nn.Module, image_shape_hwc: tuple[int, ...]
) -> dict[str, Mapping[str, Any]]:
    """The "params" and "batch_stats" of a network as shapes and dtypes; nothing is compiled.

    Args:
      model: network.
      image_shape_hwc: height, width and channels of one image.

    Returns:
      The two collections, a jax.ShapeDtypeStruct at each leaf.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape_hwc), jnp.float32)
    variables = dict(jax.eval_shape(model.init, jax.random.key(0), image))
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats") or {}}


def _initializer(model: nn.Module) -> Callable[..., Any]:
    def initialize(key: jax.Array, image: jax.Array, values: Mapping[str, Any]) -> Any:
        def call(module: nn.Module, image: jax.Array) -> Any:
            for collection, tree in values.items():
                for name, subtree in tree.items():
                    module.put_variable(collection, name, subtree)
            return cast(Any, module)(image)

        return nn.init(call, model)(key, image)

    return initialize

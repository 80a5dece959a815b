"""How many binary weights change their sign from one epoch to the next."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from fda_jax.models import count_parameters


@flax.struct.dataclass
class Signs:
    """The signs of all binary weights of a network, a bit each.

    Attributes:
      bits: uint8 (ceil(count / 8),), 1 where a weight is above 0; the bits behind the last are 0.
      count: int32 scalar, number of binary weights.
    """

    bits: np.ndarray
    count: np.ndarray

    def share_flipped_since(self, earlier: "Signs") -> float:
        """The share of weights, in [0, 1], whose sign is not what it was."""
        return int(np.bitwise_count(self.bits ^ earlier.bits).sum()) / int(self.count)


def effective_weights(
    model: nn.Module, variables: Mapping[str, Any], image_shape_hwc: tuple[int, ...]
) -> Mapping[str, Any]:
    """The weights that inference multiplies with: where a method normalises or wraps the latent
    weights, these have other signs.

    Args:
      model: network.
      variables: its "params" and "batch_stats".
      image_shape_hwc: height, width and channels of one image.

    Returns:
      Nested mapping from the layers' names to {"kernel": (weights,)}.
    """
    # The weights do not depend on the image, so nothing is convolved in a compiled function.
    image = jnp.zeros((1, *image_shape_hwc), jnp.float32)
    _, sown = model.apply(variables, image, train=False, mutable=["effective_weights"])
    return sown["effective_weights"]


def make_signs(
    model: nn.Module, image_shape_hwc: tuple[int, ...]
) -> Callable[[Mapping[str, Any]], Signs | None]:
    """Make the function that reads the signs of a network's binary weights.

    They are the signs of the effective weights, those that inference multiplies with.

    Args:
      model: network.
      image_shape_hwc: height, width and channels of one image.

    Returns:
      variables -> `Signs`, or None where the network has no binary weights.
    """

    @jax.jit
    def pack(variables: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
        kernels = jax.tree.leaves(effective_weights(model, variables, image_shape_hwc))
        positive = jnp.concatenate([jnp.ravel(kernel) > 0 for kernel in kernels])
        return jnp.packbits(positive), jnp.int32(positive.size)

    def signs(variables: Mapping[str, Any]) -> Signs | None:
        if not count_parameters(variables["params"]).binary:
            return None
        return Signs(*map(np.asarray, pack(jax.device_get(variables))))

    return signs

"""What stands behind a binary layer: a nonlinearity of real numbers, by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import flax.linen as nn
import jax
import jax.numpy as jnp

from fda_jax.ops.derivatives import broadcast_like


class PReLU(nn.Module):
    """PReLU with one slope for the layer: max(x, 0) + slope min(x, 0).

    At exactly 0, where a sum of signs often lies, its derivative is the slope, as in PyTorch.

    Source: He et al. 2015 (arXiv 1502.01852); one slope a layer as FDA-BNN's released code.

    Parameters: `negative_slope` (), 0.25 at the start.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x (..., channels) to the same shape and dtype."""
        slope = self.param("negative_slope", nn.initializers.constant(0.25), (), jnp.float32)
        return jnp.where(x > 0, x, broadcast_like(slope, x) * x)


class RPReLU(nn.Module):
    """Shifted PReLU: PReLU(x - shift_in) + shift_out, all three trained for each channel.

    Source: ReActNet (arXiv 2003.03488), Eq. 3.

    Parameters: `shift_in`, `shift_out` (channels,), 0; `negative_slope` (channels,), 0.25.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x (..., channels) to the same shape and dtype."""
        shape, zeros = (x.shape[-1],), nn.initializers.zeros
        shift_in = self.param("shift_in", zeros, shape, jnp.float32)
        shift_out = self.param("shift_out", zeros, shape, jnp.float32)
        slope = self.param("negative_slope", nn.initializers.constant(0.25), shape, jnp.float32)
        x = x - broadcast_like(shift_in, x)
        rectified = jnp.where(x > 0, x, broadcast_like(slope, x) * x)
        return rectified + broadcast_like(shift_out, x)


class Maxout(nn.Module):
    """Two trained slopes for each channel: positive_slope max(x, 0) + negative_slope min(x, 0).

    Source: AdaBin (arXiv 2208.08084), section 3.4.

    Parameters: `positive_slope` (channels,), 1; `negative_slope` (channels,), 0.25.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x (..., channels) to the same shape and dtype."""
        shape, constant = (x.shape[-1],), nn.initializers.constant
        positive = self.param("positive_slope", constant(1.0), shape, jnp.float32)
        negative = self.param("negative_slope", constant(0.25), shape, jnp.float32)
        return jnp.where(x >= 0, broadcast_like(positive, x) * x, broadcast_like(negative, x) * x)


class _Function(nn.Module):
    """A nonlinearity without parameters."""

    function: Callable[[jax.Array], jax.Array]

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.function(x)


def _none(x: jax.Array) -> jax.Array:
    return x


NETWORK = "network"
NONLINEARITIES: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "none": lambda **kwargs: _Function(_none, **kwargs),
        "relu": lambda **kwargs: _Function(nn.relu, **kwargs),
        "gelu": lambda **kwargs: _Function(nn.gelu, **kwargs),
        "hardtanh": lambda **kwargs: _Function(nn.hard_tanh, **kwargs),
        "prelu": PReLU,
        "rprelu": RPReLU,
        "maxout": Maxout,
    }
)


def nonlinearity(name: str, index: int, *, default: str) -> nn.Module:
    """The nonlinearity behind the `index`-th binary layer of a network or block.

    Args:
      name: of `NONLINEARITIES`, as the method says; "network" for the network's own.
      index: makes the module's name, e.g. "prelu1".
      default: the network's own.

    Returns:
      A module from x (..., channels) to the same shape; for use inside a compact method.
    """
    name = default if name == NETWORK else name
    return NONLINEARITIES[name](name=f"{name}{index}")

"""Templates of modules behind a binary layer: y -> y."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fda_jax.ops.checks import check_choice
from fda_jax.ops.derivatives import broadcast_like

SHAPES = ("channel", "channel_height_width")


class OutputScale(nn.Module):
    """Learned output scale of XNOR-Net++: y times a product of vectors, one for each axis.

    Forward: y[b, h, w, c] alpha[c] for "channel",
      y[b, h, w, c] alpha[c] beta[h] gamma[w] for "channel_height_width"
    Source: Bulat & Tzimiropoulos 2019 (arXiv 1909.13863), cases 1 and 4. The paper does not say
      where the vectors start; here at 1.

    Attributes:
      shape: "channel", or "channel_height_width", which binds the network to one image size.

    Parameters: `channel` (channels,); `height` (height,) and `width` (width,) of the output.

    Raises:
      ValueError: an unknown shape, or an output without height and width.
    """

    shape: str = "channel_height_width"

    def __post_init__(self) -> None:
        check_choice("scale_shape", self.shape, SHAPES)
        super().__post_init__()

    @nn.compact
    def __call__(self, y: jax.Array) -> jax.Array:
        """Scale y (..., channels); same shape and dtype."""
        scale = self._vector("channel", y.shape[-1])
        if self.shape == "channel_height_width":
            if y.ndim != 4:
                raise ValueError(
                    f"scale_shape is {self.shape!r}, but the output has shape {y.shape} instead of "
                    "(batch, height, width, channels): use 'channel'"
                )
            scale = scale * self._vector("width", y.shape[2])[:, None]
            scale = scale * self._vector("height", y.shape[1])[:, None, None]
        return y * broadcast_like(scale, y)

    def _vector(self, name: str, size: int) -> jax.Array:
        return self.param(name, nn.initializers.ones, (size,), jnp.float32)

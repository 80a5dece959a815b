"""VGG-Small with binary convolutions."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fda_jax import ops
from fda_jax.layers import BinaryConv, Method, make_method, nonlinearity
from fda_jax.models.common import batch_norm, check_images, classifier, hard_tanh_of_stem, stem


class VGGSmall(nn.Module):
    """VGG-Small: six 3x3 convolutions and one dense layer; the first and the last are real.

    Layout: conv128 -> conv128 -> pool -> conv256 x 2 -> pool -> conv512 x 2 -> pool -> dense,
    each convolution followed by [pool] -> BN -> hardtanh. The nonlinearity of a method that brings
    one takes the place of the hardtanh behind binary convolutions, and "none" behind the first,
    real one, too. Source: Zhang et al. 2018 (LQ-Nets, arXiv 1807.10029) for the sizes. FDA-BNN does
    not give the order inside a layer; this is IR-Net's, which ReCU and BiPer share.

    Attributes:
      num_classes: number of logits.
      method: how the hidden layers become binary, a name of `layers.METHODS` or a `Method`.
      widths: channels of the three stages.
      dtype: of the computation; parameters stay float32.
      axis_name: mapped axis over which batch statistics are averaged, or None.
    """

    num_classes: int
    method: str | Method
    widths: Sequence[int] = (128, 256, 512)
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self,
        images_bhwc: jax.Array,
        *,
        train: bool = False,
        progress: jax.Array | float | None = None,
    ) -> jax.Array:
        """Return float32 logits (batch, classes) of normalised images.

        Training needs `progress`, its finished share.
        """
        check_images(images_bhwc)
        norm = batch_norm(self.dtype, self.axis_name, train=train)
        x = stem(self.widths[0], self.dtype)(images_bhwc)
        x = hard_tanh_of_stem(norm(name="stem_norm")(x), self.method)
        layers = [width for width in self.widths for _ in range(2)][1:]
        for i, width in enumerate(layers, start=2):
            conv = BinaryConv(width, method=self.method, dtype=self.dtype, name=f"conv{i}")
            x = conv(x, train=train, progress=progress)
            if i % 2 == 0:
                x = ops.max_pool(x, 2)
            x = norm(name=f"norm{i}")(x)
            x = nonlinearity(make_method(self.method).nonlinearity, i, default="hardtanh")(x)
        return classifier(self.num_classes)(x.reshape(x.shape[0], math.prod(x.shape[1:])))

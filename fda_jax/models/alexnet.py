"""AlexNet with binary convolutions and dense layers."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fda_jax import ops
from fda_jax.layers import BinaryConv, BinaryDense, Method, make_method, nonlinearity
from fda_jax.models.common import batch_norm, check_images, classifier, hard_tanh_of_stem, stem


class AlexNet(nn.Module):
    """AlexNet: five convolutions and three dense layers; the first and the last are real.

    Layout: conv11x11 with stride 4 -> BN -> ReLU -> pool -> BN -> hardtanh; conv5x5 -> pool,
    conv3x3, conv3x3, conv3x3 -> pool, dense, dense, each followed by BN -> hardtanh, the last by
    BN -> ReLU; dense. Pooling is the largest of 3x3 pixels with stride 2; no dropout.

    Source: the released code of XNOR-Net (arXiv 1603.05279), models/alexnetxnor.lua, for FDA-BNN
    does not give its AlexNet. Here BN scales, too, and hardtanh stands before each sign: a sign
    stays as it is, and methods with real activations are more than a linear map. The nonlinearity
    of a method that brings one takes its place as in `VGGSmall`.

    Attributes:
      num_classes: number of logits.
      method: how the hidden layers become binary, a name of `layers.METHODS` or a `Method`.
      widths: channels of the five convolutions.
      units: of the two hidden dense layers.
      dtype: of the computation; parameters stay float32.
      axis_name: mapped axis over which batch statistics are averaged, or None.
    """

    num_classes: int
    method: str | Method
    widths: Sequence[int] = (96, 256, 384, 384, 256)
    units: Sequence[int] = (4096, 4096)
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
        first, *widths = self.widths
        x = stem(first, self.dtype, side=11, strides=4, padding=2)(images_bhwc)
        x = ops.max_pool(nn.relu(norm(name="stem_norm")(x)), 3, stride=2)
        x = hard_tanh_of_stem(norm(name="norm1")(x), self.method)
        number_of_convs = len(self.widths)
        for i, width in enumerate(widths, start=2):
            side = 5 if i == 2 else 3
            conv = BinaryConv(
                width, (side, side), method=self.method, dtype=self.dtype, name=f"conv{i}"
            )
            x = conv(x, train=train, progress=progress)
            if i in (2, number_of_convs):
                x = ops.max_pool(x, 3, stride=2)
            x = norm(name=f"norm{i}")(x)
            x = nonlinearity(make_method(self.method).nonlinearity, i, default="hardtanh")(x)
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        last = number_of_convs + len(self.units)
        for i, units in enumerate(self.units, start=number_of_convs + 1):
            dense = BinaryDense(units, method=self.method, dtype=self.dtype, name=f"dense{i}")
            x = norm(name=f"norm{i}")(dense(x, train=train, progress=progress))
            default = "relu" if i == last else "hardtanh"
            x = nonlinearity(make_method(self.method).nonlinearity, i, default=default)(x)
        return classifier(self.num_classes)(x)

"""Residual networks with binary 3x3 convolutions."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fda_jax import ops
from fda_jax.layers import BinaryConv, Method, make_method, nonlinearity
from fda_jax.models.common import batch_norm, check_images, classifier, real_conv, stem


class ResNet(nn.Module):
    """ResNet, binary but for its first convolution, its shortcuts and its last layer.

    Layout: stem conv3x3 -> BN; blocks; ReLU -> mean over pixels -> dense. A block is
    `convs_per_shortcut` times (binary conv3x3 -> PReLU -> BN), plus the shortcut round them, with
    nothing after the sum; a method may bring another nonlinearity than PReLU. Source: the released
    code of FDA-BNN, ResNet-20 of CIFAR-10 (plain form, 2 convolutions and the option-A shortcut);
    Bi-Real Net (arXiv 1808.00278) for the shortcut round each convolution.

    For ImageNet, Bi-Real Net's released code (`pooled_stem`, `projection`, no `final_relu`): stem
    conv7x7 with stride 2 -> BN -> max pooling 3x3 with stride 2; blocks; mean over pixels -> dense.
    FDA-BNN released no network for ImageNet. Its section 3.3 says Bi-Real Net + PReLU, but not
    where PReLU stands: as in its ResNet-20, one slope a layer between convolution and BN. In
    ReActNet's released code it stands behind the sum (`nonlinearity_last`).

    Attributes:
      num_classes: number of logits.
      method: how the hidden layers become binary, a name of `layers.METHODS` or a `Method`.
      stage_sizes: pairs of convolutions in each stage; every stage but the first halves the image.
      widths: channels of each stage.
      convs_per_shortcut: 2 for the plain form, 1 for the Bi-Real form.
      pooled_stem: conv7x7 with stride 2 and max pooling, which quarter the image, in place of
        conv3x3.
      projection: where width or image change, the shortcut is mean pooling -> real conv1x1 -> BN in
        place of option A.
      final_relu: ReLU before the mean over pixels.
      nonlinearity_last: one behind the sum of each block in place of one behind each convolution.
      dtype: of the computation; parameters stay float32.
      axis_name: mapped axis over which batch statistics are averaged, or None.

    Raises:
      ValueError: stages and widths that make no network.
    """

    num_classes: int
    method: str | Method
    stage_sizes: Sequence[int] = (3, 3, 3)
    widths: Sequence[int] = (16, 32, 64)
    convs_per_shortcut: int = 2
    pooled_stem: bool = False
    projection: bool = False
    final_relu: bool = True
    nonlinearity_last: bool = False
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    def __post_init__(self) -> None:
        sizes, widths = tuple(self.stage_sizes), tuple(self.widths)
        if len(sizes) != len(widths) or not sizes:
            raise ValueError(
                f"stage_sizes is {sizes} and widths is {widths}: give both a number for each stage"
            )
        for name, values in (("stage_sizes", sizes), ("widths", widths)):
            if min(values) < 1:
                raise ValueError(f"{name} is {values}: use whole numbers of at least 1")
        if not self.projection and list(widths) != sorted(widths):
            raise ValueError(
                f"widths is {widths}, but a shortcut without parameters cannot leave channels out: "
                "let no stage be narrower than the one before, or set projection=True"
            )
        if self.convs_per_shortcut not in (1, 2):
            raise ValueError(f"convs_per_shortcut is {self.convs_per_shortcut}: use 1 or 2")
        super().__post_init__()

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
        side, strides = (7, 2) if self.pooled_stem else (3, 1)
        x = stem(self.widths[0], self.dtype, side=side, strides=strides)(images_bhwc)
        x = norm(name="stem_norm")(x)
        if self.pooled_stem:
            x = ops.max_pool(x, 3, stride=2, padding=1)
        for stage, (size, width) in enumerate(zip(self.stage_sizes, self.widths, strict=True)):
            for block in range(2 * size // self.convs_per_shortcut):
                x = Block(
                    features=width,
                    strides=2 if stage > 0 and block == 0 else 1,
                    convs=self.convs_per_shortcut,
                    method=self.method,
                    norm=norm,
                    dtype=self.dtype,
                    projection=self.projection,
                    nonlinearity_last=self.nonlinearity_last,
                    name=f"stage{stage + 1}_block{block + 1}",
                )(x, train=train, progress=progress)
        x = jnp.mean(nn.relu(x) if self.final_relu else x, axis=(1, 2))
        return classifier(self.num_classes)(x)


class Block(nn.Module):
    """Binary convolutions, each with PReLU and BN behind it, inside one shortcut.

    Attributes:
      features: channels out.
      strides: of the first convolution and of the shortcut.
      convs: number of convolutions inside the shortcut.
      method: how they become binary.
      norm: makes a batch normalisation from a name.
      dtype: of the computation.
      projection: as of `ResNet`.
      nonlinearity_last: likewise.
    """

    features: int
    strides: int
    convs: int
    method: str | Method
    norm: Callable[..., nn.Module]
    dtype: DTypeLike = jnp.float32
    projection: bool = False
    nonlinearity_last: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, progress: jax.Array | float | None
    ) -> jax.Array:
        """Map (batch, height, width, channels) to (batch, height / strides, ..., features)."""
        shortcut = self._shortcut(x)
        for i in range(self.convs):
            conv = BinaryConv(
                features=self.features,
                strides=self.strides if i == 0 else 1,
                method=self.method,
                dtype=self.dtype,
                name=f"conv{i + 1}",
            )
            x = conv(x, train=train, progress=progress)
            if not self.nonlinearity_last:
                x = self._nonlinearity(i + 1)(x)
            x = self.norm(name=f"norm{i + 1}")(x)
        x = x + shortcut
        return self._nonlinearity(1)(x) if self.nonlinearity_last else x

    def _nonlinearity(self, index: int) -> nn.Module:
        return nonlinearity(make_method(self.method).nonlinearity, index, default="prelu")

    def _shortcut(self, x: jax.Array) -> jax.Array:
        if not self.projection:
            return option_a(x, self.features, self.strides)
        if self.strides == 1 and x.shape[-1] == self.features:
            return x
        pooled = ops.mean_pool(x, self.strides)
        projected = real_conv(self.features, self.dtype, side=1, name="shortcut")(pooled)
        return self.norm(name="shortcut_norm")(projected)


def option_a(x: jax.Array, features: int, strides: int) -> jax.Array:
    """Shortcut without parameters: every `strides`-th pixel, new channels 0 on both sides.

    Source: He et al. 2016 (arXiv 1512.03385), option A.

    Args:
      x: (batch, height, width, channels).
      features: channels out, >= channels.
      strides: step in pixels.

    Returns:
      (batch, ceil(height / strides), ceil(width / strides), features).
    """
    new = features - x.shape[-1]
    pixels = jax.lax.slice(x, (0, 0, 0, 0), x.shape, (1, strides, strides, 1))
    return jnp.pad(pixels, ((0, 0), (0, 0), (0, 0), (new // 2, new - new // 2)))

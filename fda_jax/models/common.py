"""Parts that every network shares: the two real layers and batch normalisation."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


def batch_norm(
    dtype: jnp.dtype, axis_name: str | None, *, train: bool
) -> Callable[..., nn.BatchNorm]:
    """Batch normalisation with running statistics of momentum 0.9, synchronised in training."""
    return functools.partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        axis_name=axis_name if train else None,
    )


def stem(features: int, dtype: jnp.dtype) -> nn.Conv:
    """The first convolution, always in full precision."""
    return nn.Conv(
        features,
        (3, 3),
        padding=1,
        use_bias=False,
        kernel_init=nn.initializers.he_normal(),
        dtype=dtype,
        name="stem",
    )


def classifier(num_classes: int) -> nn.Dense:
    """The last layer, always in full precision; float32, for the loss reads its logits."""
    return nn.Dense(num_classes, dtype=jnp.float32, name="classifier")


def check_images(images_bhwc: jax.Array) -> None:
    """Refuse anything but a float batch (batch, height, width, channels).

    Raises:
      ValueError: names the shape or dtype and the remedy.
    """
    if images_bhwc.ndim != 4:
        raise ValueError(
            f"images have shape {images_bhwc.shape}, but a network takes (batch, height, width, "
            "channels): add the missing axis, e.g. images[None] for one image"
        )
    if not jnp.issubdtype(images_bhwc.dtype, jnp.floating):
        raise ValueError(
            f"images are {images_bhwc.dtype}, but a network takes normalised floats: "
            "use fda_jax.data.normalize(images, mean, std)"
        )

"""Layers with binary operands: latent weights in, convolution or matrix product out."""

import fnmatch
import functools
from collections.abc import Callable, Sequence
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike

from fda_jax import ops
from fda_jax.layers.methods import Method, make_method
from fda_jax.layers.quantizers import (
    QUANTIZED,
    ActivationQuantizer,
    Quantizer,
    ScaledOperand,
    ScaledQuantizer,
    WeightQuantizer,
    sow_penalty,
    whole,
)
from fda_jax.ops.convolution import Padding
from fda_jax.ops.products import check_scale

# By which a sum of steps may miss 0 or 1.
_ROUNDING = 1e-6


class BinaryConv(nn.Module):
    """Convolution of binarized activations with binarized weights, no bias.

    Forward: conv(quantize(a), quantize(w)). The border is of zeros, laid round the image after
    binarisation, so that a pixel there sees 0, not -1 or +1 [FDA, released code].

    Attributes:
      features: number of filters, >= 1.
      kernel_size: height and width in pixels, or one number for both.
      strides: step in pixels, the same for both axes.
      padding: pixels of the border, one number for all sides or ((top, bottom), (left, right)); 0
        for none. None centres the kernel on each `strides`-th pixel: (size - 1) // 2 before and
        size // 2 behind.
      method: a name of `METHODS` or a `Method`.
      dtype: of the computation; latent weights stay float32.

    Parameters: `latent_kernel` (height, width, in, out), or `kernel` where the method keeps the
    weights real; those of the method's quantizers below `weight`, `activation` and `output`.

    Collections, where `apply` has them `mutable`: "effective_weights", the kernel that it
    multiplies with; in training "penalties", to be added to the loss, and "batch_stats" of methods
    that keep some, such as `rbnn`.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from fda_jax import layers
      >>> images = jax.random.normal(jax.random.key(0), (1, 4, 4, 2))
      >>> conv = layers.BinaryConv(features=3, method="binarynet")
      >>> variables = conv.init(jax.random.key(1), images)
      >>> y = conv.apply(variables, images)  # sums of products of signs
      >>> y.shape, bool(jnp.all(y == jnp.round(y)))
      ((1, 4, 4, 3), True)
    """

    features: int
    kernel_size: int | Sequence[int] = (3, 3)
    strides: int | Sequence[int] = 1
    padding: int | Sequence[Sequence[int]] | None = None
    method: str | Method = "fda"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, a: jax.Array, train: bool = False, progress: jax.Array | float | None = None
    ) -> jax.Array:
        """Convolve images.

        Args:
          a: float array (batch, height, width, channels).
          train: with the noise module where the method has one, and with penalties sown.
          progress: finished share of training, scalar in [0, 1]; may be traced. Training needs it;
            without it the layer is as at the end of training.

        Returns:
          (batch, (height + top + bottom - kernel height) // strides + 1, ..., features), by default
          (batch, ceil(height / strides), ...), of `dtype`.

        Raises:
          ValueError: another number of axes, sizes that are none or unequal strides, a border that
            is none or images with it smaller than the kernel, training without `progress`, or one
            that is no scalar or is known and outside of [0, 1].
        """
        if a.ndim != 4:
            raise ValueError(
                f"the array has shape {a.shape}, but BinaryConv takes (batch, height, width, "
                "channels): add the missing axis, e.g. a[None] for one image"
            )
        height, width = _pair("kernel_size", self.kernel_size)
        strides, other = _pair("strides", self.strides)
        if strides != other:
            raise ValueError(f"strides are {self.strides}: use the same for both axes")
        padding = _border(self.padding, (height, width))
        sides = [size + sum(around) for size, around in zip(a.shape[1:3], padding, strict=True)]
        if sides[0] < height or sides[1] < width:
            raise ValueError(
                f"images of {a.shape[1]} by {a.shape[2]} pixels with the border {padding} hold no "
                f"kernel of {height} by {width}: use larger images, a border, or a smaller kernel"
            )
        shape = (height, width, a.shape[-1], self.features)
        binary_a, binary_w = _operands(self, a, shape, train=train, progress=progress)
        if isinstance(binary_w, ops.SignKernel):
            y = cast(jax.Array, ops.convolve_signs(whole(binary_a), binary_w, strides, padding))
        else:
            x, kernel, *scale = _factors(binary_a, binary_w, self.dtype)
            y = cast(jax.Array, ops.convolve(x, kernel, strides, padding, *scale))
        return _output(self, y)


class BinaryDense(nn.Module):
    """Product of binarized activations with binarized weights, no bias.

    Forward: quantize(a) @ quantize(w)

    Attributes:
      features: number of outputs, >= 1.
      method: a name of `METHODS` or a `Method`.
      dtype: of the computation; latent weights stay float32.

    Parameters: `latent_kernel` (in, out), or `kernel` where the method keeps the weights real; the
    others, and collections, as of `BinaryConv`.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from fda_jax import layers
      >>> dense = layers.BinaryDense(features=3, method="binarynet")
      >>> a = jnp.array([[0.5, -2.0, 1.0, 0.1]])
      >>> variables = dense.init(jax.random.key(0), a)
      >>> signs = jnp.sign(variables["params"]["latent_kernel"])
      >>> bool(jnp.all(dense.apply(variables, a) == jnp.array([[1.0, -1.0, 1.0, 1.0]]) @ signs))
      True
    """

    features: int
    method: str | Method = "fda"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, a: jax.Array, train: bool = False, progress: jax.Array | float | None = None
    ) -> jax.Array:
        """Multiply by the matrix.

        Args:
          a: float array (..., inputs).
          train: see `BinaryConv`.
          progress: likewise.

        Returns:
          (..., features), of `dtype`.

        Raises:
          ValueError: features below 1, no axis of inputs, training without `progress`, or one that
            is no scalar or is known and outside of [0, 1].
        """
        if a.ndim < 1:
            raise ValueError(
                "the array is a scalar, but BinaryDense takes (..., inputs): add the axis, a[None]"
            )
        shape = (a.shape[-1], self.features)
        binary_a, binary_w = _operands(self, a, shape, train=train, progress=progress)
        if isinstance(binary_w, ops.SignKernel):
            y = ops.multiply_signs(whole(binary_a), binary_w)
        else:
            y = ops.multiply(*_factors(binary_a, binary_w, self.dtype))
        return _output(self, y)


def method_of(layer: BinaryConv | BinaryDense) -> Method:
    """How a layer becomes binary, by its own place in the network; see `Method.real_layers`."""
    method = make_method(layer.method)
    path = "/".join(layer.path) if method.real_layers else ""
    is_real = any(fnmatch.fnmatchcase(path, pattern) for pattern in method.real_layers)
    return make_method("full_precision") if is_real else method


def _operands(
    layer: BinaryConv | BinaryDense,
    a: jax.Array,
    shape: tuple[int, ...],
    *,
    train: bool,
    progress: jax.Array | float | None,
) -> tuple[jax.Array | ScaledOperand, jax.Array | ScaledOperand | ops.SignKernel]:
    """Create the layer's weights and quantize both operands, the activations in its dtype."""
    if progress is None:
        if train and not layer.is_initializing():
            raise ValueError(
                "train=True without progress, the finished share of training by which estimators "
                "and noise modules change: pass progress=step / total_steps, from 0 to 1"
            )
        progress = 1.0
    _check_progress(progress)
    if not _is_whole(layer.features, 1):
        raise ValueError(f"features is {layer.features!r}: use a whole number >= 1")
    method = method_of(layer)
    name = "kernel" if method.weight is None else "latent_kernel"
    w = layer.param(name, nn.initializers.he_normal(), shape, jnp.float32)
    # At initialisation the noise modules must exist whatever `train` is, or a network set up for
    # inference could not be trained.
    train = train or layer.is_initializing()
    quantize_a = _apart(layer, ActivationQuantizer, method.activation, "activation")
    quantize_w = _apart(layer, WeightQuantizer, method.weight, "weight")
    quantized = layer.get_variable(QUANTIZED, "kernel")
    if quantized is not None and quantized.quantizer == method.weight:
        binary_w = quantized.kernel
        if quantized.penalty is not None:
            sow_penalty(layer, lambda w, progress: quantized.penalty, w, progress)
    else:
        binary_w = quantize_w(w, train=train, progress=progress)
    if layer.is_mutable_collection("effective_weights") and not layer.is_initializing():
        layer.sow("effective_weights", "kernel", whole(binary_w))
    binary_a = quantize_a(a.astype(layer.dtype), train=train, progress=progress)
    _check_scales(binary_a, binary_w, layer.features)
    return binary_a, binary_w


def _check_scales(
    a: jax.Array | ScaledOperand, w: jax.Array | ScaledOperand | ops.SignKernel, filters: int
) -> None:
    """Refuse scales that sums over channels cannot be multiplied by."""
    if isinstance(w, ScaledOperand):
        check_scale(w.scale, filters)
    if isinstance(a, ScaledOperand) and (jnp.ndim(a.scale) or not a.scale_in_gradient):
        raise ValueError(
            f"the scale of the activations has shape {jnp.shape(a.scale)} and scale_in_gradient="
            f"{a.scale_in_gradient}, but sums over channels are multiplied by one number, which is "
            "in the gradient: give one, or return the activations as an array"
        )


def _factors(
    a: jax.Array | ScaledOperand, w: jax.Array | ScaledOperand, dtype: DTypeLike
) -> tuple[jax.Array, jax.Array, jax.Array | None, bool]:
    """Activations, kernel, scale of the sums and whether it is in the gradient, as products take
    them."""
    # A scale of 16 bits has so few digits that sums of it are exact, too.
    if jnp.finfo(dtype).bits < 32:
        a, w = whole(a), whole(w)
    in_gradient = not isinstance(w, ScaledOperand) or w.scale_in_gradient
    if not in_gradient:
        a = whole(a)  # its scale is in the gradient of the kernel
    (x, *of_a), (kernel, *of_w) = (
        (operand.values, operand.scale) if isinstance(operand, ScaledOperand) else (operand,)
        for operand in (a, w)
    )
    scales = [jnp.asarray(scale, dtype) for scale in (*of_a, *of_w)]
    scale = functools.reduce(jnp.multiply, scales) if scales else None
    return x, kernel.astype(dtype), scale, in_gradient


def _check_progress(progress: jax.Array | float) -> None:
    """Refuse what is no scalar or, if it is known, no share: schedules hold still at their ends."""
    if np.ndim(progress):
        raise ValueError(
            f"progress has shape {np.shape(progress)}, but the finished share of training is one "
            "number for all examples: pass a scalar, step / total_steps"
        )
    if isinstance(progress, Tracer):
        return
    values = np.asarray(progress, np.float64)
    if not np.all((values >= -_ROUNDING) & (values <= 1 + _ROUNDING)):
        raise ValueError(
            f"progress is {progress}, but the finished share of training lies in [0, 1]: pass "
            "step / total_steps"
        )


def _apart(
    layer: nn.Module,
    ordinary: type[ActivationQuantizer] | type[WeightQuantizer],
    quantizer: Quantizer | nn.Module | None,
    name: str,
) -> Callable[..., jax.Array | ScaledOperand]:
    """What quantizes an operand of a layer and may keep its scale apart."""
    if isinstance(quantizer, nn.Module):
        module = quantizer.clone(name=name, parent=layer)
    else:
        module = ordinary(quantizer, name=name, parent=layer)
    return module.apart if isinstance(module, ScaledQuantizer) else module


def _is_whole(number: object, least: int) -> bool:
    return isinstance(number, int | np.integer) and int(number) >= least


def _pair(name: str, sizes: int | Sequence[int]) -> tuple[int, int]:
    pair = tuple(sizes) if isinstance(sizes, Sequence | np.ndarray) else (sizes, sizes)
    if len(pair) != 2 or not all(_is_whole(size, 1) for size in pair):
        raise ValueError(f"{name} is {sizes}: use a whole number >= 1, or a pair of them")
    return int(pair[0]), int(pair[1])


def _border(padding: int | Sequence[Sequence[int]] | None, kernel: tuple[int, int]) -> Padding:
    """Pixels before and behind each axis."""
    if padding is None:
        (top, bottom), (left, right) = [((size - 1) // 2, size // 2) for size in kernel]
    elif isinstance(padding, int | np.integer):
        top = bottom = left = right = padding
    else:
        try:
            (top, bottom), (left, right) = padding
        except (TypeError, ValueError):
            raise ValueError(
                f"padding is {padding}: use a whole number >= 0, ((top, bottom), (left, right)), "
                "or None to centre the kernel"
            ) from None
    if not all(_is_whole(pixels, 0) for pixels in (top, bottom, left, right)):
        raise ValueError(f"padding is {padding}: use whole numbers >= 0")
    return (int(top), int(bottom)), (int(left), int(right))


def _output(layer: BinaryConv | BinaryDense, y: jax.Array) -> jax.Array:
    template = method_of(layer).output
    return y if template is None else template.clone(name="output", parent=layer)(y)

"""Quantizers: from latent weights and activations to two values."""

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from fda_jax import ops
from fda_jax.ops.checks import check_choice
from fda_jax.ops.derivatives import broadcast_like

SCALES = ("none", "layer", "filter", "power_of_two", "learned")
# A frozen, hashable function of an operand and the progress.
Transform = Callable[[jax.Array, jax.Array | float], jax.Array]
NOISE_READINGS = ("forward", "backward")
WEIGHT_AXES = ("filter", "channels")
ACTIVATION_AXES = ("channels", "pixels")
# The collection in which a layer looks for weights that are quantized already, see `Quantized`.
QUANTIZED = "quantized"


@dataclasses.dataclass(frozen=True)
class Noise:
    """Settings of a noise adaptation module [FDA Eqs. 13-17].

    Attributes:
      scale: alpha at the start of training, >= 0; it falls to exactly 0, see `ops.noise_scale`.
      shortcut: eta, one of "none", "linear", "sine".
      shortcut_slope: a, the shortcut's slope at 0.
      reduction: k, by which the hidden layer is narrower than the input, >= 1.
      reading: "forward" adds alpha e(t) to the sign in the forward pass (Eq. 14, Figure 2a);
        "backward" leaves the forward pass the pure sign (Algorithm 1, line 3), and only the
        gradients of Eqs. 15-17 see the module.
      schedule: of alpha, one of `ops.NOISE_SCHEDULES`.
      weight_axis: what a vector t of weights is, which the paper leaves open: a flattened "filter",
        or the input "channels" at one position of a filter.
      activation_axis: what a vector t of activations is: the "channels" of a pixel, or the "pixels"
        of a channel.
      end: share of the training after which alpha is 0, in (0, 1].

    Raises:
      ValueError: an attribute out of its range.
    """

    scale: float = 0.1
    shortcut: str = "sine"
    shortcut_slope: float = 0.1
    reduction: int = 64
    reading: str = "forward"
    schedule: str = "cosine"
    weight_axis: str = "filter"
    activation_axis: str = "channels"
    end: float = 1.0

    def __post_init__(self) -> None:
        check_choice("noise reading", self.reading, NOISE_READINGS)
        check_choice("noise shortcut", self.shortcut, ops.SHORTCUTS)
        check_choice("noise schedule", self.schedule, ops.NOISE_SCHEDULES)
        check_choice("noise axis of the weights", self.weight_axis, WEIGHT_AXES)
        check_choice("noise axis of the activations", self.activation_axis, ACTIVATION_AXES)
        if self.reduction < 1:
            raise ValueError(f"noise reduction is {self.reduction}: use a whole number >= 1")
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"noise scale is {self.scale}: use a number >= 0, e.g. 0.1")
        if not math.isfinite(self.shortcut_slope):
            raise ValueError(
                f"noise shortcut slope is {self.shortcut_slope}: use a finite number, e.g. 0.1"
            )
        if not 0 < self.end <= 1:
            raise ValueError(
                f"noise end is {self.end}: use a share of the training in (0, 1], 1 for all of it"
            )


@dataclasses.dataclass(frozen=True)
class Quantizer:
    """How one operand of a layer becomes binary: x -> normalize -> estimator [+ noise] -> scale.

    Attributes:
      estimator: the rule of `ops.binarize`.
      scale: what multiplies the signs of weights, see `weight_scale`; "learned" is a trained
        parameter for each filter. Activations always use "none".
      noise: settings of the noise adaptation module, or None.
      normalize: (x, progress) -> array of x's shape, applied first; None for x itself.
      scale_gradient: whether the gradient flows through the scale's dependence on the weights.
      scale_in_gradient: whether the scale multiplies the gradient of the latent weights, as the
        chain rule has it; False leaves it out, as DoReFa-Net does (arXiv 1606.06160, Eq. 8). The
        noise module's parameters are differentiated exactly in either case.
      penalty: (x, progress) -> scalar of the latent x, added to the training loss; None for none.

    Raises:
      ValueError: an unknown scale, or one that is left out of the gradient and yet differentiated.
    """

    estimator: ops.Rule
    scale: str = "none"
    noise: Noise | None = None
    normalize: Transform | None = None
    scale_gradient: bool = False
    scale_in_gradient: bool = True
    penalty: Transform | None = None

    def __post_init__(self) -> None:
        check_choice("scale", self.scale, SCALES)
        if not self.scale_in_gradient and (self.scale_gradient or self.scale == "learned"):
            raise ValueError(
                "scale_in_gradient is False, so the weights' gradient knows nothing of the scale, "
                "but the scale is to be differentiated: use scale_in_gradient=True, or the scale "
                '"none", "layer", "filter" or "power_of_two" without scale_gradient'
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScaledOperand:
    """An operand scale * values, whose scale a layer may multiply by after it has summed.

    Signs add up to whole numbers, exactly and in any order. Signs times a scale do not: of a sum
    that is 0 rounding leaves 0 or a number of either sign, as the order has it, and by that a
    nonlinearity behind it, such as PReLU, chooses its slope.

    Attributes:
      values: of weights (..., filters), of activations (..., channels): signs, or signs with noise.
      scale: of weights () or (filters,), of activations (); or a number.
      scale_in_gradient: whether the scale multiplies the gradient of the values. If not, no
        gradient flows to the scale either. Activations always have it so.
    """

    values: jax.Array
    scale: jax.Array | float
    scale_in_gradient: bool = dataclasses.field(default=True, metadata={"static": True})

    def product(self) -> jax.Array:
        """The operand as numbers, shaped and typed like its values."""
        if self.scale_in_gradient:
            return self.values * broadcast_like(self.scale, self.values)
        return _scaled_forward(self.values, self.scale)

    def times(self, factor: jax.Array | float) -> "ScaledOperand":
        """The operand times a factor of its shape, which is differentiated whole."""
        if not self.scale_in_gradient:
            factor = _gradient_times(jnp.broadcast_to(factor, self.values.shape), self.scale)
        return dataclasses.replace(self, values=self.values * factor)


def whole(operand: jax.Array | ScaledOperand) -> jax.Array:
    """An operand as numbers."""
    return operand.product() if isinstance(operand, ScaledOperand) else operand


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """Weights of a layer that are quantized already, and by what.

    Attributes:
      kernel: as the layer's quantizer returns it; or, for inference, as bits.
      penalty: scalar of the training loss, sown by the layer that takes the kernel; None for none.
      quantizer: whose they are; a layer with another one does not take them.
    """

    kernel: jax.Array | ScaledOperand | ops.SignKernel
    penalty: jax.Array | None
    quantizer: Quantizer | nn.Module | None = dataclasses.field(metadata={"static": True})


def makes_signs(quantizer: Quantizer | nn.Module | None) -> bool:
    """Whether a quantizer of activations makes -1 or 1 of each of them when training is over.

    A module says so of itself by an attribute `makes_signs`.
    """
    if isinstance(quantizer, Quantizer):
        return ops.ends_in_signs(quantizer.estimator)
    return getattr(quantizer, "makes_signs", False)


class NoiseAdaptation(nn.Module):
    """Noise adaptation module: alpha (relu(t W1) W2 + eta(t)).

    Source: [FDA Eqs. 13, 14]. Both matrices start with zero mean, as the paper asks (normal with
    variance 1 / fan_in, which the paper leaves open).

    Attributes:
      noise: its settings.

    Parameters: `w1` (d, hidden), `w2` (hidden, d), hidden = `ops.hidden_width(d, k)`.
    """

    noise: Noise

    @nn.compact
    def __call__(self, t: jax.Array, progress: jax.Array | float) -> jax.Array:
        """Return alpha e(t) for vectors t (..., d), same shape and dtype."""
        features = t.shape[-1]
        hidden = ops.hidden_width(features, self.noise.reduction)
        init = nn.initializers.lecun_normal()
        w1 = self.param("w1", init, (features, hidden), jnp.float32)
        w2 = self.param("w2", init, (hidden, features), jnp.float32)
        estimate = ops.noise(
            t,
            w1.astype(t.dtype),
            w2.astype(t.dtype),
            self.noise.shortcut,
            self.noise.shortcut_slope,
        )
        alpha = ops.noise_scale(progress, self.noise.scale, self.noise.schedule, self.noise.end)
        return alpha.astype(t.dtype) * estimate


class ActivationQuantizer(nn.Module):
    """Binary activations: sign forward, the estimator's slope backward, noise in training.

    Forward: sign(a) + alpha e(a), e over the channels of a pixel or the pixels of a channel;
      sign(a) when not training.

    Attributes:
      quantizer: how; None leaves the activations as they are.
    """

    quantizer: Quantizer | None

    @nn.compact
    def __call__(self, a: jax.Array, *, train: bool, progress: jax.Array | float) -> jax.Array:
        """Quantize a (batch, ..., channels); same shape and dtype."""
        if self.quantizer is None:
            return a
        if train:
            sow_penalty(self, self.quantizer.penalty, a, progress, adds=True)
        a = _normalized(self.quantizer, a, progress)
        binary = ops.binarize(a, self.quantizer.estimator, progress)
        noise = self.quantizer.noise
        if noise is None or not train:
            return binary
        module = NoiseAdaptation(noise, name="noise")
        if noise.activation_axis == "channels":
            return _add(binary, module(a, progress), noise)
        images = jnp.swapaxes(a.reshape(len(a), math.prod(a.shape[1:-1]), a.shape[-1]), 1, 2)
        estimate = jnp.swapaxes(module(images, progress), 1, 2)
        return _add(binary, estimate.reshape(a.shape), noise)


class ScaledQuantizer(nn.Module):
    """A quantizer of weights or activations by `apart`, which may keep their scale apart."""

    def __call__(self, x: jax.Array, *, train: bool, progress: jax.Array | float) -> jax.Array:
        """Quantize weights (..., filters), as HWIO kernels, or activations (..., channels); same
        shape and dtype."""
        return whole(self.apart(x, train=train, progress=progress))

    def apart(
        self, x: jax.Array, *, train: bool, progress: jax.Array | float
    ) -> jax.Array | ScaledOperand:
        """Quantize likewise, with the scale apart where there is one."""
        raise NotImplementedError


class WeightQuantizer(ScaledQuantizer):
    """Binary weights: scale * sign(w) forward, the estimator's slope backward, noise in training.

    Forward: scale (sign(w) + alpha e(w)), e over each flattened filter or over the input channels
    at each of its positions; scale sign(w) when not training, which is exactly two-valued per layer
    ("none", "layer") or per filter ("filter").

    Attributes:
      quantizer: how; None leaves the weights as they are.

    Parameters: `noise` where it has a noise module; `scale` (filters,) where the scale is
    "learned", which starts at the mean of |w| of each filter.
    """

    quantizer: Quantizer | None

    @nn.compact
    def apart(
        self, w: jax.Array, *, train: bool, progress: jax.Array | float
    ) -> jax.Array | ScaledOperand:
        """See `ScaledQuantizer`."""
        quantizer = self.quantizer
        if quantizer is None:
            return w
        if train:
            sow_penalty(self, quantizer.penalty, w, progress)
        w = _normalized(quantizer, w, progress)
        binary = ops.binarize(w, quantizer.estimator, progress)
        if quantizer.scale == "learned":
            scale = self.param("scale", lambda _: weight_scale(w, "filter"))
        else:
            scale = weight_scale(w, quantizer.scale)
        left_out = not quantizer.scale_in_gradient
        noise = quantizer.noise
        if noise is not None and train:
            # What is left out of the latent weights' gradient stays in that of the module's own
            # parameters: Eqs. 16 and 17 are derivatives.
            t = _gradient_times(w, 1 / jnp.where(scale > 0, scale, 1)) if left_out else w
            flat = t.reshape(-1, t.shape[-1]) if noise.weight_axis == "filter" else t
            module = NoiseAdaptation(noise, name="noise")
            estimate = jnp.swapaxes(module(jnp.swapaxes(flat, -1, -2), progress), -1, -2)
            estimate = estimate.reshape(w.shape)
            if left_out:
                estimate = _gradient_times(estimate, scale)
            binary = _add(binary, estimate, noise)
        if quantizer.scale == "none":
            return binary
        if left_out:
            return ScaledOperand(binary, scale, scale_in_gradient=False)
        differentiated = quantizer.scale_gradient or quantizer.scale == "learned"
        return ScaledOperand(binary, scale if differentiated else jax.lax.stop_gradient(scale))


@jax.custom_vjp
def _scaled_forward(binary: jax.Array, scale: jax.Array) -> jax.Array:
    """Binary times scale, whose gradient is that of binary alone."""
    return binary * scale


_scaled_forward.defvjp(
    lambda binary, scale: (binary * scale, scale),
    lambda scale, g: (g, jnp.zeros_like(scale)),
)


@jax.custom_vjp
def _gradient_times(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Return x, whose gradient is multiplied by a factor that broadcasts against it."""
    return x


_gradient_times.defvjp(
    lambda x, factor: (x, factor),
    lambda factor, g: (g * factor, jnp.zeros_like(factor)),
)


def weight_scale(w: jax.Array, scale: str) -> jax.Array:
    """Scale of binary weights, from the weights.

    "none": 1. "layer": mean of |w| over the layer (DoReFa-Net, arXiv 1606.06160 Eq. 7; FDA-BNN's
    released code). "filter": mean of |w| over each output filter, nearest to w in least squares
    (XNOR-Net, arXiv 1603.05279 Eq. 6). "power_of_two": the power of two nearest to that mean on a
    logarithmic scale (IR-Net, arXiv 1909.10788 Eq. 8).

    Args:
      w: (..., filters) float array.
      scale: one of "none", "layer", "filter", "power_of_two".

    Returns:
      Array that broadcasts against w: of shape () or (filters,).

    Raises:
      ValueError: an unknown scale.
    """
    check_choice("scale", scale, SCALES[:-1])
    if scale == "none":
        return jnp.ones((), w.dtype)
    axes = None if scale == "layer" else tuple(range(w.ndim - 1))
    mean = jnp.mean(jnp.abs(w), axis=axes)
    return jnp.exp2(jnp.round(jnp.log2(mean))) if scale == "power_of_two" else mean


def sow_penalty(
    module: nn.Module,
    penalty: Transform | None,
    x: jax.Array,
    progress: jax.Array | float,
    *,
    adds: bool = False,
) -> None:
    """Add a penalty of x to the training loss, if there is one; to be called in training only.

    Of a layer that is called several times each call `adds` one of its activations; that of its
    weights is the same each time, and counts once.
    """
    if penalty is not None and not module.is_initializing():
        module.sow(
            "penalties",
            "value",
            penalty(x, progress),
            reduce_fn=jnp.add if adds else lambda _, new: new,
            init_fn=lambda: jnp.zeros((), jnp.float32),
        )


def _normalized(quantizer: Quantizer, x: jax.Array, progress: jax.Array | float) -> jax.Array:
    return x if quantizer.normalize is None else quantizer.normalize(x, progress)


def _add(binary: jax.Array, estimate: jax.Array, noise: Noise) -> jax.Array:
    if noise.reading == "backward":
        # Exactly 0 forward, the estimate's whole derivative backward.
        estimate = estimate - jax.lax.stop_gradient(estimate)
    return binary + estimate

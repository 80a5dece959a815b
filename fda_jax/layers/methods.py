"""The table of methods: a name, and how it makes weights and activations binary.

A row is a function whose keyword arguments are the method's knobs with their defaults, and whose
body reads like the row of a paper's table. Adding a method is adding a row here (and an estimator
to `ops`, if it needs a new one), or naming one of one's own as "module:function"; no layer, network
or training file knows a method by name.
"""

import dataclasses
import difflib
import functools
import inspect
import numbers
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import flax.linen as nn

from fda_jax import ops
from fda_jax.layers.adaptive import AdaptiveActivations, AdaptiveWeights
from fda_jax.layers.bases import ActivationBases, WeightBases
from fda_jax.layers.clamp import RectifiedClampWeights
from fda_jax.layers.mapping import MappedWeights
from fda_jax.layers.multibit import UniformWeights
from fda_jax.layers.nonlinearities import NETWORK, NONLINEARITIES
from fda_jax.layers.normalize import CenteredWeights, StandardizedFilters
from fda_jax.layers.outputs import OutputScale
from fda_jax.layers.own import own_function
from fda_jax.layers.penalties import TowardsScale
from fda_jax.layers.projection import ProjectedWeights
from fda_jax.layers.quantizers import Noise, Quantizer
from fda_jax.layers.rotation import RotatedWeights
from fda_jax.layers.samples import StandardizedSamples
from fda_jax.layers.shift import ShiftedSign
from fda_jax.layers.sines import SinePenalty
from fda_jax.layers.soft import LearnedDSQ
from fda_jax.ops.checks import check_choice

ACTIVATION_LEVELS = ("sign", "unsigned")
LNS_STAGES = ("sign", "mapping")
ACTIVATIONS = WEIGHTS = ("binary", "real")
REACTNET_SLOPES = ("bireal", "fourier")

# What a knob may be, by the type of its default.
_KINDS: Mapping[type, tuple[type, str]] = {
    bool: (bool, "True or False"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "text"),
}

T = TypeVar("T")
Row = Callable[..., "Method"]


@dataclasses.dataclass(frozen=True)
class Method:
    """How a network's hidden layers become binary.

    A quantizer is a `Quantizer`, or, where a method needs parameters or a state of its own, an
    unbound flax.linen module with `__call__(x, *, train, progress)` that serves as a template:
    each layer makes its own copy. It returns an array, or a `ScaledOperand`.

    Attributes:
      weight: of the latent weights (..., filters); None keeps them real.
      activation: of the layer's input (..., channels); None keeps it real.
      nonlinearity: behind each binary layer, of `NONLINEARITIES`; "network" for the network's own.
      output: template of a module y -> y behind each binary layer; None for none.
      latent_rule: what becomes of the optimizer's step on latent weights; None takes it as it is.
      predecessor: why this stage cannot start from random weights; "" where it can.
      real_layers: patterns, as of `fnmatch`, of the paths of layers that stay real, e.g.
        ("stage3_*",): weights and activations as of `full_precision`.

    Raises:
      ValueError: an unknown nonlinearity, or patterns that are no sequence of texts.
      TypeError: an operand is neither a quantizer nor None, a rule for instance.
    """

    weight: Quantizer | nn.Module | None
    activation: Quantizer | nn.Module | None
    nonlinearity: str = NETWORK
    output: nn.Module | None = None
    latent_rule: ops.LatentRule | None = None
    predecessor: str = ""
    real_layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.nonlinearity != NETWORK:
            lookup(NONLINEARITIES, self.nonlinearity, "nonlinearity")
        object.__setattr__(self, "real_layers", _patterns(self.real_layers))
        for name in ("weight", "activation", "output"):
            template = getattr(self, name)
            kinds = nn.Module if name == "output" else (Quantizer, nn.Module)
            if template is not None and not isinstance(template, kinds):
                words = "a module" if name == "output" else "a Quantizer, e.g. of that rule,"
                raise TypeError(f"{name} is {template!r}: use {words} or None")
            if isinstance(template, nn.Module) and template.parent is not None:
                # Made within a layer, of which Flax has made it a child.
                object.__setattr__(self, name, template.clone(parent=None, name=None))


def _patterns(patterns: Sequence[str]) -> tuple[str, ...]:
    """Patterns as a hashable tuple; one text is refused, for its letters would be the patterns."""
    is_sequence = isinstance(patterns, Sequence) and not isinstance(patterns, str)
    if not is_sequence or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(
            f"real_layers is {patterns!r}: use a tuple of patterns, e.g. ('stage3_*',) for one"
        )
    return tuple(patterns)


def takes_noise(reading: str) -> Callable[[Row], Row]:
    """Give a row the knobs of a noise adaptation module, on weights and activations alike.

    `noise` is "forward" (FDA-BNN, Eq. 14), "backward" (Algorithm 1) or "none"; the other knobs are
    those of `Noise`.

    Args:
      reading: default of the knob `noise`.

    Returns:
      A decorator of rows whose operands are a `Quantizer` each, or one behind a shift, unless noise
      is "none"; an operand that stays real has no module.
    """

    def decorate(row: Row) -> Row:
        @functools.wraps(row)
        def noisy(
            *,
            noise: str = reading,
            noise_scale: float = 0.1,
            noise_shortcut: str = "sine",
            noise_shortcut_slope: float = 0.1,
            noise_reduction: int = 64,
            noise_schedule: str = "cosine",
            noise_end: float = 1.0,
            noise_weight_axis: str = "filter",
            noise_activation_axis: str = "channels",
            **knobs: Any,
        ) -> Method:
            method = row(**knobs)
            if noise == "none":
                return method
            module = Noise(
                scale=noise_scale,
                shortcut=noise_shortcut,
                shortcut_slope=noise_shortcut_slope,
                reduction=noise_reduction,
                reading=noise,
                schedule=noise_schedule,
                end=noise_end,
                weight_axis=noise_weight_axis,
                activation_axis=noise_activation_axis,
            )
            try:
                weight, activation = (
                    _with_noise(operand, module) for operand in (method.weight, method.activation)
                )
            except TypeError:
                raise ValueError(
                    f"noise is {noise!r}, but with {knobs} the method's quantizers are modules of "
                    "their own, which take no noise module: use noise='none', or other knobs"
                ) from None
            return dataclasses.replace(method, weight=weight, activation=activation)

        own = inspect.signature(row).parameters.values()
        added = list(inspect.signature(noisy, follow_wrapped=False).parameters.values())[:-1]
        noisy.__signature__ = inspect.Signature(  # pyright: ignore
            [*own, *added], return_annotation=Method
        )
        return noisy

    return decorate


def _with_noise(
    operand: Quantizer | nn.Module | None, noise: Noise
) -> Quantizer | ShiftedSign | None:
    if operand is None:
        return None
    if isinstance(operand, ShiftedSign):
        return ShiftedSign(dataclasses.replace(operand.quantizer, noise=noise))
    if isinstance(operand, Quantizer):
        return dataclasses.replace(operand, noise=noise)
    raise TypeError(operand)


def full_precision() -> Method:
    """32-bit weights and activations: the upper reference of every table."""
    return Method(weight=None, activation=None)


def identity(*, scale: str = "layer", scale_in_gradient: bool = False) -> Method:
    """Straight-through estimator without a window; kept as a warning: it tends to diverge."""
    rule = ops.Identity()
    return Method(
        weight=Quantizer(rule, scale, scale_in_gradient=scale_in_gradient),
        activation=Quantizer(rule),
    )


@takes_noise("none")
def ste(
    *,
    scale: str = "layer",
    scale_in_gradient: bool = False,
    window: float = 1.0,
) -> Method:
    """Clipped straight-through estimator: `fda` without noise and with another slope."""
    rule = ops.ClippedSTE(window)
    return Method(
        weight=Quantizer(rule, scale, scale_in_gradient=scale_in_gradient),
        activation=Quantizer(rule),
    )


def binarynet(*, window: float = 1.0) -> Method:
    """BinaryNet (arXiv 1602.02830), Algorithm 1: latent weights clipped to [-1, 1], no scale.

    The clipping is what keeps the weights' slope of 1 in bounds; for activations the window of the
    paper's hardtanh is the slope's. The authors' code multiplies a layer's step by a coefficient of
    Glorot's and starts uniform in [-1, 1]; here weights start as everywhere, far within the bounds.
    """
    return Method(
        weight=Quantizer(ops.Identity()),
        activation=Quantizer(ops.ClippedSTE(window)),
        latent_rule=ops.ClipLatents(),
    )


def dorefa(
    *, weight_bits: int = 1, activation_bits: int = 1, activation_levels: str = "sign"
) -> Method:
    """DoReFa-Net (arXiv 1606.06160), Eqs. 7 to 9 and 11; gradients keep their 32 bits.

    One-bit weights get the gradient of their scaled signs as it is, without the scale (Eq. 8).
    One-bit activations are signs, as in the baseline of FDA-BNN, or, as in the paper, "unsigned":
    {0, 1}. Those of more bits always are.
    """
    check_choice("activation_levels", activation_levels, ACTIVATION_LEVELS)
    scaled_signs = Quantizer(ops.Identity(), "layer", scale_in_gradient=False)
    signs = activation_bits == 1 and activation_levels == "sign"
    levels = ops.ClippedSTE() if signs else ops.UniformActivation(activation_bits)
    return Method(
        weight=scaled_signs if weight_bits == 1 else UniformWeights(weight_bits),
        activation=Quantizer(levels),
    )


def xnor_net(*, scale: str = "filter") -> Method:
    """XNOR-Net (arXiv 1603.05279): centred weights, a scale that the gradient flows through.

    Without the scale K of the activations, which costs a convolution at inference and which public
    implementations leave out. The gradient is the derivative; the authors' code has a factor of
    (1 - 1 / channels) n beside it, for filters of n weights, which Adam does not feel.
    """
    rule = ops.ClippedSTE()
    return Method(
        weight=Quantizer(rule, scale, normalize=CenteredWeights(), scale_gradient=True),
        activation=Quantizer(rule),
    )


def xnor_net_pp(*, scale_shape: str = "channel_height_width") -> Method:
    """XNOR-Net++ (arXiv 1909.13863): no scale of the weights, a learned one of the output."""
    rule = ops.ClippedSTE()
    return Method(
        weight=Quantizer(rule), activation=Quantizer(rule), output=OutputScale(scale_shape)
    )


def tbn(
    *,
    scale: str = "filter",
    scale_in_gradient: bool = False,
    threshold: float = 0.4,
    window: float = 1.0,
) -> Method:
    """TBN (Wan et al., ECCV 2018): XNOR-Net's binary weights, activations in {-1, 0, 1}.

    The weights' gradient is that of the binary kernel, without window and scale, as in the authors'
    code (dnvtmf/TBN, binary_weight.py). There the threshold is that of a whole batch, and at
    inference of its running mean; here it is that of an example, always.
    """
    return Method(
        weight=Quantizer(ops.Identity(), scale, scale_in_gradient=scale_in_gradient),
        activation=Quantizer(ops.Ternary(threshold, window)),
    )


def hwgq(
    *, scale: str = "filter", scale_in_gradient: bool = False, activation_bits: int = 2
) -> Method:
    """HWGQ (arXiv 1702.00953): XNOR-Net's binary weights, half-wave Gaussian activations.

    They are the network's nonlinearity; another one in front could cut off their upper levels. The
    weights' gradient is that of the binary kernel, without window and scale, as in the authors'
    code (zhaoweicai/hwgq, binary_conv_layer.cpp).
    """
    return Method(
        weight=Quantizer(ops.Identity(), scale, scale_in_gradient=scale_in_gradient),
        activation=Quantizer(ops.HalfWaveGaussian(activation_bits)),
        nonlinearity="none",
    )


def bireal(*, scale: str = "filter", scale_in_gradient: bool = True) -> Method:
    """Bi-Real Net (arXiv 1808.00278): ApproxSign, and no nonlinearity but the sign.

    The weights' scale is part of their gradient, as in Eq. 9; the authors' code leaves it out.
    """
    return Method(
        weight=Quantizer(ops.ClippedSTE(), scale, scale_in_gradient=scale_in_gradient),
        activation=Quantizer(ops.ApproxSign()),
        nonlinearity="none",
    )


def bireal_prelu(*, scale: str = "filter", scale_in_gradient: bool = True) -> Method:
    """Bi-Real Net with PReLU: FDA-BNN's baseline on ImageNet."""
    made = bireal(scale=scale, scale_in_gradient=scale_in_gradient)
    return dataclasses.replace(made, nonlinearity="prelu")


@takes_noise("none")
def bnn_plus(
    *,
    scale: str = "filter",
    beta: float = 5.0,
    regularizer: str = "l1",
    regularizer_weight: float = 1e-6,
) -> Method:
    """BNN+ (arXiv 1812.11800): SignSwish, and weights drawn towards their scale.

    Beta is trained in the paper and a constant here; the regulariser's weight is our choice.
    """
    rule = ops.SignSwish(beta)
    weight = Quantizer(rule, scale)
    if regularizer != "none":
        penalty = TowardsScale(regularizer, regularizer_weight, scale)
        weight = dataclasses.replace(weight, penalty=penalty)
    return Method(weight=weight, activation=Quantizer(rule))


@takes_noise("none")
def dsq(
    *,
    scale: str = "layer",
    alpha: float = 0.2,
    window: float = 1.0,
    learnable: bool = False,
) -> Method:
    """DSQ (arXiv 1908.05033) for one bit: alpha and the clipping range held fixed, or trained.

    The paper trains them; `learnable` does, from the same values.
    """
    if learnable:
        return Method(
            weight=LearnedDSQ(alpha, window, scale),
            activation=LearnedDSQ(alpha, window, batched=True),
        )
    rule = ops.DSQ(alpha, window)
    return Method(weight=Quantizer(rule, scale), activation=Quantizer(rule))


def quantization_networks(
    *,
    scale: str = "learned",
    temperature_start: float = 10.0,
    temperature_end: float = 30.0,
) -> Method:
    """Quantization Networks (arXiv 1911.09464): a steepening sigmoid forward, a learned scale.

    The authors start from a trained real network and end at a temperature of 1000, whose slopes
    are too large for one that starts from random weights. The scale is one a filter, where the
    paper has one a layer; its scale inside the sigmoid, the temperature's unit, is 1. Activations
    are -1 and 1 here. The authors' code for one bit has 0 and 1 behind a ReLU, with a trained scale
    a layer before and after the sigmoid (aliyun/alibabacloud-quantization-networks).
    """
    rule = ops.SigmoidSum(temperature_start, temperature_end)
    return Method(weight=Quantizer(rule, scale), activation=Quantizer(rule))


def irnet(
    *,
    scale: str = "power_of_two",
    t_start: float = 1e-3,
    t_end: float = 10.0,
    window: float = 1.0,
) -> Method:
    """IR-Net (arXiv 1909.10788): standardized filters, shifts for scales, a decaying error.

    For activations the window of the hardtanh in the authors' networks is the slope's.
    """
    return Method(
        weight=Quantizer(ops.EDE(t_start, t_end), scale, normalize=StandardizedFilters()),
        activation=Quantizer(ops.EDE(t_start, t_end, window)),
    )


def resnete(*, window: float = 1.25) -> Method:
    """ResNetE (arXiv 1906.08637): a wider window, no scale, no nonlinearity but the sign.

    Latent weights are clipped to the window, as in larq's model.
    """
    rule = ops.ClippedSTE(window)
    return Method(
        weight=Quantizer(rule),
        activation=Quantizer(rule),
        nonlinearity="none",
        latent_rule=ops.ClipLatents(window),
    )


def bop(
    *,
    threshold: float = 1e-8,
    gamma: float = 1e-4,
    gamma_decay: float = 0.1,
    window: float = 1.0,
) -> Method:
    """Bop (arXiv 1906.02107): weights are signs that flip, whatever the optimizer.

    Gamma is multiplied by `gamma_decay` after each fifth of the training, as in the authors' code.
    """
    return Method(
        weight=Quantizer(ops.Identity()),
        activation=Quantizer(ops.ClippedSTE(window)),
        latent_rule=ops.Bop(threshold, gamma, gamma_decay),
    )


@takes_noise("none")
def reactnet(
    *,
    scale: str = "filter",
    scale_in_gradient: bool = True,
    weights: str = "binary",
    slope: str = "bireal",
    omega: float = 0.1,
    window: float = 1.0,
    num_terms_start: int = 10,
    num_terms_end: int = 19,
) -> Method:
    """ReActNet (arXiv 2003.03488): Bi-Real Net with shifts before the sign and round a PReLU.

    The weights and their gradient are `bireal`'s; with `weights` "real" it is the first of the
    authors' two steps. With `slope` "fourier" and noise it is the lower starred row of FDA-BNN's
    Table 5, which replaces the gradient of the sign alone.
    """
    check_choice("weights", weights, WEIGHTS)
    check_choice("slope", slope, REACTNET_SLOPES)
    wave = ops.Fourier(omega, window, num_terms_start, num_terms_end)
    of_weights, of_activations = {
        "bireal": (ops.ClippedSTE(), ops.ApproxSign()),
        "fourier": (wave, wave),
    }[slope]
    binary = Quantizer(of_weights, scale, scale_in_gradient=scale_in_gradient)
    return Method(
        weight=binary if weights == "binary" else None,
        activation=ShiftedSign(Quantizer(of_activations)),
        nonlinearity="rprelu",
    )


def reste(
    *, scale: str = "layer", power_end: float = 3.0, inner: float = 0.1, window: float = 1.5
) -> Method:
    """ReSTE (arXiv 2308.06689): a root that grows, a scale that the gradient flows through."""
    rule = ops.ReSTE(power_end, inner, window)
    return Method(weight=Quantizer(rule, scale, scale_gradient=True), activation=Quantizer(rule))


def binaryconnect(
    *, scale: str = "layer", activations: str = "binary", window: float = 1.0
) -> Method:
    """BinaryConnect (arXiv 1511.00363): slope 1, latent weights clipped to [-1, 1].

    The paper has no scale, and its activations are real. The authors' code multiplies a layer's
    step by a coefficient of Glorot's and starts uniform in [-1, 1]; here weights start as
    everywhere, far within the bounds.
    """
    return Method(
        weight=_at_scale(ops.Identity(), scale),
        activation=_activations(activations, ops.ClippedSTE(window)),
        latent_rule=ops.ClipLatents(),
    )


def proxconnect(
    *,
    scale: str = "layer",
    activations: str = "binary",
    rho_start: float = 0.0,
    rho_end: float = 2.0,
    varrho_start: float = 0.0,
    varrho_end: float = 0.0,
    window: float = 1.0,
) -> Method:
    """ProxConnect (arXiv 2110.13220): BinaryConnect with a map that hardens into the sign."""
    rule = ops.ProximalQuantizer(rho_start, rho_end, varrho_start, varrho_end)
    return Method(
        weight=_at_scale(rule, scale),
        activation=_activations(activations, ops.ClippedSTE(window)),
    )


def reverse_proxconnect(
    *,
    scale: str = "layer",
    activations: str = "binary",
    rho_end: float = 1e-3,
    hard_from: float = 0.667,
    window: float = 1.0,
) -> Method:
    """Reverse ProxConnect (arXiv 2110.13220): real weights, each step from the quantized ones."""
    rule = ops.ProximalQuantizer(rho_end=rho_end, hard_from=hard_from)
    return Method(
        weight=_at_scale(ops.Relaxed(), scale),
        activation=_activations(activations, ops.ClippedSTE(window)),
        latent_rule=_step_from(rule, scale),
    )


def proxquant(
    *,
    scale: str = "layer",
    activations: str = "binary",
    strength: float = 3e-4,
    hard_from: float = 0.667,
    window: float = 1.0,
) -> Method:
    """ProxQuant (arXiv 1810.00861), Algorithm 1: each step starts from what it is evaluated at.

    The authors' learning rate is part of the strength here. The paper starts from a trained real
    network; from random weights here, unless `train.init_from` names a run.
    """
    rule = ops.ProximalQuantizer(rho_end=strength, varrho_end=strength, hard_from=hard_from)
    return Method(
        weight=_at_scale(rule, scale),
        activation=_activations(activations, ops.ClippedSTE(window)),
        latent_rule=_step_from(rule, scale),
    )


def bnn_plus_plus(
    *,
    scale: str = "layer",
    activations: str = "binary",
    mu_start: float = 1.0,
    mu_end: float = 10.0,
    window: float = 1.0,
) -> Method:
    """BNN++ (arXiv 2402.17710): sign-Swish forward, its derivative backward, ever steeper.

    Like the whole theory this is about weights; activations are BinaryNet's signs, real, or, for
    "pair", of the same forward and backward maps.
    """
    rule = ops.Synthesized(ops.SignSwish(1.0), mu_start=mu_start, mu_end=mu_end)
    return Method(
        weight=_at_scale(rule, scale),
        activation=Quantizer(rule)
        if activations == "pair"
        else _activations(activations, ops.ClippedSTE(window)),
    )


def abc_net(*, weight_bases: int = 1, activation_bases: int = 1, scale: str = "layer") -> Method:
    """ABC-Net (arXiv 1711.11294): weights and activations as weighted sums of binary bases."""
    return Method(
        weight=WeightBases(weight_bases, scale), activation=ActivationBases(activation_bases)
    )


def pcnn(*, regularizer: float = 1e-4, window: float = 1.0) -> Method:
    """PCNN (arXiv 1811.12755): a projection on two values by one trained matrix, and its loss."""
    return Method(
        weight=ProjectedWeights(regularizer), activation=Quantizer(ops.ClippedSTE(window))
    )


def lns(
    *,
    stage: str = "mapping",
    scale: str = "filter",
    window: float = 1.0,
    flip_rate: float = 0.1,
    supervision: float = 0.1,
    reduction: int = 64,
) -> Method:
    """LNS (arXiv 2010.04871): first plain signs, then a learned mapping of whole filters.

    `stage` is "sign" or "mapping".
    """
    check_choice("stage", stage, LNS_STAGES)
    rule = ops.ClippedSTE(window)
    if stage == "sign":
        return Method(weight=Quantizer(rule, scale), activation=Quantizer(rule))
    return Method(
        weight=MappedWeights(rule, scale, flip_rate, supervision, reduction),
        activation=Quantizer(rule),
        predecessor="the mapping of lns is taught by the signs of a run of its stage 'sign'",
    )


def rbnn(*, t_start: float = 1e-2, t_end: float = 10.0, refits: int = 400) -> Method:
    """RBNN (arXiv 2009.13055): weights rotated towards their signs, a learned output scale.

    The scale starts at 1, where the authors' code has the mean |w| of the filter, and the rotations
    at the identity, where it draws them at random.
    """
    return Method(
        weight=RotatedWeights(ops.RotationAware(t_start, t_end), refits),
        activation=Quantizer(
            ops.RotationAware(t_start, t_end, sharp=True),
            normalize=StandardizedSamples(center=True),
        ),
        output=OutputScale("channel"),
    )


def recu(*, tau_start: float = 0.85, tau_end: float = 0.99) -> Method:
    """ReCU (arXiv 2103.12369): weights without outliers, a learned output scale.

    The scale starts at 1, where the authors' code draws it from (0, 1).
    """
    return Method(
        weight=RectifiedClampWeights(tau_start, tau_end),
        activation=Quantizer(ops.ApproxSign(), normalize=StandardizedSamples()),
        output=OutputScale("channel"),
    )


def adabin(*, t_start: float = 1e-3, t_end: float = 10.0) -> Method:
    """AdaBin (arXiv 2208.08084): two values a filter, two trained ones a layer, and Maxout."""
    return Method(
        weight=AdaptiveWeights(ops.EDE(t_start, t_end)),
        activation=AdaptiveActivations(),
        nonlinearity="maxout",
    )


def biper(*, stage: str = "binary", frequency: float = 20.0, regularizer: float = 0.037) -> Method:
    """BiPer (arXiv 2404.01278): first sines of the weights, then their signs.

    `stage` is "real" or "binary". The learned scale is the output's and starts at 1, where the
    authors' code draws it from (0, 1): the mean |w| says nothing of the magnitude of sines.
    """
    rule = ops.Periodic(frequency, stage)
    first = "the binary stage of biper starts from the weights of its stage 'real'"
    return Method(
        weight=Quantizer(rule, penalty=SinePenalty(frequency, regularizer)),
        activation=Quantizer(ops.ApproxSign(), normalize=StandardizedSamples()),
        output=OutputScale("channel"),
        predecessor=first if stage == "binary" else "",
    )


@takes_noise("forward")
def fda(
    *,
    scale: str = "layer",
    scale_in_gradient: bool = False,
    omega: float = 0.1,
    window: float = 1.0,
    num_terms_start: int = 10,
    num_terms_end: int = 19,
) -> Method:
    """FDA-BNN: Fourier slope and a noise adaptation module; without it the sine module alone.

    The weights' scale is not part of their gradient, as in DoReFa-Net (Eq. 8), the baseline that
    FDA-BNN's section 3.1 starts from; `scale_in_gradient` puts it in.
    """
    rule = ops.Fourier(omega, window, num_terms_start, num_terms_end)
    return Method(
        weight=Quantizer(rule, scale, scale_in_gradient=scale_in_gradient),
        activation=Quantizer(rule),
    )


def _at_scale(rule: ops.Rule, scale: str) -> Quantizer:
    """Weights of two values, +-1 ("none") or +- the mean |w| of the layer or filter."""
    if scale == "none":
        return Quantizer(rule)
    return Quantizer(ops.InUnits(rule, scale), scale, scale_in_gradient=False)


def _step_from(rule: ops.Rule, scale: str) -> ops.StepFromQuantized:
    """Steps from what the rule makes of the weights, at the same scale."""
    return ops.StepFromQuantized(rule if scale == "none" else ops.Scaled(rule, scale))


def _activations(activations: str, rule: ops.Rule) -> Quantizer | None:
    check_choice("activations", activations, ACTIVATIONS)
    return Quantizer(rule) if activations == "binary" else None


METHODS: Mapping[str, Row] = MappingProxyType(
    {
        "full_precision": full_precision,
        "identity": identity,
        "ste": ste,
        "binarynet": binarynet,
        "dorefa": dorefa,
        "xnor_net": xnor_net,
        "xnor_net_pp": xnor_net_pp,
        "tbn": tbn,
        "hwgq": hwgq,
        "bireal": bireal,
        "bireal_prelu": bireal_prelu,
        "bnn_plus": bnn_plus,
        "dsq": dsq,
        "quantization_networks": quantization_networks,
        "irnet": irnet,
        "resnete": resnete,
        "bop": bop,
        "reactnet": reactnet,
        "reste": reste,
        "binaryconnect": binaryconnect,
        "proxconnect": proxconnect,
        "reverse_proxconnect": reverse_proxconnect,
        "proxquant": proxquant,
        "bnn_plus_plus": bnn_plus_plus,
        "abc_net": abc_net,
        "pcnn": pcnn,
        "lns": lns,
        "rbnn": rbnn,
        "recu": recu,
        "adabin": adabin,
        "biper": biper,
        "fda": fda,
    }
)


def make_method(method: str | Method, **knobs: object) -> Method:
    """The row of `METHODS` with this name, or one of one's own, its knobs overridden.

    Args:
      method: a name of `METHODS`, or "module:function" for a function of one's own that returns a
        `Method`, whose keyword arguments are the knobs; a `Method` is returned as it is.
      **knobs: keyword arguments of the row.

    Returns:
      A `Method`.

    Raises:
      ValueError: an unknown name or knob (the message names the nearest), a knob's value of another
        kind than its default or out of its range, or a function that makes no method.
      TypeError: neither a name nor a `Method`.

    Examples:
      >>> from fda_jax import layers
      >>> layers.make_method("reste", window=2.0).activation.estimator
      ReSTE(power_end=3.0, inner=0.1, window=2.0)
    """
    if isinstance(method, Method):
        if knobs:
            raise ValueError(
                f"the knobs {', '.join(sorted(knobs))} were given beside a finished Method: "
                "give them to make_method with the method's name"
            )
        return method
    if not isinstance(method, str):
        raise TypeError(
            f"the method is {method!r}: use a name of layers.METHODS, such as 'fda', or a Method"
        )
    row, known = _row(method), knobs_of(method)
    for knob, value in knobs.items():
        if knob not in known:
            raise ValueError(
                f"method {method!r} has no knob {knob!r}{_nearest(knob, known)}: "
                f"its knobs are {', '.join(known) or 'none'}"
            )
        _check_kind(knob, value, known[knob])
    return row(**knobs)


def knobs_of(method: str) -> dict[str, Any]:
    """The knobs of a method with their defaults.

    Args:
      method: as of `make_method`, by its name.

    Returns:
      A default for each knob: a number, a truth value or text.

    Raises:
      ValueError: an unknown name, or a function that makes no method.

    Examples:
      >>> from fda_jax import layers
      >>> layers.knobs_of("binarynet")
      {'window': 1.0}
    """
    parameters = inspect.signature(_row(method)).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def _check_kind(knob: str, value: object, default: object) -> None:
    """Refuse a knob's value that is of another kind than its default; numbers may be NumPy's."""
    kind, words = _KINDS[type(default)]
    if not isinstance(value, kind) or isinstance(value, bool) is not isinstance(default, bool):
        raise ValueError(f"{knob} is {value!r}: use {words}, such as the default {default!r}")


def _row(name: str) -> Row:
    return own_function(name, Method) if ":" in name else lookup(METHODS, name, "method")


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """The entry of a table, or a ValueError that names the nearest entries.

    Args:
      table: entries by name.
      name: the one looked for.
      what: an entry is, for the message.

    Returns:
      `table[name]`.

    Raises:
      ValueError: there is no such entry; the message names the nearest one and lists all.
    """
    if name not in table:
        raise ValueError(
            f"there is no {what} {name!r}{_nearest(name, table)}: use one of {', '.join(table)}"
        )
    return table[name]


def _nearest(name: str, names: Mapping[str, object]) -> str:
    nearest = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""

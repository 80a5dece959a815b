"""Makes tests/layers/cases/*.json with PyTorch. Run: python tools/make_torch_cases.py.

Needs numpy and torch (`pip install torch`; 2.14.1 makes the files that are kept). The tests that
read the files do not. A file is one call of a binary 3x3 convolution in training: the output, and
the gradients of sum(output * cotangent), computed in float64 from the formulas of the papers, with
nothing from fda_jax. inputs.json holds what goes into all of them, and a file the parameters that
its method trains beside the latent weights.

What goes in is random with a fixed seed and has three decimals. It is drawn again until nothing
lies on a kink or a jump of any method, where two correct programs may differ. Arrays have JAX's
order of axes: activations (batch, height, width, channels), kernels (height, width, in, out).
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import Tensor  # pyright: ignore[reportMissingImports]

TARGET = Path(__file__).resolve().parents[1] / "tests" / "layers" / "cases"
BATCH, HEIGHT, WIDTH, CHANNELS, FILTERS = 2, 4, 3, 3, 2
# No value comes nearer to a kink or a jump.
MARGIN = 1e-3
PER_SAMPLE = PER_FILTER = (1, 2, 3)

Params = Mapping[str, Tensor]
# (activations, latent weights, parameters, progress) -> both operands of the convolution.
Quantize = Callable[[Tensor, Tensor, Params, float], tuple[Tensor, Tensor]]


class TooCloseError(Exception):
    """A value lies on a kink, or a gradient is 0: the numbers must be drawn again."""


def clear_of(x: Tensor, *kinks: Tensor | float) -> Tensor:
    """Return x; TooCloseError where one of its values is within MARGIN of a kink."""
    for kink in kinks:
        if torch.any(torch.abs(x - kink) < MARGIN):
            raise TooCloseError
    return x


class Sign(torch.autograd.Function):
    """sign(x) forward, cotangent * slope backward."""

    @staticmethod
    def forward(ctx, x: Tensor, slope: Tensor) -> Tensor:
        """+1 where x > 0, -1 elsewhere."""
        ctx.save_for_backward(slope)
        return torch.where(x > 0, torch.ones_like(x), -torch.ones_like(x))

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Multiply by the slope; no gradient for the slope."""
        (slope,) = ctx.saved_tensors
        return cotangent * slope, None


class SignWithGradientOf(torch.autograd.Function):
    """sign(x) forward, the derivative of a given function backward, by autograd."""

    @staticmethod
    def forward(ctx, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """+1 where x > 0, -1 elsewhere."""
        ctx.save_for_backward(x)
        ctx.function = function
        return torch.where(x > 0, torch.ones_like(x), -torch.ones_like(x))

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Differentiate the function at x."""
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(ctx.function(x), x, cotangent)
        return gradient, None


class Rounded(torch.autograd.Function):
    """A given step function forward, the identity backward."""

    @staticmethod
    def forward(ctx, x: Tensor, steps: Callable[[Tensor], Tensor]) -> Tensor:
        """The step function's value."""
        return steps(x)

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Pass the cotangent on."""
        return cotangent, None


class Times(torch.autograd.Function):
    """X times a scale forward, the identity backward."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor) -> Tensor:
        """The product."""
        return scale * x

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Pass the cotangent on to x."""
        return cotangent, None


def one_within(x: Tensor, low: float, high: float) -> Tensor:
    """1 where low <= x <= high, 0 elsewhere."""
    clear_of(x, low, high)
    return ((x >= low) & (x <= high)).to(x.dtype)


def clipped_sign(x: Tensor, window: float = 1.0) -> Tensor:
    """BinaryNet (arXiv 1602.02830), Eq. 4."""
    return Sign.apply(clear_of(x, 0.0), one_within(x, -window, window))


def approx_sign(x: Tensor) -> Tensor:
    """Bi-Real Net (arXiv 1808.00278), Eq. 6: 2 + 2x on [-1, 0), 2 - 2x on [0, 1), else 0."""
    rising, falling = one_within(x, -1.0, 0.0), one_within(x, 0.0, 1.0)
    return Sign.apply(x, rising * (2 + 2 * x) + falling * (2 - 2 * x))


def magnitude(w: Tensor) -> Tensor:
    """XNOR-Net (arXiv 1603.05279), Eq. 6: the mean |w| of each filter."""
    return w.abs().mean(PER_FILTER, keepdim=True)


def ste(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
    """Signs within a window of 1, times the mean |w| of the layer, not so the gradient."""
    return clipped_sign(a), Times.apply(clipped_sign(w), w.abs().mean())


def narrow_ste(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
    """A window of 1/2 and a scale for each filter, a constant factor of the gradient too."""
    return clipped_sign(a, 0.5), magnitude(w).detach() * clipped_sign(w, 0.5)


def bireal(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
    """Bi-Real Net, Eqs. 6 and 9: the magnitude is a constant of the gradient."""
    return approx_sign(a), magnitude(w).detach() * clipped_sign(w)


def bireal_code(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
    """As the authors' released code has it: the magnitude multiplies the signs alone."""
    scaled = magnitude(w) * torch.where(w > 0, 1.0, -1.0).to(w.dtype)
    clamped = torch.clamp(clear_of(w, -1.0, 0.0, 1.0), -1.0, 1.0)
    return approx_sign(a), scaled.detach() - clamped.detach() + clamped


def reactnet(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
    """ReActNet (arXiv 2003.03488), Eq. 1, with the threshold's sign turned; weights as Bi-Real."""
    shift = params["activation/shift"].reshape(1, -1, 1, 1)
    return bireal(a + shift, w, params, progress)


def xnor_net(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
    """XNOR-Net, section 3.1: centred and clipped weights, the scale differentiated as well."""
    centered = clear_of(w - w.mean(1, keepdim=True), -1.0, 0.0, 1.0)
    clipped = torch.clamp(centered, -1.0, 1.0)
    binary = Sign.apply(clipped, torch.ones_like(clipped))
    return clipped_sign(a), magnitude(clipped) * binary


def xnor_net_pp(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
    """XNOR-Net++ (arXiv 1909.13863): bare signs; the output's scale is in `output_scale`."""
    return clipped_sign(a), clipped_sign(w)


def output_scale(params: Params) -> Tensor:
    """A trained factor for each channel; XNOR-Net++, case 4: for each channel, row and column."""
    one = torch.ones(1, dtype=torch.float64)
    vectors = [params.get(f"output/{axis}", one) for axis in ("channel", "height", "width")]
    return torch.einsum("c,h,w->chw", *vectors)


def dorefa(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
    """DoReFa-Net (arXiv 1606.06160), Eqs. 7 and 8: scaled signs whose gradient is the identity."""
    scale = w.abs().mean().item()
    return clipped_sign(a), Rounded.apply(clear_of(w, 0.0), lambda w: scale * torch.sign(w))


def dorefa_bits(bits: int) -> Quantize:
    """DoReFa-Net, Eqs. 5, 9 and 11: several bits of both."""

    def quantize(x: Tensor) -> Tensor:
        last = 2**bits - 1
        for half in range(last):
            clear_of(x, (half + 0.5) / last)
        return Rounded.apply(x, lambda x: torch.round(last * x) / last)

    def layer(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
        bounded = torch.tanh(w)
        share = bounded / (2 * bounded.abs().max()) + 0.5
        return quantize(torch.clamp(clear_of(a, 0.0, 1.0), 0.0, 1.0)), 2 * quantize(share) - 1

    return layer


def straight_through(w: Tensor) -> Tensor:
    """Scaled signs with the gradient of the binary kernel, as the code of TBN and HWGQ has them."""
    return Rounded.apply(clear_of(w, 0.0), lambda w: torch.sign(w) * magnitude(w))


def tbn(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
    """TBN (Wan et al., ECCV 2018): ternary activations, 0 below 0.4 of the sample's mean |a|."""
    threshold = 0.4 * a.detach().abs().mean(PER_SAMPLE, keepdim=True)
    clear_of(a, threshold, -threshold, 0.0, -1.0, 1.0)
    ternary = Rounded.apply(
        torch.clamp(a, -1.0, 1.0), lambda clipped: torch.sign(a) * (a.abs() > threshold)
    )
    return ternary, straight_through(w)


def hwgq(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
    """HWGQ (arXiv 1702.00953): 0 and the nearest of three steps; the clipped ReLU's gradient."""
    step = 0.538
    clear_of(a, 0.0, 1.5 * step, 2.5 * step, 3 * step)
    levels = Rounded.apply(
        torch.clamp(a, 0.0, 3 * step),
        lambda x: step * ((x > 0).to(x.dtype) + (x > 1.5 * step) + (x > 2.5 * step)),
    )
    return levels, straight_through(w)


def sign_swish(u: Tensor) -> Tensor:
    """BNN+ (arXiv 1812.11800): SS(x) = 2 s(beta x) (1 + beta x (1 - s(beta x))) - 1, u = beta x."""
    s = 1 / (1 + torch.exp(-u))
    return 2 * s * (1 + u * (1 - s)) - 1


def bnn_plus(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
    """BNN+: signs with the derivative of SS, beta = 5."""

    def binary(x: Tensor) -> Tensor:
        return SignWithGradientOf.apply(clear_of(x, 0.0), lambda x: sign_swish(5 * x))

    return binary(a), magnitude(w).detach() * binary(w)


def bnn_plus_plus(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
    """BNN++ (arXiv 2402.17710): SS itself, beta from 1 to 10, weights in units of mean |w|."""
    beta, unit = 1 + 9 * progress, w.abs().mean().detach()
    return sign_swish(beta * a), unit * sign_swish(beta * w / unit)


def quantization_networks(
    a: Tensor, w: Tensor, params: Params, progress: float
) -> tuple[Tensor, Tensor]:
    """Quantization Networks (arXiv 1911.09464): 2 s(T x) - 1, T from 10 to 1000."""
    temperature = 10 + 990 * progress
    scale = params["weight/scale"].reshape(-1, 1, 1, 1)
    return (
        2 * torch.sigmoid(temperature * a) - 1,
        scale * (2 * torch.sigmoid(temperature * w) - 1),
    )


def soft(x: Tensor, low: Tensor, high: Tensor, alpha: Tensor) -> Tensor:
    """DSQ (arXiv 1908.05033) for one bit: phi(x) on its single interval, from low to high."""
    delta = high - low
    k = torch.log(2 / alpha - 1) / delta
    s = 1 / torch.tanh(0.5 * k * delta)
    inside = torch.maximum(torch.minimum(clear_of(x, low, high), high), low)
    return s * torch.tanh(k * (inside - low - 0.5 * delta))


def dsq(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
    """DSQ with its parameters held fixed: the range from -1 to 1, alpha = 0.2."""
    fixed = [torch.tensor(value, dtype=a.dtype) for value in (-1.0, 1.0, 0.2)]
    binary_a, binary_w = (Rounded.apply(clear_of(soft(x, *fixed), 0.0), torch.sign) for x in (a, w))
    return binary_a, w.abs().mean().detach() * binary_w


def learned_dsq(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
    """DSQ with its parameters trained, in the coordinates that keep them in their ranges.

    The range's gradient is divided as LSQ (arXiv 1902.08153) divides that of its step size.
    """

    def binary(x: Tensor, operand: str) -> Tensor:
        divisor = math.sqrt(x.numel() if operand == "weight" else x[0].numel())

        def slowed(name: str) -> Tensor:
            value = params[f"{operand}/{name}"]
            return value.detach() + (value - value.detach()) / divisor

        middle = slowed("middle")
        half_width = torch.exp(slowed("log_half_width"))
        alpha = torch.sigmoid(params[f"{operand}/alpha_logit"])
        phi = soft(x, middle - half_width, middle + half_width, alpha)
        return Rounded.apply(clear_of(phi, 0.0), torch.sign)

    return binary(a, "activation"), w.abs().mean().detach() * binary(w, "weight")


def ede(x: Tensor, progress: float) -> Tensor:
    """IR-Net (arXiv 1909.10788): k t (1 - tanh(t x)^2), log10 t from -3 to 1, k = max(1/t, 1)."""
    t = 10 ** (-3 + 4 * progress)
    k = max(1 / t, 1.0)
    return Sign.apply(clear_of(x, 0.0), k * t * (1 - torch.tanh(t * x) ** 2))


def balanced(w: Tensor) -> Tensor:
    """IR-Net: each filter with mean 0 and standard deviation 1."""
    centered = w - w.mean(PER_FILTER, keepdim=True)
    return centered / centered.std(PER_FILTER, keepdim=True, correction=1)


def irnet(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
    """IR-Net: balanced filters, times the power of two that is nearest on a logarithmic scale.

    A hardtanh stands before the signs of activations, as in the authors' networks.
    """
    a = torch.nn.functional.hardtanh(clear_of(a, -1.0, 1.0))
    standard = balanced(w)
    exponent = torch.log2(magnitude(standard)).detach()
    clear_of(exponent - torch.floor(exponent), 0.5)
    return ede(a, progress), 2 ** torch.round(exponent) * ede(standard, progress)


def reste(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
    """ReSTE (arXiv 2308.06689): sign(x) |x|^(1/o) pretended, o from 1 to 3, straight up to 0.1.

    The layer's scale is differentiated too.
    """
    o = 1 + (1 - math.cos(math.pi * progress / 2)) * (3 - 1)

    def rectified_sign(x: Tensor) -> Tensor:
        size = clear_of(x, -1.5, -0.1, 0.0, 0.1, 1.5).abs()
        slope = (1 / o) * size ** ((1 - o) / o)
        slope = torch.where(size < 0.1, torch.full_like(x, 0.1 ** (1 / o) / 0.1), slope)
        return Sign.apply(x, torch.where(size > 1.5, torch.zeros_like(x), slope))

    return rectified_sign(a), w.abs().mean() * rectified_sign(w)


def adabin(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
    """AdaBin (arXiv 2208.08084): two values beta -+ alpha, of weights by filter, and trained ones.

    Of the weights beta is the mean and alpha the root mean square distance from it.
    """
    beta_w = w.mean(PER_FILTER, keepdim=True)
    alpha_w = ((w - beta_w) ** 2).mean(PER_FILTER, keepdim=True).sqrt()
    binary_w = alpha_w * ede((w - beta_w) / alpha_w, progress) + beta_w
    alpha_a, beta_a = params["activation/alpha"], params["activation/beta"]
    return alpha_a * approx_sign((a - beta_a) / alpha_a) + beta_a, binary_w


def spread(a: Tensor) -> Tensor:
    """The standard deviation of each sample, with the 1e-5 of batch normalisation."""
    return torch.sqrt(a.var(PER_SAMPLE, keepdim=True, correction=1) + 1e-5)


def recu(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
    """ReCU (arXiv 2103.12369): standardised weights clamped at their Laplace quantile tau.

    tau = A e^progress + B runs from 0.85 to 0.99. Samples are divided by their spread.
    """
    growth = (0.99 - 0.85) / (math.e - 1)
    tau = growth * math.exp(progress) + 0.85 - growth
    standard = balanced(w) * 2 * math.sqrt(2)
    quantile = (-standard.abs().mean() * math.log(2 - 2 * tau)).item()
    clear_of(standard, -quantile, 0.0, quantile)
    clamped = torch.clamp(standard, -quantile, quantile)
    return approx_sign(a / spread(a)), Sign.apply(clamped, torch.ones_like(clamped))


def biper(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
    """BiPer (arXiv 2404.01278), second stage: sign(sin(20 w)) with the sine's gradient."""
    _, wave = biper_first_stage(a, w, params, progress)
    return approx_sign(a / spread(a)), Rounded.apply(clear_of(wave, 0.0), torch.sign)


def biper_first_stage(
    a: Tensor, w: Tensor, params: Params, progress: float
) -> tuple[Tensor, Tensor]:
    """BiPer, first stage: real weights sin(20 w)."""
    return approx_sign(a / spread(a)), torch.sin(20 * w)


def rbnn(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
    """RBNN (arXiv 2009.13055): filters turned by a share |sin theta| towards their signs.

    The rotation is fitted here, from the identity and three times over, to the filters as 3 x 9
    matrices X: B = sign(R1^T X R2), then R1 and R2 in turn maximise tr(B R2^T X^T R1).
    """

    def nearest_rotation(m: Tensor) -> Tensor:
        u, _, vh = torch.linalg.svd(m)
        return u @ vh

    def signs_with_slope(x: Tensor, t: float) -> Tensor:
        k = max(1 / t, 1.0)
        clear_of(x, 0.0, -math.sqrt(2) / t, math.sqrt(2) / t)
        slope = k * (math.sqrt(2) * t - t**2 * x.abs())
        return Sign.apply(x, torch.clamp(slope, min=0.0))

    # A filter is flattened in the order (height, width, in).
    filters = balanced(w).permute(0, 2, 3, 1)
    matrices = filters.detach().reshape(FILTERS, 3, 9)
    r1, r2 = torch.eye(3, dtype=a.dtype), torch.eye(9, dtype=a.dtype)
    for _ in range(3):
        signs = torch.sign(clear_of(r1.T @ matrices @ r2, 0.0))
        r1 = nearest_rotation((matrices @ r2 @ signs.mT).sum(0))
        r2 = nearest_rotation((matrices.mT @ r1 @ signs).sum(0))
    turned = (r1.T @ matrices @ r2).reshape(filters.shape)
    share = torch.sin(params["weight/theta"]).abs().reshape(-1, 1, 1, 1)
    t = 10 ** (-2 + 3 * progress)
    binary_w = signs_with_slope(filters + share * (turned - filters), t).permute(0, 3, 1, 2)
    standard = (a - a.mean(PER_SAMPLE, keepdim=True)) / spread(a)
    return signs_with_slope(standard, max(t, 1.0)), binary_w


def proximal(w: Tensor, rho: float, varrho: float) -> Tensor:
    """ProxConnect (arXiv 2110.13220): the sign within rho of +-1, a line from +-varrho at 0."""
    size = clear_of(w, 0.0).abs()
    clear_of(size, 1 - rho, 1 + rho)
    line = varrho + (1 - varrho) * size / (1 - rho)
    outer = 1 + torch.clamp(size - 1 - rho, min=0.0)
    return torch.sign(w) * torch.where(size < 1 - rho, line, outer)


def proxconnect(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
    """ProxConnect: rho from 0 to 2, varrho from 0 to 1, in units of mean |w|."""
    unit = w.abs().mean().detach()
    forward = Rounded.apply(w, lambda w: unit * proximal(w / unit, 2 * progress, progress))
    return clipped_sign(a), forward


def proxquant(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
    """ProxQuant (arXiv 1810.00861): the soft threshold of the distance from the sign."""
    unit, strength = w.abs().mean().detach(), 0.5 * progress

    def quantize(w: Tensor) -> Tensor:
        signs = torch.sign(clear_of(w, 0.0))
        rest = clear_of(w / unit - signs, -strength, strength)
        return unit * (signs + torch.sign(rest) * torch.clamp(rest.abs() - strength, min=0.0))

    return clipped_sign(a), Rounded.apply(w, quantize)


def abc_net(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
    """ABC-Net (arXiv 1711.11294): three bases of each, by least squares and by trained factors."""
    mean, std = w.detach().mean(), w.detach().std(correction=0)
    bases = torch.stack(
        [Rounded.apply(clear_of(w - mean + u * std, 0.0), torch.sign) for u in (-1.0, 0.0, 1.0)]
    )
    columns = bases.detach().reshape(3, -1).T
    factors = torch.linalg.lstsq(columns, w.detach().reshape(-1, 1)).solution.reshape(3, 1, 1, 1, 1)
    terms = []
    for factor, shift in zip(params["activation/scale"], params["activation/shift"], strict=True):
        clipped = torch.clamp(clear_of(a + shift, 0.0, 0.5, 1.0), 0.0, 1.0)
        terms.append(factor * Rounded.apply(clipped, lambda x: torch.sign(x - 0.5)))
    return torch.stack(terms).sum(0), (factors * bases).sum(0)


def pcnn(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
    """PCNN (arXiv 1811.12755): the gradient is that of the product with the projection matrix."""
    matrix = params["weight/projection"]
    binary = torch.sign(matrix.mean() * clear_of(w, 0.0)).detach()
    clamped = torch.clamp(clear_of(matrix * w, -1.0, 1.0), -1.0, 1.0)
    return clipped_sign(a), Times.apply(Rounded.apply(clamped, lambda _: binary), w.abs().mean())


def lns(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
    """LNS (arXiv 2010.04871), second stage: signs of w + relu(w W1) W2 of the whole filter."""
    # A filter is flattened in the order (height, width, in).
    filters = w.permute(0, 2, 3, 1)
    rows = filters.reshape(FILTERS, -1)
    hidden = torch.relu(clear_of(rows @ params["weight/w1"], 0.0))
    mapped = (rows + hidden @ params["weight/w2"]).reshape(filters.shape).permute(0, 3, 1, 2)
    return clipped_sign(a), magnitude(w).detach() * clipped_sign(mapped)


def fourier_sign(x: Tensor, progress: float) -> Tensor:
    """FDA-BNN, Eq. 10: (4 omega / pi) sum over i of cos((2i + 1) omega x), omega = 0.1, |x| <= 1.

    10 terms at the start and 19 at the end, each number for a tenth of the training.
    """
    num_terms = 10 + min(math.floor(10 * progress), 9)
    waves = [torch.cos((2 * i + 1) * 0.1 * x) for i in range(num_terms)]
    slope = 4 * 0.1 / math.pi * torch.stack(waves).sum(0)
    return Sign.apply(clear_of(x, 0.0), slope * one_within(x, -1.0, 1.0))


def fda(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
    """FDA-BNN's sine module alone; DoReFa-Net (arXiv 1606.06160), Eqs. 7 and 8: no scale back."""
    return fourier_sign(a, progress), Times.apply(fourier_sign(w, progress), w.abs().mean())


def fda_scaled(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
    """The same with the mean |w| of the layer in the gradient too, as a constant."""
    return fourier_sign(a, progress), w.abs().mean().detach() * fourier_sign(w, progress)


def fda_with_noise(reading: str) -> Quantize:
    """FDA-BNN with its noise adaptation modules, Eqs. 13 and 14, or as its Algorithm 1."""

    def noise(t: Tensor, operand: str, params: Params, progress: float) -> Tensor:
        w1, w2 = params[f"{operand}/noise/w1"], params[f"{operand}/noise/w2"]
        alpha = 0.1 * (1 + math.cos(math.pi * progress)) / 2
        hidden = torch.relu(clear_of(t @ w1, 0.0))
        estimate = alpha * (hidden @ w2 + 0.1 * torch.sin(t))
        return estimate if reading == "forward" else estimate - estimate.detach()

    def layer(a: Tensor, w: Tensor, params: Params, progress: float) -> tuple[Tensor, Tensor]:
        pixels = a.permute(0, 2, 3, 1)
        noisy_a = fourier_sign(pixels, progress) + noise(pixels, "activation", params, progress)
        # A filter is flattened in the order (height, width, in).
        filters = w.permute(0, 2, 3, 1)
        fixed = {name: param.detach() for name, param in params.items()}
        rows = filters.reshape(FILTERS, -1)
        estimate = noise(rows, "weight", fixed, progress)
        noisy_w = fourier_sign(filters, progress) + estimate.reshape(filters.shape)
        noisy_w = Times.apply(noisy_w, w.abs().mean())
        # Nothing is left out of the parameters' gradient, Eqs. 16 and 17.
        trained = noise(rows.detach(), "weight", params, progress)
        change = (trained - trained.detach()).reshape(filters.shape)
        noisy_w = noisy_w + w.abs().mean().detach() * change
        return noisy_a.permute(0, 3, 1, 2), noisy_w.permute(0, 3, 1, 2)

    return layer


@dataclasses.dataclass(frozen=True)
class Case:
    """One file.

    Attributes:
      method: name of the row of fda_jax.layers.METHODS that the file is about.
      quantize: the formulas.
      knobs: of the row, where the formulas are not those of its defaults.
      progress: finished share of training.
      strides: of the convolution, in pixels.
      params: names and shapes of the parameters that are trained beside the latent weights.
    """

    method: str
    quantize: Quantize
    knobs: Mapping[str, object] = dataclasses.field(default_factory=dict)
    progress: float = 0.0
    strides: int = 1
    params: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)


SCALE = {"output/channel": (FILTERS,)}
GAMMA = {**SCALE, "output/height": (HEIGHT,), "output/width": (WIDTH,)}
INTERVALS = {
    f"{operand}/{name}": ()
    for operand in ("activation", "weight")
    for name in ("alpha_logit", "middle", "log_half_width")
}
# One hidden unit for a pixel's 3 channels, two for a filter's 27 weights.
REDUCTION = {"noise_reduction": 13}
NOISE = {
    "activation/noise/w1": (CHANNELS, 1),
    "activation/noise/w2": (1, CHANNELS),
    "weight/noise/w1": (9 * CHANNELS, 2),
    "weight/noise/w2": (2, 9 * CHANNELS),
}
MAPPING = {"weight/w1": (9 * CHANNELS, 2), "weight/w2": (2, 9 * CHANNELS)}
# By the name of the file.
CASES = {
    "ste": Case("ste", ste),
    "ste_strided": Case("ste", ste, strides=2),
    "ste_narrow": Case(
        "ste", narrow_ste, {"window": 0.5, "scale": "filter", "scale_in_gradient": True}
    ),
    "bireal": Case("bireal", bireal),
    "bireal_code": Case("bireal", bireal_code, {"scale_in_gradient": False}),
    "reactnet": Case("reactnet", reactnet, params={"activation/shift": (CHANNELS,)}),
    "xnor_net": Case("xnor_net", xnor_net),
    "xnor_net_pp": Case("xnor_net_pp", xnor_net_pp, params=GAMMA),
    "dorefa": Case("dorefa", dorefa),
    "dorefa_2_bits": Case("dorefa", dorefa_bits(2), {"weight_bits": 2, "activation_bits": 2}),
    "tbn": Case("tbn", tbn),
    "hwgq": Case("hwgq", hwgq),
    "bnn_plus": Case("bnn_plus", bnn_plus, strides=2),
    "bnn_plus_plus": Case(
        "bnn_plus_plus",
        bnn_plus_plus,
        {"mu_start": 1.0, "mu_end": 10.0, "activations": "pair"},
        progress=0.4,
    ),
    "quantization_networks": Case(
        "quantization_networks",
        quantization_networks,
        {"temperature_start": 10.0, "temperature_end": 1000.0},
        progress=0.01,
        params={"weight/scale": (FILTERS,)},
    ),
    "dsq": Case("dsq", dsq, strides=2),
    "dsq_learned": Case("dsq", learned_dsq, {"learnable": True}, params=INTERVALS),
    "irnet_middle": Case("irnet", irnet, progress=0.7),
    "irnet_end": Case("irnet", irnet, progress=1.0),
    "reste_middle": Case("reste", reste, progress=0.4),
    "reste_end": Case("reste", reste, progress=1.0),
    "adabin": Case(
        "adabin", adabin, progress=0.6, params={"activation/alpha": (), "activation/beta": ()}
    ),
    "recu_start": Case("recu", recu, params=SCALE),
    "recu_middle": Case("recu", recu, progress=0.6, params=SCALE),
    "biper": Case("biper", biper, {"stage": "binary"}, strides=2, params=SCALE),
    "biper_first_stage": Case("biper", biper_first_stage, {"stage": "real"}, params=SCALE),
    "rbnn": Case("rbnn", rbnn, progress=0.6, params={**SCALE, "weight/theta": (FILTERS,)}),
    "fda_sine_middle": Case("fda", fda, {"noise": "none"}, progress=0.77),
    "fda_sine_scaled": Case(
        "fda", fda_scaled, {"noise": "none", "scale_in_gradient": True}, progress=0.77
    ),
    "fda_sine_end": Case("fda", fda, {"noise": "none"}, progress=1.0),
    "fda_forward": Case(
        "fda",
        fda_with_noise("forward"),
        {"noise": "forward", **REDUCTION},
        progress=0.3,
        params=NOISE,
    ),
    "fda_backward": Case(
        "fda",
        fda_with_noise("backward"),
        {"noise": "backward", **REDUCTION},
        progress=0.3,
        params=NOISE,
    ),
    "proxconnect": Case("proxconnect", proxconnect, {"varrho_end": 1.0}, progress=0.2),
    "proxquant": Case("proxquant", proxquant, {"strength": 0.5}, progress=0.6),
    "pcnn": Case("pcnn", pcnn, params={"weight/projection": (3, 3)}),
    "abc_net": Case(
        "abc_net",
        abc_net,
        {"weight_bases": 3, "activation_bases": 3},
        params={"activation/scale": (3,), "activation/shift": (3,)},
    ),
    "lns": Case("lns", lns, {"reduction": 13}, params=MAPPING),
}


def draw(seed: int) -> tuple[dict, dict]:
    """Random numbers of three decimals: inputs.json, and the parameters of each case."""
    generator = np.random.default_rng(seed)

    def normal(*shape: int, spread: float = 1.0, mean: float = 0.0) -> np.ndarray:
        return np.round(mean + spread * generator.standard_normal(shape), 3)

    inputs = {
        "activations": normal(BATCH, HEIGHT, WIDTH, CHANNELS),
        "latent_kernel": normal(3, 3, CHANNELS, FILTERS, spread=0.6),
        "cotangent": normal(BATCH, HEIGHT, WIDTH, FILTERS),
    }
    scales = {*GAMMA, "weight/scale", "weight/theta", "activation/alpha"}
    scales |= {"activation/scale", "weight/projection"}
    params = {
        name: {
            path: normal(*shape, spread=0.3, mean=1.0 if path in scales else 0.0)
            for path, shape in case.params.items()
        }
        for name, case in CASES.items()
    }
    return inputs, params


def compute(case: Case, inputs: dict, params: dict) -> dict:
    """The content of a case's file."""

    def tensor(x: np.ndarray) -> Tensor:
        # The numbers that a float32 program gets.
        return torch.tensor(np.float32(x), dtype=torch.float64, requires_grad=True)

    activations, kernel = tensor(inputs["activations"]), tensor(inputs["latent_kernel"])
    trained = {path: tensor(value) for path, value in params.items()}
    binary_a, binary_w = case.quantize(
        activations.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), trained, case.progress
    )
    y = torch.nn.functional.conv2d(binary_a, binary_w, stride=case.strides, padding=1)
    output = (y * output_scale(trained)).permute(0, 2, 3, 1)
    # A stride leaves out pixels of the output, and of the cotangent the same.
    cotangent = tensor(inputs["cotangent"]).detach()[:, :: case.strides, :: case.strides]
    output.backward(cotangent)
    return {
        "method": case.method,
        "knobs": dict(case.knobs),
        "progress": case.progress,
        "strides": case.strides,
        "params": {path: value.tolist() for path, value in params.items()},
        "output": rounded(output.detach()),
        "activations_gradient": rounded(activations.grad),
        "latent_kernel_gradient": rounded(kernel.grad),
        "params_gradient": {path: rounded(value.grad) for path, value in trained.items()},
    }


def rounded(x: Tensor) -> list:
    """Nested lists of the values of x, to a millionth of the largest."""
    if not torch.any(x):
        raise TooCloseError
    decimals = 6 - math.floor(math.log10(x.abs().max()))
    # Adding 0 turns -0 into 0.
    return (np.round(x.numpy(), decimals) + 0.0).tolist()


def compute_all(seed: int) -> dict[str, dict]:
    """The content of every file, by its name; TooCloseError where a value lies on a kink."""
    inputs, params = draw(seed)
    files = {name: compute(case, inputs, params[name]) for name, case in CASES.items()}
    return {"inputs": {name: value.tolist() for name, value in inputs.items()}, **files}


def main() -> None:
    """Writes the files and says what is in them."""
    for seed in itertools.count():
        try:
            files = compute_all(seed)
        except TooCloseError:
            continue
        break
    TARGET.mkdir(exist_ok=True)
    for name, content in files.items():
        text = json.dumps(content, separators=(",", ":"))
        (TARGET / f"{name}.json").write_text(text + "\n")
    size = sum((TARGET / f"{name}.json").stat().st_size for name in files)
    print(f"{TARGET}: {len(CASES)} cases of seed {seed}, {size} bytes, torch {torch.__version__}")


if __name__ == "__main__":
    main()

"""The estimators: one frozen rule for each way to differentiate sign."""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from fda_jax.ops.fourier import check_series, square_wave, square_wave_slope
from fda_jax.ops.periodic import Periodic
from fda_jax.ops.stages import stages_behind
from fda_jax.ops.surrogate import Estimator, sign

MOST_TERMS = 1000


@dataclasses.dataclass(frozen=True)
class Fourier(Estimator):
    """Sine module: sign differentiated as its truncated Fourier series.

    Slope: (4 omega / pi) sum_{i < N} cos((2i + 1) omega x) for |x| <= window, 0 beyond
    Twin:  square_wave(clip(x, -window, window), N, omega)
    Source: [FDA Eqs. 9, 10]. N grows with progress from `num_terms_start` to `num_terms_end` in
      equal stages: the paper's setting 1 is start = end, setting 2 starts at N = 2 (n = 1),
      setting 3 (the default) runs from N = 10 to 19 (n = 9 to 18).

    The paper gives neither omega nor a window. omega = 0.1 with a window of 1 is the reading of
    BiBench (ICML 2023), where the slope runs from 1.27 at 0 to 0.58 at 1 for N = 10.

    Attributes:
      omega: radians per unit of x, > 0.
      window: half-width of the interval with a slope, > 0; infinite for no window. The series is
        periodic: at pi / omega its slope has a negative peak, -4 omega N / pi, and from
        pi / (2 omega) to 3 pi / (2 omega) the series falls from about 1 to about -1.
      num_terms_start: N at progress 0, >= 1.
      num_terms_end: N at progress 1, >= num_terms_start.

    Raises:
      ValueError: an attribute out of its range.
    """

    omega: float = 0.1
    window: float = 1.0
    num_terms_start: int = 10
    num_terms_end: int = 19

    def __post_init__(self) -> None:
        check_series(self.num_terms_start, self.omega)
        if self.num_terms_end < self.num_terms_start:
            raise ValueError(
                f"num_terms_end is {self.num_terms_end}, below num_terms_start "
                f"{self.num_terms_start}: the number of terms may only grow, so set "
                f"num_terms_end >= {self.num_terms_start}"
            )
        if self.num_terms_end > MOST_TERMS:
            raise ValueError(
                f"num_terms_end is {self.num_terms_end}, but the slope's peak grows with it: use "
                f"at most {MOST_TERMS} (the paper's sums have 10 to 19)"
            )
        _check_window(self.window)

    def num_terms(self, progress: jax.Array | float) -> jax.Array:
        """N at this progress: a whole float32 scalar, every value for an equal share of a run."""
        stages = self.num_terms_end - self.num_terms_start + 1
        return self.num_terms_start + jnp.clip(stages_behind(progress, stages), 0, stages - 1)

    def slope(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        slope = square_wave_slope(x, self.num_terms(progress), self.omega)
        return jnp.where(jnp.abs(x) > self.window, 0.0, slope)

    def twin(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        inside = jnp.clip(x, -self.window, self.window)
        return square_wave(inside, self.num_terms(progress), self.omega)


@dataclasses.dataclass(frozen=True)
class Identity(Estimator):
    """Straight-through estimator without a window.

    Slope: 1
    Twin:  x
    Source: Bengio et al. 2013 (arXiv 1308.3432).
    """

    def slope(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        return jnp.ones_like(x)

    def twin(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        return x


@dataclasses.dataclass(frozen=True)
class ClippedSTE(Estimator):
    """Straight-through estimator inside a window, as in BinaryNet.

    Slope: 1 for |x| <= window, 0 beyond
    Twin:  clip(x, -window, window)
    Source: Hubara et al. 2016 (arXiv 1602.02830), Eq. 4.

    Attributes:
      window: half-width of the interval with a slope, > 0.

    Raises:
      ValueError: window is not positive.
    """

    window: float = 1.0

    def __post_init__(self) -> None:
        _check_window(self.window)

    def slope(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        return jnp.where(jnp.abs(x) > self.window, 0.0, jnp.ones_like(x))

    def twin(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        return jnp.clip(x, -self.window, self.window)


@dataclasses.dataclass(frozen=True)
class ApproxSign(Estimator):
    """The piecewise polynomial of Bi-Real Net.

    Slope: 2 - 2|x| for |x| <= 1, 0 beyond
    Twin:  sign(x) (2|x| - x^2) for |x| <= 1, sign(x) beyond
    Source: Liu et al. 2018 (arXiv 1808.00278), Eqs. 5 and 6.
    """

    def slope(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        return jnp.where(jnp.abs(x) > 1.0, 0.0, 2.0 - 2.0 * jnp.abs(x))

    def twin(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        inside = jnp.clip(x, -1.0, 1.0)
        return inside * (2.0 - jnp.abs(inside))


@dataclasses.dataclass(frozen=True)
class EDE(Estimator):
    """Error decay estimator of IR-Net: from the identity to the sign, by a tanh that steepens.

    Slope: k t (1 - tanh(t x)^2) for |x| <= window, 0 beyond, with k = max(1 / t, 1), so
      k t = max(t, 1)
    Twin:  k tanh(t clip(x, -window, window))
    Source: Qin et al. 2020 (arXiv 1909.10788). t grows from `t_start` to `t_end` in equal ratios.
      The authors' code runs ResNet-20 from 1e-3 and VGG-Small from 1e-1, both to 10. A window of 1
      is that of the hardtanh which their CIFAR-10 networks have before every binary layer.

    Attributes:
      t_start: steepness at progress 0, per unit of x, > 0.
      t_end: steepness at progress 1, > 0.
      window: half-width of the interval with a slope, > 0; infinite for no window.

    Raises:
      ValueError: a steepness is not positive and finite, or the window is not positive.
    """

    t_start: float = 1e-3
    t_end: float = 10.0
    window: float = math.inf

    def __post_init__(self) -> None:
        _check_positive("t_start", self.t_start, 1e-3)
        _check_positive("t_end", self.t_end, 10.0)
        _check_window(self.window)

    def slope(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        t = _equal_ratios(self.t_start, self.t_end, progress)
        slope = jnp.maximum(t, 1.0) * _sech_squared(t * x)
        return jnp.where(jnp.abs(x) > self.window, 0.0, slope)

    def twin(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        t = _equal_ratios(self.t_start, self.t_end, progress)
        inside = jnp.clip(x, -self.window, self.window)
        return jnp.maximum(1.0 / t, 1.0) * jnp.tanh(t * inside)


@dataclasses.dataclass(frozen=True)
class RotationAware(Estimator):
    """Training-aware approximation of RBNN: a parabola that steepens, for rotated weights.

    Slope: max(0, k (sqrt(2) t - t^2 |x|)) with k = max(1 / t, 1)
    Twin:  k (sqrt(2) t c - t^2 c |c| / 2) with c = clip(x, -sqrt(2) / t, sqrt(2) / t)
    Source: Lin et al. 2020 (arXiv 2009.13055). t grows from `t_start` to `t_end` in equal ratios.
      `sharp` is what the authors' code for ImageNet does for activations: max(t, 1) in place of t,
      so k = 1. Their code for CIFAR-10 has the slope of the weights there.

    The twin reaches +-k at the ends of its slope, +-sqrt(2) / t, and stays there.

    Attributes:
      t_start: steepness at progress 0, per unit of x, > 0.
      t_end: steepness at progress 1, > 0.
      sharp: whether t is kept from falling below 1.

    Raises:
      ValueError: t_start or t_end is not positive and finite.
    """

    t_start: float = 1e-2
    t_end: float = 10.0
    sharp: bool = False

    def __post_init__(self) -> None:
        _check_positive("t_start", self.t_start, 1e-2)
        _check_positive("t_end", self.t_end, 10.0)

    def steepness(self, progress: jax.Array | float) -> jax.Array:
        """t at this progress, a scalar."""
        t = _equal_ratios(self.t_start, self.t_end, progress)
        # Where t >= 1, k is 1 by its definition.
        return jnp.maximum(t, 1.0 if self.sharp else 0.0)

    def slope(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        t = self.steepness(progress)
        # k t = max(t, 1).
        return jnp.maximum(t, 1.0) * jnp.maximum(math.sqrt(2) - t * jnp.abs(x), 0.0)

    def twin(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        t = self.steepness(progress)
        inside = jnp.clip(t * x, -math.sqrt(2), math.sqrt(2))
        return jnp.maximum(1.0 / t, 1.0) * inside * (math.sqrt(2) - jnp.abs(inside) / 2)


@dataclasses.dataclass(frozen=True)
class ReSTE(Estimator):
    """Rectified straight-through estimator: a root of x that grows from the first to the third.

    Slope: |x|^(1/o - 1) / o for inner < |x| <= window, 0 beyond; inside, where it would grow
      without bound, the secant inner^(1/o) / inner
    Twin:  sign(x) |x|^(1/o) for inner < |x| <= window, constant beyond; inside, the straight line
      that meets it at +-inner
    Source: Wu et al. 2023 (arXiv 2308.06689), with the schedule, the secant and the numbers of the
      authors' code: o = 1 + (1 - cos(pi progress / 2)) (power_end - 1).

    Attributes:
      power_end: o at progress 1, >= 1; o is 1 at progress 0.
      inner: half-width of the interval with the secant, in (0, window).
      window: half-width of the interval with a slope, > 0.

    Raises:
      ValueError: an attribute out of its range.
    """

    power_end: float = 3.0
    inner: float = 0.1
    window: float = 1.5

    def __post_init__(self) -> None:
        if not 1 <= self.power_end < math.inf:
            raise ValueError(
                f"power_end is {self.power_end}, but the root of x only grows, from the first: "
                "use a number >= 1, e.g. 3.0"
            )
        _check_window(self.window)
        if not 0 < self.inner < self.window:
            raise ValueError(
                f"inner is {self.inner}, outside (0, window) = (0, {self.window}): "
                f"use e.g. {self.window / 15:.2g}"
            )

    def power(self, progress: jax.Array | float) -> jax.Array:
        """o at this progress, a scalar."""
        return 1.0 + (1.0 - jnp.cos(np.pi / 2 * progress)) * (self.power_end - 1.0)

    def slope(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        size, root = jnp.abs(x), 1.0 / self.power(progress)
        outer = root * jnp.maximum(size, self.inner) ** (root - 1.0)
        slope = jnp.where(size <= self.inner, self.inner ** (root - 1.0), outer)
        return jnp.where(size > self.window, 0.0, slope)

    def twin(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        root = 1.0 / self.power(progress)
        outer = jnp.sign(x) * jnp.clip(jnp.abs(x), self.inner, self.window) ** root
        return jnp.where(jnp.abs(x) <= self.inner, self.inner ** (root - 1.0) * x, outer)


@dataclasses.dataclass(frozen=True)
class SignSwish(Estimator):
    """The derivative of the sign-Swish function of BNN+.

    Slope: beta (2 - u tanh(u / 2)) / (1 + cosh(u)) with u = beta x
    Twin:  2 s(u) (1 + u (1 - s(u))) - 1 with s the logistic function
    Source: Darabi et al. 2018 (arXiv 1812.11800). They also train beta; here it is a constant.

    The twin overshoots +-1, so the slope is negative for |u| > 2.399.

    Attributes:
      beta: steepness per unit of x, > 0.

    Raises:
      ValueError: beta is not positive and finite.
    """

    beta: float = 5.0

    def __post_init__(self) -> None:
        _check_positive("beta", self.beta, 5.0)

    def slope(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        # 1 + cosh(u) = (1 + e^-u)^2 / (2 e^-u), which cannot overflow for u >= 0.
        size = _saturated(self.beta * jnp.abs(x))
        decay = jnp.exp(-size)
        rest = 2.0 - size * jnp.tanh(size / 2.0)
        return self.beta * rest * 2.0 * decay / (1.0 + decay) ** 2

    def twin(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        u = _saturated(self.beta * x)
        return 2.0 * jax.nn.sigmoid(u) * (1.0 + u * jax.nn.sigmoid(-u)) - 1.0


@dataclasses.dataclass(frozen=True)
class DSQ(Estimator):
    """Differentiable soft quantization for one bit: a tanh that reaches +-1 at its window's ends.

    Slope: s k (1 - tanh(k x)^2) for |x| <= window, 0 beyond
    Twin:  s tanh(k c) with c = clip(x, -window, window)
    Source: Gong et al. 2019 (arXiv 1908.05033): s = 1 / (1 - alpha) and
      k = ln(2 / alpha - 1) / delta. One bit has a single interval, of length delta = 2 window
      round 0, and tanh(k delta / 2) = 1 - alpha, so the twin is +-1 at its ends.

    Alpha and the window are learned in the paper; here they are constants.

    Attributes:
      alpha: distance from the sign at the interval's ends before scaling by s, in (0, 1).
      window: half-width of the interval, > 0 and finite.

    Raises:
      ValueError: an attribute out of its range.
    """

    alpha: float = 0.2
    window: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha is {self.alpha}: use a number inside (0, 1), e.g. 0.2")
        _check_positive("window", self.window, 1.0)

    @property
    def scale(self) -> float:
        """s, the factor that takes the ends of the interval to +-1."""
        return 1.0 / (1.0 - self.alpha)

    @property
    def steepness(self) -> float:
        """k, per unit of x."""
        return math.log(2.0 / self.alpha - 1.0) / (2.0 * self.window)

    def slope(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        slope = self.scale * self.steepness * _sech_squared(self.steepness * x)
        return jnp.where(jnp.abs(x) > self.window, 0.0, slope)

    def twin(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        inside = jnp.clip(x, -self.window, self.window)
        return self.scale * jnp.tanh(self.steepness * inside)


@dataclasses.dataclass(frozen=True)
class SigmoidSum(Estimator):
    """Quantization Networks for one bit: a sigmoid in training, the sign at its end.

    Forward: 2 s(T x) - 1 = tanh(T x / 2) for progress < 1, with s the logistic function; sign(x)
      at progress 1, which is evaluation
    Slope: (T / 2) (1 - tanh(T x / 2)^2), the forward's own derivative while progress < 1
    Twin:  tanh(T x / 2)
    Source: Yang et al. 2019 (arXiv 1911.09464). For one bit the paper's sum of sigmoids has a
      single term. T grows linearly: in the authors' code by 10 an epoch for 100 epochs, its
      defaults, so from 10 to 1000 (its script for ResNet-18: by 20 for 35, from 20 to 700).

    The paper's learned biases and scales of the sigmoids are left to layers.

    Attributes:
      temperature_start: T at progress 0, per unit of x, > 0.
      temperature_end: T just before progress 1, > 0.

    Raises:
      ValueError: an attribute is not positive and finite.
    """

    temperature_start: float = 10.0
    temperature_end: float = 1000.0

    def __post_init__(self) -> None:
        _check_positive("temperature_start", self.temperature_start, 10.0)
        _check_positive("temperature_end", self.temperature_end, 1000.0)

    def temperature(self, progress: jax.Array | float) -> jax.Array | float:
        """T at this progress, a scalar."""
        rise = self.temperature_end - self.temperature_start
        return self.temperature_start + rise * progress

    def forward(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        soft = self.twin(wide, progress).astype(x.dtype)
        return jnp.where(progress >= 1.0, sign(x), soft)

    def slope(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        half = self.temperature(progress) / 2.0
        return half * _sech_squared(half * x)

    def twin(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        return jnp.tanh(self.temperature(progress) / 2.0 * x)


ESTIMATORS: Mapping[str, type[Estimator]] = MappingProxyType(
    {
        "fourier": Fourier,
        "identity": Identity,
        "clipped_ste": ClippedSTE,
        "approx_sign": ApproxSign,
        "ede": EDE,
        "rotation_aware": RotationAware,
        "reste": ReSTE,
        "sign_swish": SignSwish,
        "dsq": DSQ,
        "sigmoid_sum": SigmoidSum,
        "periodic": Periodic,
    }
)


def _equal_ratios(start: float, end: float, progress: jax.Array | float) -> jax.Array:
    """From start at progress 0 to end at progress 1, on a straight line of logarithms."""
    return start * jnp.power(end / start, progress)


def _sech_squared(u: jax.Array) -> jax.Array:
    """1 - tanh(u)^2 without the cancellation, and without overflow."""
    decay = jnp.exp(-2.0 * jnp.abs(u))
    return 4.0 * decay / (1.0 + decay) ** 2


def _saturated(u: jax.Array) -> jax.Array:
    """u cut where exp(-|u|) is 0 in float32, so that their product is a number for infinite u."""
    return jnp.clip(u, -120.0, 120.0)


def _check_window(window: float) -> None:
    if not window > 0:
        raise ValueError(
            f"window is {window}, but a slope needs an interval of positive half-width: "
            "use e.g. 1.0, or inf for a slope everywhere"
        )


def _check_positive(name: str, value: float, example: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(
            f"{name} is {value}, but it must be positive and finite: use e.g. {example}"
        )

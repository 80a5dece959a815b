"""The estimators: one frozen rule for each way to differentiate sign."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp

from fda_jax.ops.fourier import check_series, square_wave, square_wave_slope
from fda_jax.ops.surrogate import Estimator


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
        periodic: between pi / (2 omega) and 3 pi / (2 omega) its slope is mostly negative.
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
        _check_window(self.window)

    def num_terms(self, progress: jax.Array | float) -> jax.Array:
        """N at this progress: a whole float32 scalar, every value for an equal share of a run."""
        stages = self.num_terms_end - self.num_terms_start + 1
        stage = jnp.floor(jnp.asarray(progress, jnp.float32) * stages)
        return self.num_terms_start + jnp.clip(stage, 0, stages - 1)

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


ESTIMATORS: Mapping[str, type[Estimator]] = MappingProxyType(
    {
        "fourier": Fourier,
        "identity": Identity,
        "clipped_ste": ClippedSTE,
        "approx_sign": ApproxSign,
    }
)


def _check_window(window: float) -> None:
    if not window > 0:
        raise ValueError(
            f"window is {window}, but a slope needs an interval of positive half-width: "
            "use e.g. 1.0, or inf for a slope everywhere"
        )

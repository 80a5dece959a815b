"""The periodic rule of BiPer, and what it costs to make a sine binary."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from fda_jax.ops.checks import check_choice
from fda_jax.ops.surrogate import Estimator, sign
from fda_jax.ops.trigonometry import sine

STAGES = ("real", "binary")


@dataclasses.dataclass(frozen=True)
class Periodic(Estimator):
    """BiPer: a sine in the forward pass too, so that a weight flips by moving half a period.

    Forward: sin(f x) in the stage "real", sign(sin(f x)) in the stage "binary"
    Slope: f cos(f x), with no window
    Twin:  sin(f x)
    Source: Vargas et al. 2024 (arXiv 2404.01278), by the authors' code: the first stage trains real
      weights sin(f w), the second starts from its weights and takes their sign. The weights of a
      layer alone are periodic; its activations are not.

    In float32 the angle f x is rounded by up to 1.2e-7 |f x| radians, and `sine` adds 2e-7 up to
    a few hundred radians, |x| <= 15 for f = 20. An infinite x has no phase: it gives NaN in both
    directions, as a lost run should.

    Attributes:
      frequency: f, radians per unit of x, > 0; the authors' scripts use 20.
      stage: "real" or "binary". Only "binary" is two-valued at inference.

    Raises:
      ValueError: an attribute out of its range.
    """

    frequency: float = 20.0
    stage: str = "binary"

    def __post_init__(self) -> None:
        if not 0 < self.frequency < math.inf:
            raise ValueError(
                f"frequency is {self.frequency}, but radians per unit must be positive and "
                "finite: use e.g. 20.0"
            )
        check_choice("stage", self.stage, STAGES)

    def forward(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """The sine or its sign; computed in float32 for 16-bit inputs."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        wave = self.twin(wide, progress)
        return (wave if self.stage == "real" else sign(wave)).astype(x.dtype)

    def slope(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """f cos(f x)."""
        return self.frequency * sine(self.frequency * x + np.pi / 2)

    def twin(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """sin(f x)."""
        return sine(self.frequency * x)


# Characteristic functions E cos(t w) of symmetric distributions of unit scale.
DISTRIBUTIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {
        "laplace": lambda t: 1.0 / (1.0 + t**2),
        "normal": lambda t: jnp.exp(-(t**2) / 2.0),
        "uniform": lambda t: jnp.sinc(t / np.pi),
    }
)
# Terms of the series of |sin|: its rest is below 1e-6 for frequency * scale >= 0.003.
_TERMS = 2000


def sine_moments(
    frequency: jax.Array | float, scale: jax.Array | float, distribution: str = "laplace"
) -> tuple[jax.Array, jax.Array]:
    """Mean square and mean magnitude of z = sin(f w) for random weights w.

    Forward: E z^2 = (1 - phi(2 f)) / 2
             E |z| = 2 / pi - (4 / pi) sum_{k >= 1} phi(2 k f) / (4 k^2 - 1)
    Source:  2 z^2 = 1 - cos(2 f w), the Fourier series of |sin|, and phi(t) = E cos(t w), the
      characteristic function: 1 / (1 + b^2 t^2) for Laplace weights with mean |w| = b,
      exp(-sigma^2 t^2 / 2) for normal ones, sin(a t) / (a t) for uniform ones on [-a, a].

    Args:
      frequency: f, radians per unit of w, > 0; any shape, may be traced.
      scale: b, sigma or a, > 0; broadcasts against frequency.
      distribution: a name of `DISTRIBUTIONS`.

    Returns:
      (E z^2, E |z|), float32, of the shape of frequency * scale.

    Raises:
      ValueError: an unknown distribution.
    """
    check_choice("distribution", distribution, DISTRIBUTIONS)
    characteristic = DISTRIBUTIONS[distribution]
    spread = jnp.asarray(frequency, jnp.float32) * scale
    mean_square = (1.0 - characteristic(2.0 * spread)) / 2.0
    k = jnp.arange(_TERMS, 0, -1, dtype=jnp.float32)
    terms = characteristic(2.0 * spread[..., None] * k) / (4.0 * k**2 - 1.0)
    return mean_square, 2.0 / np.pi - 4.0 / np.pi * jnp.sum(terms, axis=-1)


def quantization_error(
    frequency: jax.Array | float,
    scale: jax.Array | float,
    distribution: str = "laplace",
    gamma: jax.Array | float | None = None,
) -> jax.Array:
    """Mean squared distance of z = sin(f w) from its scaled sign.

    Forward: E (z - gamma sign(z))^2 = E z^2 - 2 gamma E |z| + gamma^2
    Source:  expanding the square. The best scale is gamma = E |z|, where the error is the
      variance of |z|.

    As the frequency grows it tends to 1/2 - 4 / pi^2 = 0.095 at the best scale, whatever the
    distribution, and to 3/2 - 4 / pi = 0.227 for gamma = 1. Laplace weights do worst at the best
    scale where f b = 0.96: 0.103.

    Args:
      frequency: f, radians per unit of w, > 0; any shape, may be traced.
      scale: of the distribution, see `sine_moments`; broadcasts against frequency.
      distribution: a name of `DISTRIBUTIONS`.
      gamma: scale of the binary weights; None is the best one.

    Returns:
      float32 array of the shape of frequency * scale.

    Raises:
      ValueError: an unknown distribution.
    """
    mean_square, mean_magnitude = sine_moments(frequency, scale, distribution)
    gamma = mean_magnitude if gamma is None else gamma
    return mean_square - 2.0 * gamma * mean_magnitude + gamma**2

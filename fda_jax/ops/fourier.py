"""The square wave, its truncated Fourier series, and what the truncation loses.

Glossary: N = `num_terms` counts sine terms. The paper's sums run over i = 0..n, so N = n + 1.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from fda_jax.ops.trigonometry import sine, sine_of_half_turn, sine_of_quarter_turn

# Of a turn: added to a distance from a peak of the slope it changes none but 0, where the quotient
# of sines would not be a number.
_OFF_PEAK = 1e-20


def square_wave(x: jax.Array, num_terms: jax.Array | int, omega: jax.Array | float) -> jax.Array:
    """Truncated Fourier series of the square wave that equals sign(x) for |x| < pi / omega.

    Forward:  (4 / pi) sum_{i < N} sin((2i + 1) omega x) / (2i + 1)
    Backward: cotangent * square_wave_slope(x, N, omega)
    Source:   [FDA Eq. 9]

    Args:
      x: float array of any shape; float16 and bfloat16 are computed in float32.
      num_terms: N >= 1, whole (a fraction is rounded); may be traced, and then no gradient
        flows to it.
      omega: radians per unit of x, > 0; may be traced. One period is 2 pi / omega.

    Returns:
      Array shaped and typed like x.

    Raises:
      ValueError: num_terms < 1 or omega <= 0, where their values are known before tracing.

    Laws: odd in x; antiperiodic by pi / omega; its derivative is `square_wave_slope`.

    Examples:
      >>> from fda_jax import ops
      >>> [round(float(ops.square_wave(1.0, terms, 0.1)), 2) for terms in (2, 10, 19)]
      [0.25, 1.02, 1.14]
    """
    check_series(num_terms, omega)
    x = jnp.asarray(x)
    dtype = _compute_dtype(x)
    wave = _wave(x.astype(dtype), jnp.asarray(omega, dtype), _whole(num_terms, dtype))
    return wave.astype(x.dtype)


def square_wave_slope(
    x: jax.Array, num_terms: jax.Array | int, omega: jax.Array | float
) -> jax.Array:
    """Slope of the truncated series at x, at a cost that does not depend on N.

    Forward:  (4 omega / pi) sum_{i < N} cos((2i + 1) omega x)
              = (2 omega / pi) sin(2 N omega x) / sin(omega x)
    Source:   [FDA Eq. 10]; the closed form is the sum of a geometric series.

    With delta = |omega x - k pi|, k the nearest whole number, the quotient is
    (-1)^k sin(2 N delta) / sin(delta): both sines see the same small angle, which keeps float32
    accuracy at the removable singularities. Angles are counted in turns, because their whole part
    is subtracted without rounding.

    Args:
      x: float array of any shape; float16 and bfloat16 are computed in float32.
      num_terms: N >= 1, whole (a fraction is rounded); may be traced.
      omega: radians per unit of x, > 0; may be traced.

    Returns:
      Array shaped and typed like x.

    Raises:
      ValueError: num_terms < 1 or omega <= 0, where their values are known before tracing.

    Laws: even in x; antiperiodic by pi / omega; peak value +-4 omega N / pi at multiples of
      pi / omega; equals the series.

    Examples:
      >>> from fda_jax import ops
      >>> [round(float(ops.square_wave_slope(x, 10, 0.1)), 2) for x in (0.0, 0.5, 1.0)]
      [1.27, 1.07, 0.58]
    """
    check_series(num_terms, omega)
    x = jnp.asarray(x)
    dtype = _compute_dtype(x)
    omega = jnp.asarray(omega, dtype)
    slope = _cosine_sum(4.0 / np.pi * omega, x.astype(dtype), omega, _whole(num_terms, dtype))
    return slope.astype(x.dtype)


def energy_kept(num_terms: jax.Array | int) -> jax.Array:
    """Share of the square wave's energy that its first N sine terms hold.

    Forward: (8 / pi^2) sum_{i < N} 1 / (2i + 1)^2
    Source:  Parseval's identity on the coefficients of [FDA Eq. 5].

    Args:
      num_terms: N >= 1, any shape; may be traced.

    Returns:
      float32 array in (0, 1) shaped like num_terms: 0.811 for one term, 0.980 for ten.
    """
    return 1.0 - mean_squared_error(num_terms)


def mean_squared_error(num_terms: jax.Array | int) -> jax.Array:
    """Mean over a period of (square wave - its first N terms)^2, the quantity of Theorem 1.

    Forward: 1 - (8 / pi^2) sum_{i < N} 1 / (2i + 1)^2 = (2 / pi^2) trigamma(N + 1/2)
    Source:  [FDA Eq. 11] by Parseval's identity; it falls like 2 / (pi^2 N).

    Args:
      num_terms: N >= 1, any shape; may be traced.

    Returns:
      float32 array in (0, 1) shaped like num_terms.
    """
    check_series(num_terms, 1.0)
    terms = jnp.asarray(num_terms, jnp.float32)
    return 2.0 / np.pi**2 * jax.scipy.special.polygamma(1, terms + 0.5)


def check_series(num_terms: object, omega: object) -> None:
    """Refuse a number of terms below 1 or a frequency that is not positive, if they are known.

    Args:
      num_terms: n, scalar or array; what is traced cannot be looked at.
      omega: angular frequency, radians per unit, likewise.

    Raises:
      ValueError: names the value, the limit and the remedy.
    """
    if not isinstance(num_terms, Tracer) and not np.all(np.asarray(num_terms) >= 1):
        raise ValueError(
            f"num_terms is {num_terms}, but a truncated series keeps at least 1 term: "
            "use a whole number >= 1 (the paper's sums have 10 to 19)"
        )
    if not isinstance(omega, Tracer):
        values = np.asarray(omega, np.float64)
        if not np.all((values > 0) & np.isfinite(values)):
            raise ValueError(
                f"omega is {omega}, but a frequency in radians per unit must be positive and "
                "finite: use e.g. 0.1"
            )


def _compute_dtype(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _whole(num_terms: jax.Array | int, dtype: jnp.dtype) -> jax.Array:
    # Between whole numbers the closed form is unbounded near odd multiples of pi.
    return jnp.round(jnp.asarray(num_terms).astype(dtype))


def _cosine_sum(
    factor: jax.Array | float, x: jax.Array, omega: jax.Array, terms: jax.Array
) -> jax.Array:
    """factor sum_{i < N} cos((2i + 1) omega x) as factor sin(2 N omega x) / (2 sin(omega x))."""
    turns = x * (omega * (0.5 / np.pi))
    fraction = jnp.abs(turns - jnp.round(turns))
    odd = fraction > 0.25
    delta = jnp.where(odd, 0.5 - fraction, fraction) + _OFF_PEAK
    multiple = 2.0 * terms * delta
    numerator = sine_of_half_turn(multiple - jnp.round(multiple))
    # The sign is given to the factor: one choice between two scalars is the cheapest.
    signed = jnp.where(odd, -0.5 * factor, 0.5 * factor)
    return signed * numerator / sine_of_quarter_turn(delta)


def _sine_series(theta: jax.Array, terms: jax.Array) -> jax.Array:
    """The literal sum of Eq. 9, smallest terms first; N is traced, so it is a loop."""

    def add(k: jax.Array, total: jax.Array) -> jax.Array:
        harmonic = 2.0 * (terms - 1.0 - k) + 1.0
        return total + sine(harmonic * theta) / harmonic

    # The start is made from theta so that it varies wherever theta does (vmap, shard_map).
    total = jax.lax.fori_loop(0, terms.astype(jnp.int32), add, theta * 0.0)
    return 4.0 / np.pi * total


@jax.custom_jvp
def _wave(x: jax.Array, omega: jax.Array, terms: jax.Array) -> jax.Array:
    return _sine_series(omega * x, terms)


@_wave.defjvp
def _wave_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    # A loop of traced length has no reverse mode of its own; its derivative is the closed form.
    x, omega, terms = primals
    change_of_angle = omega * tangents[0] + x * tangents[1]
    return _wave(x, omega, terms), _cosine_sum(4.0 / np.pi, x, omega, terms) * change_of_angle

"""Sine and cosine at the speed of memory.

The float32 sine of XLA's CPU backend costs about ten times a pass over the memory it reads; the
slope of every estimator here that oscillates would be bound by it. Reducing the angle by multiples
of pi and a polynomial on what remains is vectorised, and as accurate for the angles that training
meets.
"""

import jax
import jax.numpy as jnp
import numpy as np

# pi split in three so that theta - k pi keeps every float32 digit for |k| up to a few thousand:
# the first two parts have so few mantissa bits that their products with k are exact.
_PI_HIGH = 3.140625
_PI_MIDDLE = 9.67502593994140625e-4
_PI_LOW = float(np.pi - _PI_HIGH - _PI_MIDDLE)
# sin(d) / d as a polynomial in d^2 for |d| <= pi / 2, by Chebyshev interpolation; its error is
# below 2e-11.
_SINE = (
    0.999999999982765,
    -0.1666666661642117,
    0.00833333095875699,
    -0.00019840859124438737,
    2.75251606958301e-06,
    -2.388722335727314e-08,
)
# sin(2 pi t) / t likewise in t^2; the sine's error is below 3e-9 for |t| <= 1/2 with the first
# and below 7e-9 for |t| <= 1/4 with the second.
_SINE_OF_HALF_TURN = (
    6.283185302468583,
    -41.34170039298426,
    81.60513081115974,
    -76.7030055584183,
    42.025851491273244,
    -14.899578442214992,
    3.23778009308236,
)
_SINE_OF_QUARTER_TURN = (
    6.283185280154403,
    -41.34168061334532,
    81.60247636883796,
    -76.5811726421402,
    39.75982706857711,
)


def reduce_angle(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Split theta into k pi + delta with |delta| <= pi / 2.

    Args:
      theta: float32 or float64 array of any shape, radians; |theta| up to a few thousand.

    Returns:
      (is k odd, delta): a bool array and an array like theta.
    """
    turns = jnp.round(theta * (1.0 / np.pi))
    delta = ((theta - turns * _PI_HIGH) - turns * _PI_MIDDLE) - turns * _PI_LOW
    return turns - 2.0 * jnp.floor(0.5 * turns) == 1.0, delta


def sine_near_zero(delta: jax.Array) -> jax.Array:
    """sin(delta) for |delta| <= pi / 2, like delta; float64 is left to the library."""
    return jnp.sin(delta) if delta.dtype == jnp.float64 else _odd_polynomial(delta, _SINE)


def sine_of_half_turn(turns: jax.Array) -> jax.Array:
    """sin(2 pi turns) within 5e-7 for |turns| <= 1/2; float64 is left to the library."""
    if turns.dtype == jnp.float64:
        return jnp.sin(2.0 * np.pi * turns)
    return _odd_polynomial(turns, _SINE_OF_HALF_TURN)


def sine_of_quarter_turn(turns: jax.Array) -> jax.Array:
    """sin(2 pi turns) within 2e-7 of itself for |turns| <= 1/4; float64 as above."""
    if turns.dtype == jnp.float64:
        return jnp.sin(2.0 * np.pi * turns)
    return _odd_polynomial(turns, _SINE_OF_QUARTER_TURN)


@jax.custom_jvp
def sine(theta: jax.Array) -> jax.Array:
    """sin(theta) within 2e-7 for |theta| up to a few hundred radians, and never beyond +-1.

    Args:
      theta: float array of any shape, radians; 16-bit types are computed in float32.

    Returns:
      Array shaped and typed like theta.
    """
    wide = theta.astype(jnp.promote_types(theta.dtype, jnp.float32))
    odd, delta = reduce_angle(wide)
    # Of angles so large that delta has no digit left the value is any, but a sine's.
    value = sine_near_zero(jnp.clip(delta, -np.pi / 2, np.pi / 2))
    return jnp.where(odd, -value, value).astype(theta.dtype)


@sine.defjvp
def _sine_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (theta,), (tangent,) = primals, tangents
    wide = theta.astype(jnp.promote_types(theta.dtype, jnp.float32))
    return sine(theta), sine(wide + np.pi / 2).astype(theta.dtype) * tangent


def _odd_polynomial(x: jax.Array, coefficients: tuple[float, ...]) -> jax.Array:
    """x times a polynomial in x^2, its constant first."""
    square = x * x
    value = jnp.full_like(square, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * square + coefficient
    return x * value

"""The truncated series, its slope and its energy against float64 numpy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fda_jax.ops import (
    check_series,
    energy_kept,
    fourier,
    mean_squared_error,
    square_wave,
    square_wave_slope,
)

LAWS = settings(deadline=None, max_examples=60, derandomize=True, database=None)
SLOPE = jax.jit(square_wave_slope)
WAVE = jax.jit(square_wave)
ROUNDING = 2.0**-23


def slope_series(theta: np.ndarray, num_terms: int, omega: float) -> np.ndarray:
    """Eq. 10, literally."""
    return 4 * omega / np.pi * sum(np.cos((2 * i + 1) * theta) for i in range(num_terms))


def wave_series(theta: np.ndarray, num_terms: int) -> np.ndarray:
    """Eq. 9, literally."""
    return 4 / np.pi * sum(np.sin((2 * i + 1) * theta) / (2 * i + 1) for i in range(num_terms))


def angles() -> np.ndarray:
    """A grid up to 8 pi, every multiple of pi in it, and neighbourhoods of each."""
    centres = np.arange(-8, 9) * np.pi
    offsets = np.array([s * m * 10.0**-e for e in range(10) for m in (1, 3) for s in (-1, 1)])
    near = np.clip(centres[:, None] + offsets, -8 * np.pi, 8 * np.pi).ravel()
    return np.concatenate([centres, near, np.linspace(-8 * np.pi, 8 * np.pi, 801)])


def assert_slope_is_the_series(x: np.ndarray, num_terms: int, omega: float) -> None:
    omega64 = float(np.float32(omega))
    theta = omega64 * x.astype(np.float64)
    peak = 4 * omega64 * num_terms / np.pi
    error = np.abs(
        np.asarray(SLOPE(x, num_terms, omega), np.float64) - slope_series(theta, num_terms, omega64)
    )
    allowed = 1e-5 + 2 * num_terms * np.abs(theta) * ROUNDING
    worst = np.argmax(error / peak - allowed)
    assert np.all(error / peak <= allowed), (num_terms, omega, x[worst], error[worst] / peak)


@pytest.mark.parametrize("omega", [0.1, 1.0, 3.7])
def test_the_slope_equals_the_series_for_every_n_and_near_every_multiple_of_pi(
    omega: float,
) -> None:
    x = (angles() / float(np.float32(omega))).astype(np.float32)
    for num_terms in range(1, 65):
        assert_slope_is_the_series(x, num_terms, omega)


@LAWS
@given(
    st.lists(st.floats(-8 * np.pi, 8 * np.pi), min_size=4, max_size=4),
    st.integers(1, 64),
    st.floats(1e-3, 1e3),
)
def test_the_slope_equals_the_series_at_every_frequency(
    theta: list[float], num_terms: int, omega: float
) -> None:
    assert_slope_is_the_series((np.array(theta) / omega).astype(np.float32), num_terms, omega)


@LAWS
@given(
    st.lists(st.floats(-8 * np.pi, 8 * np.pi), min_size=4, max_size=4),
    st.integers(1, 64),
    st.floats(1e-3, 1e3),
)
def test_the_wave_equals_the_series(theta: list[float], num_terms: int, omega: float) -> None:
    x = (np.array(theta) / omega).astype(np.float32)
    exact = float(np.float32(omega)) * x.astype(np.float64)
    error = np.abs(np.asarray(WAVE(x, num_terms, omega)) - wave_series(exact, num_terms))
    # Each of the N arguments is rounded twice, and a sine over its harmonic passes that on.
    assert np.all(error <= 2e-6 + 2 * num_terms * np.abs(exact) * ROUNDING), (x, error)


@LAWS
@given(st.lists(st.floats(-30, 30, width=32), min_size=4, max_size=4), st.integers(1, 64))
def test_the_wave_is_odd_and_its_slope_even(x: list[float], num_terms: int) -> None:
    points = np.array(x, np.float32)
    np.testing.assert_array_equal(WAVE(-points, num_terms, 0.7), -WAVE(points, num_terms, 0.7))
    np.testing.assert_array_equal(SLOPE(-points, num_terms, 0.7), SLOPE(points, num_terms, 0.7))


def test_far_from_zero_and_at_what_is_no_number_the_slope_stays_bounded_or_tells() -> None:
    far = np.array([1e5, 1e7, 1e9, 1e20, 3e38], np.float32)
    assert np.all(np.abs(SLOPE(far, 7, 0.5)) <= 4 * 0.5 * 7 / np.pi * (1 + 1e-6))
    assert np.all(np.isnan(SLOPE(np.array([np.nan, np.inf, -np.inf], np.float32), 7, 0.5)))


def test_in_float64_the_slope_keeps_its_digits() -> None:
    with jax.enable_x64(True):
        theta = np.concatenate([angles(), np.arange(-8, 9) * np.pi])
        slope = square_wave_slope(jnp.asarray(theta), 9, 1.0)
        peak = 4 * 9 / np.pi
        np.testing.assert_allclose(slope / peak, slope_series(theta, 9, 1.0) / peak, atol=1e-12)


def test_half_a_period_later_wave_and_slope_change_sign() -> None:
    # omega is a power of two and the step pi / omega is rounded once, so little is lost.
    omega, num_terms = 0.5, 7
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    later = (x.astype(np.float64) + np.pi / omega).astype(np.float32)
    peak = 4 * omega * num_terms / np.pi
    np.testing.assert_allclose(
        SLOPE(later, num_terms, omega), -SLOPE(x, num_terms, omega), atol=3e-5 * peak
    )
    np.testing.assert_allclose(WAVE(later, num_terms, omega), -WAVE(x, num_terms, omega), atol=3e-5)


@pytest.mark.parametrize("num_terms", [1, 2, 10, 19, 64])
def test_the_slope_peaks_at_zero_and_is_minus_the_peak_half_a_period_later(
    num_terms: int,
) -> None:
    omega = 0.1
    peak = 4 * omega * num_terms / np.pi
    x = np.array([0.0, np.pi / omega, 2 * np.pi / omega], np.float32)
    np.testing.assert_allclose(SLOPE(x, num_terms, omega), [peak, -peak, peak], rtol=1e-6)


def test_the_wave_has_the_sign_of_x_up_to_half_a_period_and_not_beyond() -> None:
    # The paper's Eq. 7 says |t| < T; the second half of the period is negative.
    omega, num_terms = 2.0, 40
    half = np.pi / omega
    x = np.linspace(0.1, 0.9, 33, dtype=np.float32) * np.float32(half)
    np.testing.assert_allclose(WAVE(x, num_terms, omega), 1.0, atol=0.06)
    np.testing.assert_allclose(WAVE(x + np.float32(half), num_terms, omega), -1.0, atol=0.06)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("function", [square_wave, square_wave_slope])
def test_sixteen_bit_inputs_are_computed_in_float32(function, dtype: jnp.dtype) -> None:
    x = jnp.linspace(-3, 3, 67).astype(dtype)
    result = function(x, 12, 0.9)
    assert result.dtype == dtype
    chex.assert_trees_all_equal(result, function(x.astype(jnp.float32), 12, 0.9).astype(dtype))


@pytest.mark.parametrize("function", [square_wave, square_wave_slope])
def test_a_fractional_number_of_terms_is_rounded(function) -> None:
    x = np.linspace(-4, 4, 67, dtype=np.float32)
    np.testing.assert_array_equal(function(x, 4.7, 1.0), function(x, 5, 1.0))
    np.testing.assert_array_equal(function(x, 5.3, 1.0), function(x, 5, 1.0))


@pytest.mark.parametrize("function", [square_wave, square_wave_slope])
def test_traced_terms_and_frequency_give_what_static_ones_give(function) -> None:
    x = np.linspace(-4, 4, 67, dtype=np.float32)
    traced = jax.jit(function)(x, jnp.int32(9), jnp.float32(0.8))
    static = jax.jit(lambda x: function(x, 9, 0.8))(x)
    np.testing.assert_allclose(traced, static, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", [square_wave, square_wave_slope])
def test_one_trace_serves_every_number_of_terms_and_frequency(function) -> None:
    chex.clear_trace_counter()
    once = jax.jit(chex.assert_max_traces(lambda x, n, omega: function(x, n, omega), n=1))
    x = np.ones(3, np.float32)
    results = {float(once(x, float(n), w)[0]) for n in (1, 2, 19) for w in (0.1, 0.2)}
    assert len(results) == 6


def primitives(jaxpr) -> list[str]:
    """Names of all primitives of a jaxpr, those of its inner jaxprs included."""
    names = []
    for eqn in jaxpr.eqns:
        names.append(eqn.primitive.name)
        for value in jax.tree.leaves(list(eqn.params.values())):
            if hasattr(value, "eqns"):
                names += primitives(value)
    return names


def test_the_slope_costs_the_same_for_every_n_and_holds_no_loop() -> None:
    x = jnp.ones(3)
    one = primitives(jax.make_jaxpr(lambda x: square_wave_slope(x, 1, 0.1))(x))
    many = primitives(jax.make_jaxpr(lambda x: square_wave_slope(x, 64, 0.1))(x))
    traced = primitives(jax.make_jaxpr(square_wave_slope)(x, 64.0, 0.1))
    assert one == many
    assert not {"while", "scan"} & set(one + traced)
    # The literal series does hold one: what is looked for above would be found.
    assert "while" in primitives(jax.make_jaxpr(square_wave)(x, 64.0, 0.1))


def test_the_slope_is_the_true_derivative_of_the_literal_loop() -> None:
    # Forward mode goes through the loop itself, so the closed form does not vouch for itself.
    omega, theta = 1.0, np.linspace(-3.5, 3.5, 141, dtype=np.float32)

    @jax.jit
    def derivative(theta: jax.Array, terms: jax.Array) -> jax.Array:
        return jax.jvp(lambda t: fourier._sine_series(t, terms), (theta,), (theta * 0 + 1,))[1]

    for num_terms in (1, 2, 10, 33):
        peak = 4 * omega * num_terms / np.pi
        np.testing.assert_allclose(
            derivative(theta, float(num_terms)), SLOPE(theta, num_terms, omega), atol=2e-5 * peak
        )


@pytest.mark.parametrize("num_terms", [1, 10, 33])
def test_the_gradient_of_the_wave_is_its_slope(num_terms: int) -> None:
    omega, x = 0.8, np.linspace(-4.5, 4.5, 141, dtype=np.float32)
    gradient = jax.jit(jax.vmap(jax.grad(square_wave), in_axes=(0, None, None)))
    peak = 4 * omega * num_terms / np.pi
    np.testing.assert_allclose(
        gradient(x, float(num_terms), omega), SLOPE(x, num_terms, omega), atol=1e-6 * peak
    )


def test_the_energy_kept_is_the_sum_of_squared_coefficients() -> None:
    counts = np.arange(1, 200)
    exact = 8 / np.pi**2 * np.cumsum(1.0 / (2.0 * counts - 1) ** 2)
    np.testing.assert_allclose(energy_kept(counts), exact, atol=1e-6)
    np.testing.assert_allclose(mean_squared_error(counts), 1 - exact, rtol=1e-5)


@pytest.mark.parametrize("num_terms", [1, 2, 10, 19])
def test_the_mean_squared_error_is_the_integral_of_theorem_1(num_terms: int) -> None:
    # Gauss-Legendre on each half period, where the integrand is smooth.
    nodes, weights = np.polynomial.legendre.leggauss(200)
    integral = 0.0
    for start, value in ((0.0, 1.0), (np.pi, -1.0)):
        theta = start + np.pi / 2 * (nodes + 1)
        integral += np.sum(np.pi / 2 * weights * (value - wave_series(theta, num_terms)) ** 2)
    np.testing.assert_allclose(mean_squared_error(num_terms), integral / (2 * np.pi), rtol=1e-5)


def test_more_terms_keep_more_energy_and_what_is_not_kept_is_the_error() -> None:
    counts = np.arange(1, 101)
    error = np.asarray(mean_squared_error(counts), np.float64)
    assert np.all(np.diff(error) < 0)
    assert np.all((error > 0) & (error < 1))
    np.testing.assert_allclose(error + np.asarray(energy_kept(counts)), 1.0, atol=1e-7)
    # Theorem 1: it goes to 0, like 2 / (pi^2 N).
    np.testing.assert_allclose(mean_squared_error(10_000) * 10_000, 2 / np.pi**2, rtol=1e-3)


@pytest.mark.parametrize("num_terms", [0, -3, 0.4, float("nan")])
def test_fewer_than_one_term_are_refused_with_the_value_and_the_remedy(num_terms: float) -> None:
    for function in (lambda n: check_series(n, 1.0), lambda n: square_wave(1.0, n, 1.0)):
        with pytest.raises(ValueError, match=rf"num_terms is {num_terms}.*use a whole number >= 1"):
            function(num_terms)


@pytest.mark.parametrize("omega", [0.0, -0.5, float("nan"), float("inf")])
def test_a_frequency_that_is_not_positive_is_refused_with_the_value_and_the_remedy(
    omega: float,
) -> None:
    for function in (lambda w: check_series(1, w), lambda w: square_wave_slope(1.0, 1, w)):
        with pytest.raises(ValueError, match=rf"omega is {omega}.*use e\.g\. 0\.1"):
            function(omega)

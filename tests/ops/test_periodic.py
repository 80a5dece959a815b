"""The sine as a quantizer, and its quantization error against integrals and samples."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax.ops import DISTRIBUTIONS, Periodic, binarize, quantization_error, sine_moments

SPREADS = np.array([0.003, 0.05, 0.3, 0.96, 1.7, 3.1, 8.0, 40.0])
MOMENTS = jax.jit(sine_moments, static_argnums=2)
ERROR = jax.jit(quantization_error, static_argnums=2)
DENSITIES = {
    "laplace": lambda w: np.exp(-np.abs(w)) / 2,
    "normal": lambda w: np.exp(-(w**2) / 2) / math.sqrt(2 * math.pi),
    "uniform": lambda w: np.where(np.abs(w) <= 1, 0.5, 0.0),
}
every_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS)


def samples(distribution: str, size: int) -> np.ndarray:
    generator = np.random.default_rng(3)
    draw = {"laplace": generator.laplace, "normal": generator.normal}
    return draw[distribution](size=size) if distribution in draw else generator.uniform(-1, 1, size)


def test_the_sine_is_accurate_for_the_weights_of_a_network() -> None:
    w = np.linspace(-15, 15, 20_011).astype(np.float32)
    rule = Periodic(frequency=20.0, stage="real")
    value, slope = jax.jit(
        lambda w: (binarize(w, rule), jax.grad(lambda w: binarize(w, rule).sum())(w))
    )(w)
    angle = 20.0 * w.astype(np.float64)
    bound = 2e-7 + 1.2e-7 * np.abs(angle)
    assert np.all(np.abs(value - np.sin(angle)) <= bound)
    # The cosine is a sine a quarter turn on, and that sum is rounded too.
    assert np.all(np.abs(slope / 20.0 - np.cos(angle)) <= bound + 1.2e-7 * np.abs(angle))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("stage", ["real", "binary"])
def test_a_weight_half_a_period_on_has_the_opposite_value(stage: str, dtype: jnp.dtype) -> None:
    # With f = pi / 4 half a period is 4, and these weights are whole quarters in every type.
    w = jnp.arange(-15, 15, 2).astype(dtype) / 4
    rule = Periodic(math.pi / 4, stage)
    value, there = jax.jit(lambda w: (binarize(w, rule), binarize(w + 4, rule)))(w)
    assert value.dtype == dtype
    np.testing.assert_allclose(there.astype(float), -value.astype(float), rtol=0, atol=1e-6)


def test_a_weight_at_zero_is_minus_one_and_a_lost_one_stays_lost() -> None:
    w = jnp.array([0.0, -0.0, 1e-6, jnp.nan, jnp.inf])
    np.testing.assert_array_equal(binarize(w, Periodic()), [-1, -1, 1, np.nan, np.nan])


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"frequency": 0.0}, r"frequency is 0\.0.*20\.0"),
        ({"frequency": math.inf}, r"frequency is inf.*20\.0"),
        ({"stage": "first"}, "stage is 'first': use one of real, binary"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(knobs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Periodic(**knobs)


@every_distribution
def test_the_moments_are_those_of_the_density(distribution: str) -> None:
    # The midpoint rule; the edge of the uniform density lies between two cells.
    cells = 400_000
    w = (np.arange(cells) + 0.5) * 40.0 / cells
    mass = 2 * DENSITIES[distribution](w) * 40.0 / cells
    for spread, *ours in zip(SPREADS, *MOMENTS(SPREADS, 1.0, distribution), strict=True):
        z = np.abs(np.sin(spread * w))
        np.testing.assert_allclose(ours, [mass @ z**2, mass @ z], rtol=0, atol=2e-6)


@every_distribution
def test_the_error_is_the_mean_over_samples(distribution: str) -> None:
    z = np.sin(SPREADS[:, None] * samples(distribution, 100_000))
    gamma = np.mean(np.abs(z), axis=1)
    for ours, scale in (
        (ERROR(SPREADS, 1.0, distribution), gamma),
        (ERROR(SPREADS, 1.0, distribution, gamma), gamma),
        (ERROR(SPREADS, 1.0, distribution, np.ones(8)), np.ones(8)),
    ):
        expected = np.mean((z - scale[:, None] * np.sign(z)) ** 2, axis=1)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=4e-3)


def test_laplace_weights_have_a_closed_form() -> None:
    mean_square, mean_magnitude = MOMENTS(SPREADS, 1.0, "laplace")
    np.testing.assert_allclose(mean_square, 2 * SPREADS**2 / (1 + 4 * SPREADS**2), atol=1e-7)
    expected = SPREADS / np.tanh(math.pi / (2 * SPREADS)) / (1 + SPREADS**2)
    np.testing.assert_allclose(mean_magnitude, expected, rtol=0, atol=1e-6)


def test_uniform_weights_have_a_closed_form() -> None:
    # Whole arches of |sin|, each of area 2, and the rest of one.
    arches = np.floor(SPREADS / math.pi)
    area = 2 * arches + 1 - np.cos(SPREADS - arches * math.pi)
    ours = MOMENTS(SPREADS, 1.0, "uniform")[1]
    np.testing.assert_allclose(ours, area / SPREADS, rtol=0, atol=1e-6)


@every_distribution
def test_frequency_and_scale_enter_as_their_product_alone(distribution: str) -> None:
    of_scale = MOMENTS(np.full(8, 20.0), SPREADS / 20.0, distribution)
    of_frequency = MOMENTS(SPREADS, np.ones(8), distribution)
    np.testing.assert_allclose(of_scale, of_frequency, rtol=0, atol=1e-6)


@every_distribution
def test_the_best_scale_is_the_mean_magnitude(distribution: str) -> None:
    best = ERROR(SPREADS, 1.0, distribution)
    magnitude = np.asarray(MOMENTS(SPREADS, 1.0, distribution)[1], np.float64)
    for shift in (-0.05, 0.0, 0.05):
        worse = np.asarray(ERROR(SPREADS, 1.0, distribution, magnitude + shift))
        np.testing.assert_allclose(worse - best, shift**2, rtol=0, atol=1e-6)


@every_distribution
def test_a_high_frequency_has_the_same_error_for_every_distribution(distribution: str) -> None:
    high = np.geomspace(2e3, 5e3, 8)
    for error, limit in (
        (ERROR(high, 1.0, distribution), 0.5 - 4 / math.pi**2),
        (ERROR(high, 1.0, distribution, np.ones(8)), 1.5 - 4 / math.pi),
    ):
        np.testing.assert_allclose(error, limit, rtol=0, atol=5e-4)


def test_laplace_weights_do_worst_where_frequency_times_scale_is_0_96() -> None:
    near = np.array([0.1, 0.5, 0.85, 0.96, 1.1, 2.0, 5.0, 20.0])
    error = np.asarray(ERROR(near, 1.0, "laplace"))
    assert error.argmax() == 3
    np.testing.assert_allclose(error[3], 0.103, atol=5e-4)


def test_an_unknown_distribution_is_refused() -> None:
    with pytest.raises(ValueError, match="distribution is 'cauchy': use one of laplace, normal"):
        sine_moments(20.0, 0.1, "cauchy")

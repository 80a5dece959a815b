"""The noise adaptation module against hand-written float64 gradients."""

import chex
import jax
import numpy as np
import pytest

from fda_jax.ops import (
    NOISE_SCHEDULES,
    SHORTCUTS,
    hidden_width,
    noise,
    noise_scale,
    shortcut,
)

SLOPE = 0.3
ETA = {
    "none": (lambda t: 0 * t, lambda t: 0 * t),
    "linear": (lambda t: SLOPE * t, lambda t: SLOPE + 0 * t),
    "sine": (lambda t: SLOPE * np.sin(t), lambda t: SLOPE * np.cos(t)),
}


@pytest.fixture(scope="module")
def arrays() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    return tuple(
        rng.normal(size=shape).astype(np.float32) for shape in [(7, 5), (5, 3), (3, 5), (7, 5)]
    )


def test_every_shortcut_is_tested() -> None:
    assert ETA.keys() == set(SHORTCUTS)


@pytest.mark.parametrize("kind", SHORTCUTS)
def test_value_and_gradients_are_equations_13_and_15_to_17(kind: str, arrays) -> None:
    value, gradients = jax.jit(
        lambda t, w1, w2, g: (
            noise(t, w1, w2, kind, SLOPE),
            jax.vjp(lambda *args: noise(*args, kind, SLOPE), t, w1, w2)[1](g),
        )
    )(*arrays)
    t, w1, w2, g = (array.astype(np.float64) for array in arrays)
    eta, eta_slope = ETA[kind]
    alive = t @ w1 > 0
    assert 0.2 < alive.mean() < 0.8
    hidden = (g @ w2.T) * alive
    expected = (hidden @ w1.T + g * eta_slope(t), t.T @ hidden, np.maximum(t @ w1, 0).T @ g)
    np.testing.assert_allclose(value, np.maximum(t @ w1, 0) @ w2 + eta(t), atol=1e-5)
    chex.assert_trees_all_close(gradients, expected, atol=2e-5)


@pytest.mark.parametrize(("rows", "width", "hidden"), [(2053, 16, 4), (21, 48, 16), (1, 64, 1)])
def test_the_widths_of_the_networks_give_the_same_sums(rows, width, hidden) -> None:
    rng = np.random.default_rng(1)
    shapes = [(rows, width), (width, hidden), (hidden, width), (rows, width)]
    t, w1, w2, g = (rng.normal(size=shape).astype(np.float32) for shape in shapes)

    @jax.jit
    def value_and_gradients(t, w1, w2, g):
        value, pull = jax.vjp(lambda *args: noise(*args, "none", SLOPE), t, w1, w2)
        return value, pull(g)

    value, gradients = value_and_gradients(t, w1, w2, g)
    t, w1, w2, g = (array.astype(np.float64) for array in (t, w1, w2, g))
    inner = t @ w1
    passed = (g @ w2.T) * (inner > 0)
    expected = (
        np.maximum(inner, 0) @ w2,
        passed @ w1.T,
        t.T @ passed,
        np.maximum(inner, 0).T @ g,
    )
    for mine, right in zip((value, *gradients), expected, strict=True):
        np.testing.assert_allclose(mine, right, atol=1e-5 * np.abs(right).max(), rtol=0)


def test_a_nan_among_wide_rows_comes_through() -> None:
    t = np.zeros((9, 16), np.float32)
    t[4, 3] = np.nan
    ones = np.ones((16, 2), np.float32)
    value = jax.vjp(lambda t: noise(t, ones, ones.T, "none", SLOPE), t)[0]
    np.testing.assert_array_equal(np.isnan(value).all(axis=1), np.arange(9) == 4)


def test_leading_axes_are_only_a_batch(arrays) -> None:
    t, w1, w2, _ = arrays
    module = jax.jit(lambda t: noise(t, w1, w2, "sine", SLOPE))
    np.testing.assert_allclose(module(np.stack([t, -t]))[1], module(-t), atol=1e-6)


@pytest.mark.parametrize("kind", SHORTCUTS)
def test_a_module_whose_weights_are_zero_is_its_shortcut(kind: str, arrays) -> None:
    t, w1, w2, _ = arrays
    np.testing.assert_allclose(noise(t, 0 * w1, w2, kind, SLOPE), ETA[kind][0](t), atol=1e-6)
    np.testing.assert_array_equal(noise(t, w1, 0 * w2, kind, SLOPE), shortcut(t, kind, SLOPE))


def test_an_unknown_shortcut_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="shortcut is 'cosine': use one of none, linear, sine"):
        shortcut(np.ones(2), "cosine", 0.1)


@pytest.mark.parametrize(
    ("features", "hidden"), [(1, 1), (3, 1), (16, 4), (63, 15), (64, 1), (144, 2), (576, 9)]
)
def test_the_hidden_layer_is_k_times_narrower_and_4_times_below_k(
    features: int, hidden: int
) -> None:
    assert hidden_width(features, 64) == hidden


def test_alpha_falls_from_its_start_to_exactly_zero() -> None:
    progress = np.linspace(0, 1, 101)
    alpha = np.asarray(noise_scale(progress, 0.1))
    np.testing.assert_allclose(alpha, 0.05 * (1 + np.cos(np.pi * progress)), atol=1e-8)
    assert np.all(np.diff(alpha) < 0)
    np.testing.assert_allclose(noise_scale(0.0, 0.7), 0.7, rtol=1e-6)
    np.testing.assert_allclose(noise_scale(0.5, 0.7), 0.35, rtol=1e-6)
    assert noise_scale(1.0, 0.7) == 0.0
    assert jax.jit(noise_scale)(1.0, 0.7) == 0.0


@pytest.mark.parametrize(
    ("schedule", "middle"), [("cosine", 0.7), ("linear", 0.7), ("constant", 1.4)]
)
def test_every_schedule_of_alpha_ends_at_exactly_zero(schedule: str, middle: float) -> None:
    assert schedule in NOISE_SCHEDULES
    alphas = [float(noise_scale(progress, 1.4, schedule)) for progress in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(alphas, [1.4, middle, 0.0], rtol=1e-6)
    quarter = {"cosine": 0.7 * (1 + np.sqrt(0.5)), "linear": 1.05, "constant": 1.4}[schedule]
    np.testing.assert_allclose(noise_scale(0.25, 1.4, schedule), quarter, rtol=1e-6)


@pytest.mark.parametrize("schedule", NOISE_SCHEDULES)
def test_alpha_can_be_gone_before_the_training_ends(schedule: str) -> None:
    progress = np.linspace(0, 1, 101)
    early = np.asarray(noise_scale(progress, 1.4, schedule, 0.4))
    assert np.all(early[40:] == 0.0)
    assert np.all(early[:40] > 0.0)
    whole = np.asarray(noise_scale(progress[:40] / 0.4, 1.4, schedule))
    np.testing.assert_allclose(early[:40], whole, rtol=1e-5)


def test_an_unknown_schedule_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="schedule is 'step': use one of cosine, linear, constant"):
        noise_scale(0.0, 0.1, "step")

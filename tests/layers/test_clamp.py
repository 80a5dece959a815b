"""Weights without outliers, against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax.layers import make_method
from fda_jax.layers.clamp import RectifiedClampWeights
from tests.finite import gradient

W = np.random.default_rng(0).laplace(size=(2, 2, 4, 5)).astype(np.float32)
G = np.random.default_rng(1).normal(size=W.shape).astype(np.float32)
MODULE, PROGRESS = RectifiedClampWeights(), 0.4
TAU = 0.85 + 0.14 * (np.exp(PROGRESS) - 1) / (np.e - 1)


def standardized(w: np.ndarray) -> np.ndarray:
    filters = np.asarray(w, np.float64).reshape(-1, 5)
    scaled = 2 * np.sqrt(2) * (filters - filters.mean(0)) / filters.std(0, ddof=1)
    return scaled.reshape(W.shape)


def test_the_quantile_runs_exponentially_between_its_ends() -> None:
    tau = jax.vmap(MODULE.tau)(jnp.array([0.0, PROGRESS, 1.0]))
    np.testing.assert_allclose(tau, [0.85, TAU, 0.99], rtol=1e-6)


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_the_bound_is_that_quantile_of_laplace_weights(progress: float) -> None:
    w = np.random.default_rng(2).laplace(scale=0.3, size=200_000).astype(np.float32)
    below = np.mean(w <= MODULE.bound(jnp.asarray(w), progress))
    np.testing.assert_allclose(below, MODULE.tau(progress), rtol=0, atol=2e-3)


def test_value_and_gradient_are_those_of_the_clamped_weights() -> None:
    def apply(w):
        return MODULE.apply({}, w, train=True, progress=PROGRESS)

    value, pullback = jax.jit(lambda w: (apply(w), jax.vjp(apply, w)[1](G)[0]))(W)
    w1 = standardized(W)
    bound = -np.abs(w1).mean() * np.log(2 - 2 * TAU)
    assert 0.02 < np.mean(np.abs(w1) > bound) < 0.3
    np.testing.assert_array_equal(value, np.where(w1 > 0, 1, -1))
    # The bound is a constant.
    expected = gradient(lambda w: np.sum(G * np.clip(standardized(w), -bound, bound)), W)
    np.testing.assert_allclose(pullback, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.9), (0.9, 0.8), (0.9, 1.0)])
def test_quantiles_that_cannot_be_are_refused(start: float, end: float) -> None:
    with pytest.raises(
        ValueError, match=rf"tau runs from {start} to {end}.*e\.g\. 0\.85 and 0\.99"
    ):
        make_method("recu", tau_start=start, tau_end=end)

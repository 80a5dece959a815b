"""Two values that need not be each other's negatives, against float64 numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax import ops
from fda_jax.layers.adaptive import AdaptiveActivations, AdaptiveWeights
from tests.finite import gradient

W = 0.2 + 0.1 * np.random.default_rng(0).normal(size=(2, 2, 3, 4)).astype(np.float32)
A = np.random.default_rng(1).normal(size=(2, 3, 3, 2)).astype(np.float32)
PROGRESS = 0.8
T = 1e-3 * 1e4**PROGRESS


def moments(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    filters = np.asarray(w, np.float64).reshape(-1, 4)
    return filters.std(0), filters.mean(0)


def signs(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, 1.0, -1.0)


@jax.jit
def weights(w):
    return AdaptiveWeights().apply({}, w, train=True, progress=PROGRESS)


def test_a_filters_values_are_its_mean_and_a_standard_deviation_to_either_side() -> None:
    alpha, beta = moments(W)
    out = np.asarray(weights(W))
    np.testing.assert_allclose(out, alpha * signs(W - beta) + beta, rtol=1e-5)
    for values, low, high in zip(out.reshape(-1, 4).T, beta - alpha, beta + alpha, strict=True):
        np.testing.assert_allclose(np.unique(values), [low, high], rtol=1e-5)


def test_the_gradient_of_weights_flows_through_mean_and_spread_too() -> None:
    g = np.random.default_rng(2).normal(size=W.shape).astype(np.float32)
    ours = jax.jit(jax.grad(lambda w: jnp.sum(g * weights(w))))(W)
    fixed, middle = moments(W)
    binary = signs(W - middle)

    def smooth(w):
        alpha, beta = moments(w)
        twin = max(1 / T, 1) * np.tanh(T * (w - beta) / alpha)
        # A product of two factors that vary: each in turn, the other as the forward pass has it.
        return np.sum(g * (fixed * twin + alpha * binary + beta))

    expected = gradient(smooth, W)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_a_filter_without_spread_has_one_value_and_a_finite_gradient() -> None:
    w = W.copy()
    w[..., 1] = 0.25
    value, of_w = jax.jit(lambda w: (weights(w), jax.vjp(weights, w)[1](w)[0]))(w)
    np.testing.assert_array_equal(value[..., 1], 0.25)
    assert np.all(np.isfinite(of_w))


def test_not_a_number_stays_in_its_filter() -> None:
    w = W.copy()
    w[1, 0, 2, 3] = np.nan
    lost = np.isnan(weights(w)).reshape(-1, 4)
    np.testing.assert_array_equal(lost.any(0), [False, False, False, True])


def test_activations_have_two_trained_values_and_both_parameters_learn() -> None:
    alpha, beta = np.float32(0.7), np.float32(0.3)
    g = np.random.default_rng(3).normal(size=A.shape).astype(np.float32)

    @jax.jit
    def apply(a, alpha, beta):
        params = {"params": {"alpha": alpha, "beta": beta}}
        return AdaptiveActivations().apply(params, a, train=True, progress=PROGRESS)

    value, pullback = jax.vjp(apply, A, alpha, beta)
    ours = pullback(g)
    binary = signs(A - 0.3)
    np.testing.assert_allclose(value, 0.7 * binary + 0.3, rtol=1e-6)

    def smooth(a, alpha, beta):
        inside = np.clip((a - beta) / alpha, -1, 1)
        twin = inside * (2 - np.abs(inside))
        return np.sum(g * (0.7 * twin + alpha * binary + beta))

    a = A.astype(np.float64)
    for got, expected in zip(
        ours,
        (
            gradient(lambda a: smooth(a, 0.7, 0.3), a),
            gradient(lambda alpha: smooth(a, alpha, 0.3), 0.7),
            gradient(lambda beta: smooth(a, 0.7, beta), 0.3),
        ),
        strict=True,
    ):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_before_training_activations_are_signs_of_their_own_type(dtype) -> None:
    a = jnp.asarray(A, dtype)
    start = functools.partial(AdaptiveActivations().init_with_output, train=False, progress=1.0)
    value, variables = jax.jit(start)(jax.random.key(0), a)
    assert value.dtype == dtype
    np.testing.assert_array_equal(value.astype(jnp.float32), ops.sign(a).astype(jnp.float32))
    assert jax.tree.map(float, variables["params"]) == {"alpha": 1.0, "beta": 0.0}

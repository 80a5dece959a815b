"""DSQ with a trained steepness and range, against float64 numpy."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax import ops
from fda_jax.layers import make_method
from fda_jax.layers.soft import LearnedDSQ
from tests.finite import gradient

X = np.random.default_rng(0).normal(size=(2, 3, 3, 4)).astype(np.float32)
G = np.random.default_rng(1).normal(size=X.shape).astype(np.float32)
PARAMS = {"alpha_logit": -0.8, "middle": 0.2, "log_half_width": 0.1}


def phi(x, alpha_logit, middle, log_half_width):
    alpha, half = 1 / (1 + np.exp(-alpha_logit)), np.exp(log_half_width)
    low, high = middle - half, middle + half
    k = np.log(2 / alpha - 1) / (high - low)
    return np.tanh(k * (np.clip(x, low, high) - (low + high) / 2)) / (1 - alpha)


@jax.jit
def value_and_gradients(params, x):
    def apply(params, x):
        return LearnedDSQ(scale="filter").apply({"params": params}, x, train=True, progress=0.3)

    value, pullback = jax.vjp(apply, params, x)
    return value, pullback(jnp.asarray(G))


def test_the_signs_have_the_derivative_of_the_soft_function_by_everything_it_learns() -> None:
    params = jax.tree.map(jnp.float32, PARAMS)
    value, (of_params, of_x) = value_and_gradients(params, X)
    scale = np.abs(X.astype(np.float64)).reshape(-1, 4).mean(0)
    np.testing.assert_allclose(value, scale * np.where(X > 0.2, 1, -1), rtol=1e-5)
    expected = gradient(lambda x: np.sum(G * scale * phi(x, **PARAMS)), X)
    np.testing.assert_allclose(of_x, expected, rtol=0, atol=1e-4)
    beyond = np.abs(X - 0.2) > np.exp(0.1)
    assert np.any(beyond)
    np.testing.assert_array_equal(np.asarray(of_x)[beyond], 0.0)
    for name, start in PARAMS.items():
        expected = gradient(
            lambda p, name=name: np.sum(G * scale * phi(X.astype(float), **{**PARAMS, name: p})),
            start,
        )
        divisor = 1 if name == "alpha_logit" else math.sqrt(X.size)
        np.testing.assert_allclose(of_params[name], expected / divisor, rtol=1e-3, atol=1e-4)


def test_the_gradient_of_the_range_does_not_grow_with_the_size_of_a_layer_or_a_batch() -> None:
    @functools.partial(jax.jit, static_argnums=1)
    def of_params(x, batched):
        module = LearnedDSQ(batched=batched)

        def total(params):
            return jnp.sum(module.apply({"params": params}, x, train=True, progress=0.3))

        return jax.grad(total)(jax.tree.map(jnp.float32, PARAMS))

    # Four times the weights, each as before: the sum is four times, the gradient of the range twice
    # as large.
    weights, more = of_params(X, False), of_params(np.tile(X, (4, 1, 1, 1)), False)
    growth = {"alpha_logit": 4, "middle": 2, "log_half_width": 2}
    chex.assert_trees_all_close(
        more, jax.tree.map(lambda g, factor: factor * g, weights, growth), rtol=1e-5
    )
    # Of activations those are more examples: a sum over them, which the loss's mean divides.
    one, four = of_params(X, True), of_params(np.tile(X, (4, 1, 1, 1)), True)
    chex.assert_trees_all_close(four, jax.tree.map(lambda g: 4 * g, one), rtol=1e-5)


@functools.partial(jax.jit, static_argnums=(0, 1))
def slopes(module, rule, x):
    """Of the module as it starts, and of a rule."""
    params = module.init(jax.random.key(0), x, train=True, progress=0.0)
    ours = jax.grad(lambda x: jnp.sum(module.apply(params, x, train=True, progress=0.0)))(x)
    return ours, rule.slope(x, jnp.float32(0))


def test_the_slope_at_the_ends_of_the_range_is_that_inside() -> None:
    x = np.array([-1, 1, np.nextafter(np.float32(1), np.float32(2))], np.float32)
    ours, wanted = slopes(LearnedDSQ(), ops.DSQ(alpha=0.2, window=1.0), x)
    np.testing.assert_allclose(ours, wanted, rtol=1e-5)
    assert min(ours[0], ours[1]) > 0 == ours[2]


def test_the_soft_function_is_a_sign_at_the_ends_of_its_range_whatever_it_learned() -> None:
    for alpha_logit in (-3.0, 0.0, 3.0):
        ends = phi(np.array([-5.0, 5.0]), alpha_logit, 0.3, -0.5)
        np.testing.assert_allclose(ends, [-1, 1], rtol=1e-12)


def test_it_starts_as_the_rule_with_fixed_constants() -> None:
    ours, theirs = slopes(LearnedDSQ(0.3, 0.8), ops.DSQ(0.3, 0.8), X)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_activations_are_signs_of_their_own_type_and_not_a_number_stays(dtype) -> None:
    x = jnp.asarray(X, dtype).at[0, 0, 0, 0].set(jnp.nan)
    params = {"params": jax.tree.map(jnp.float32, PARAMS)}
    infer = functools.partial(LearnedDSQ().apply, train=False, progress=1.0)
    value = jax.jit(infer)(params, x)
    assert value.dtype == dtype
    np.testing.assert_array_equal(jnp.isnan(value), jnp.isnan(x))
    assert set(np.unique(value[1].astype(jnp.float32))) == {-1.0, 1.0}


def test_the_row_takes_the_same_start_and_no_noise_module() -> None:
    method = make_method("dsq", learnable=True, alpha=0.3, window=0.8, scale="filter")
    assert method.weight == LearnedDSQ(0.3, 0.8, "filter")
    assert method.activation == LearnedDSQ(0.3, 0.8, batched=True)
    with pytest.raises(ValueError, match=r"noise is 'forward'.*learnable.*use noise='none'"):
        make_method("dsq", learnable=True, noise="forward")
    with pytest.raises(ValueError, match="alpha is 1"):
        make_method("dsq", learnable=True, alpha=1.0)

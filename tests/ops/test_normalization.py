"""Batch normalisation: flax's own layer and automatic differentiation as the oracle."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax import ops
from fda_jax.models.common import BatchNorm


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def learn(layer, variables, x, g):
    """Result, new statistics and gradients of a layer in training."""

    def loss(params, x):
        y, new = layer.apply({**variables, "params": params}, x, mutable=["batch_stats"])
        return jnp.sum(y.astype(jnp.float32) * g), (y, new)

    (_, out), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(variables["params"], x)
    return out, grads


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((6, 8, 8, 16), jnp.float32),
        ((3, 5, 7, 32), jnp.float32),
        ((2, 3, 3, 80), jnp.float32),
        ((300, 64), jnp.float32),
        ((4, 5, 5, 7), jnp.float32),
        ((1, 1, 1, 16), jnp.float32),
        ((6, 8, 8, 16), jnp.bfloat16),
    ],
)
def test_training_equals_the_layer_of_flax(shape, dtype):
    x, g = (random(*shape) * 2 + 1).astype(dtype), random(*shape, seed=1)
    ours = BatchNorm(train=True, dtype=dtype)
    theirs = nn.BatchNorm(False, momentum=0.9, epsilon=1e-5, dtype=dtype)
    variables = {
        "params": {"scale": random(shape[-1], seed=2), "bias": random(shape[-1], seed=3)},
        "batch_stats": {"mean": random(shape[-1], seed=4), "var": random(shape[-1], seed=5) ** 2},
    }
    size = 0.05 if dtype == jnp.bfloat16 else 2e-4
    mine = learn(ours, variables, x, g)
    reference = learn(theirs, variables, x, g)
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(reference))
    chex.assert_trees_all_close(mine, reference, rtol=size, atol=1e-5 * largest)


def test_the_derivative_is_that_of_finite_differences():
    x, scale, bias = random(40, 16), random(16, seed=1), random(16, seed=2)

    @jax.jit
    def loss(x, scale, bias):
        return jnp.sum(jnp.sin(ops.batch_norm(x, scale, bias, 1e-5, None)[0]))

    jax.test_util.check_grads(loss, (x, scale, bias), order=1, modes=["rev"], rtol=2e-2, atol=2e-2)


def test_devices_with_parts_of_a_batch_equal_one_device_with_all_of_it():
    devices = jax.local_device_count()
    x, g = random(4 * devices, 3, 3, 16), random(4 * devices, 3, 3, 16, seed=1)
    scale, bias = random(16, seed=2), random(16, seed=3)

    def gradient(axis, scale, x, g):
        def loss(scale, x):
            return jnp.sum(g * ops.batch_norm(x, scale, bias, 1e-5, axis)[0])

        dscale, dx = jax.grad(loss, (0, 1))(scale, x)
        return (dscale if axis is None else jax.lax.psum(dscale, axis)), dx

    whole = jax.jit(functools.partial(gradient, None))(scale, x, g)
    split = [array.reshape(devices, 4, 3, 3, 16) for array in (x, g)]
    dscale, dx = jax.pmap(lambda x, g: gradient("devices", scale, x, g), axis_name="devices")(
        *split
    )
    chex.assert_trees_all_close((dscale[0], dx.reshape(x.shape)), whole, rtol=1e-3, atol=1e-4)


def test_evaluation_uses_the_running_statistics_of_all_training_steps():
    layer, x = BatchNorm(train=True), random(50, 16) * 3 + 2
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    np.testing.assert_array_equal(variables["batch_stats"]["var"], np.ones(16))
    train = jax.jit(functools.partial(layer.apply, mutable=["batch_stats"]))
    for _ in range(60):
        _, new = train(variables, x)
        variables = {**variables, **new}
    y = np.asarray(jax.jit(BatchNorm(train=False).apply)(variables, x))
    np.testing.assert_allclose(np.mean(y, 0), np.zeros(16), atol=0.02)
    np.testing.assert_allclose(np.std(y, 0), np.ones(16), rtol=0.02)


def test_a_nan_is_not_swallowed():
    x = random(8, 16)
    x[0, 3] = np.nan
    normalise = jax.jit(lambda x: ops.batch_norm(x, jnp.ones(16), jnp.zeros(16), 1e-5, None))
    y, mean, variance = normalise(x)
    assert np.isnan(y[:, 3]).all()
    assert np.isnan(mean[3])
    assert np.isnan(variance[3])

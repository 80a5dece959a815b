"""Activations with a trained threshold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax import ops
from fda_jax.layers.methods import make_method
from fda_jax.layers.quantizers import ActivationQuantizer, Quantizer
from fda_jax.layers.shift import ShiftedSign

A = np.random.default_rng(0).normal(size=(2, 3, 3, 4)).astype(np.float32)
SHIFT = np.array([0.0, 0.4, -0.4, 5.0], np.float32)


def test_the_sign_is_taken_of_the_shifted_activation_and_so_is_the_slope() -> None:
    g = np.random.default_rng(1).normal(size=A.shape).astype(np.float32)

    def apply(a, shift):
        return ShiftedSign().apply({"params": {"shift": shift}}, a, train=True, progress=0.2)

    @jax.jit
    def value_and_gradients(a, shift, g):
        value, pullback = jax.vjp(apply, a, shift)
        return value, *pullback(g)

    value, of_a, of_shift = value_and_gradients(A, SHIFT, g)
    moved = A + SHIFT
    np.testing.assert_array_equal(value, np.where(moved > 0, 1.0, -1.0))
    expected = g * np.maximum(2 - 2 * np.abs(moved), 0)
    np.testing.assert_allclose(of_a, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(of_shift, expected.sum((0, 1, 2)), rtol=0, atol=1e-4)


def test_a_noise_module_sees_the_shifted_activation_and_is_gone_at_inference() -> None:
    quantizer = make_method("fda").activation
    module, plain = ShiftedSign(quantizer), ActivationQuantizer(quantizer)
    init = functools.partial(module.init, train=True, progress=0.3)
    noise = jax.jit(init)(jax.random.key(0), A)["params"]["sign"]
    moved = {"params": {"shift": SHIFT, "sign": noise}}

    @functools.partial(jax.jit, static_argnums=0)
    def both(train):
        given = {"train": train, "progress": 0.3}
        value, pullback = jax.vjp(lambda a: module.apply(moved, a, **given), A)
        wanted, its = jax.vjp(lambda a: plain.apply({"params": noise}, a, **given), A + SHIFT)
        return value, wanted, pullback(A)[0], its(A)[0]

    for train in (True, False):
        value, wanted, of_a, of_moved = both(train)
        np.testing.assert_array_equal(value, wanted)
        np.testing.assert_allclose(of_a, of_moved, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(value, ops.sign(A + SHIFT))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_before_training_it_is_the_estimator_alone(dtype) -> None:
    a = jnp.asarray(A, dtype)
    module = ShiftedSign(Quantizer(ops.ClippedSTE()))
    value, variables = module.init_with_output(jax.random.key(0), a, train=False, progress=1.0)
    assert value.dtype == dtype
    np.testing.assert_array_equal(value.astype(jnp.float32), ops.sign(a).astype(jnp.float32))
    np.testing.assert_array_equal(variables["params"]["shift"], np.zeros(4, np.float32))

"""Operands of several bits in a layer."""

import jax
import numpy as np
import pytest

from fda_jax.layers import BinaryConv, make_method


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("bits", [2, 3])
def test_dorefas_operands_have_2_to_the_bits_levels(bits: int) -> None:
    layer = BinaryConv(4, method=make_method("dorefa", weight_bits=bits, activation_bits=bits))
    a, w = 0.5 + normal(2, 5, 5, 8), normal(3, 3, 8, 4, seed=1)
    out, seen = layer.apply({"params": {"latent_kernel": w}}, a, mutable=["effective_weights"])
    last = 2**bits - 1
    share = np.tanh(w) / (2 * np.abs(np.tanh(w)).max()) + 0.5
    weights = 2 * np.round(share * last) / last - 1
    (ours,) = seen["effective_weights"]["kernel"]
    np.testing.assert_allclose(ours, weights, rtol=0, atol=1e-6)
    assert len(np.unique(np.round(weights, 4))) == 2**bits
    levels = np.round(np.clip(a, 0, 1) * last) / last
    # The middle pixel sees no border.
    middle = np.einsum("bhwi,hwio->bo", levels[:, 1:4, 1:4], weights)
    np.testing.assert_allclose(out[:, 2, 2], middle, rtol=0, atol=1e-4)


def test_one_bit_activations_of_the_paper_are_0_and_1() -> None:
    layer = BinaryConv(1, (1, 1), method=make_method("dorefa", activation_levels="unsigned"))
    a = np.array([-3.0, 0.4, 0.6, 1.7], np.float32).reshape(1, 1, 4, 1)
    out = jax.jit(layer.apply)({"params": {"latent_kernel": np.ones((1, 1, 1, 1), np.float32)}}, a)
    np.testing.assert_array_equal(np.ravel(out), [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"weight_bits": 0}, "bits is 0: use a whole number from 1 to 16"),
        ({"activation_bits": 17}, "bits is 17"),
        ({"activation_levels": "both"}, "activation_levels is 'both': use one of sign, unsigned"),
    ],
)
def test_bits_that_cannot_be_are_refused(knobs, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_method("dorefa", **knobs)

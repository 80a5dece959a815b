"""Weights that are signs of a learned function of their filter, against float64 numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax.layers import BinaryConv, make_method
from fda_jax.layers.mapping import MappedWeights, squared_loss, unbiased_loss
from tests.finite import gradient

W = (0.5 * np.random.default_rng(0).normal(size=(2, 2, 4, 3))).astype(np.float32)
W1 = np.random.default_rng(1).normal(size=(16, 4)).astype(np.float32) / 4
W2 = np.random.default_rng(2).normal(size=(4, 16)).astype(np.float32) / 4
G = np.random.default_rng(3).normal(size=W.shape).astype(np.float32)
MODULE = MappedWeights(flip_rate=0.2, supervision=0.3)
SCALE = np.abs(W.astype(np.float64)).reshape(-1, 3).mean(0)


def mapped(w, w1, w2):
    filters = np.asarray(w, np.float64).reshape(-1, 3).T
    return (filters + np.maximum(filters @ w1, 0) @ w2).T.reshape(W.shape)


def apply(w, w1, w2):
    variables = {"params": {"w1": w1, "w2": w2}}
    out, state = MODULE.apply(variables, w, train=True, progress=0.3, mutable=["penalties"])
    return out, state["penalties"]["value"]


@pytest.mark.parametrize("rates", [(0.0, 0.0), (0.1, 0.1), (0.3, 0.05)])
@pytest.mark.parametrize("loss", [squared_loss, lambda t, y: jnp.logaddexp(0.0, -t * y)])
def test_the_mean_over_flipped_labels_is_the_loss_of_the_true_one(rates, loss) -> None:
    t = np.linspace(-2, 2, 9, dtype=np.float32)
    observed = jax.jit(lambda t, y: unbiased_loss(t, y, *rates, loss))
    for true, flipped in ((1.0, rates[0]), (-1.0, rates[1])):
        y = np.full_like(t, true)
        mean = (1 - flipped) * observed(t, y) + flipped * observed(t, -y)
        np.testing.assert_allclose(mean, loss(t, y), rtol=0, atol=1e-5)


def test_weights_are_scaled_signs_of_the_mapping_and_all_of_it_learns() -> None:
    @jax.jit
    def both(*operands):
        value, pullback = jax.vjp(lambda *operands: apply(*operands)[0], *operands)
        return value, pullback(jnp.asarray(G))

    value, ours = both(W, W1, W2)
    t = mapped(W, W1, W2)
    np.testing.assert_allclose(value, SCALE * np.where(t > 0, 1, -1), rtol=1e-5)
    assert np.any((t > 0) != (W > 0))
    wide = tuple(operand.astype(np.float64) for operand in (W, W1, W2))
    for i in range(3):

        def smooth(x, i=i):
            operands = [x if j == i else operand for j, operand in enumerate(wide)]
            return np.sum(G * SCALE * np.clip(mapped(*operands), -1, 1))

        expected = gradient(smooth, wide[i])
        np.testing.assert_allclose(ours[i], expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_the_noisy_signs_teach_the_mapping_and_not_the_latent_weights() -> None:
    value, ours = jax.jit(
        jax.value_and_grad(lambda *operands: apply(*operands)[1], argnums=(0, 1, 2))
    )(W, W1, W2)

    def penalty(w1, w2):
        t, y = mapped(W, w1, w2) / SCALE, np.where(W > 0, 1.0, -1.0)
        losses = (0.8 * (t - y) ** 2 - 0.2 * (t + y) ** 2) / 4 / 0.6
        return 0.3 * np.mean(losses)

    np.testing.assert_allclose(value, penalty(W1, W2), rtol=1e-5)
    np.testing.assert_array_equal(ours[0], 0.0)
    for got, expected in (
        (ours[1], gradient(lambda w1: penalty(w1, W2), W1)),
        (ours[2], gradient(lambda w2: penalty(W1, w2), W2)),
    ):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_a_filter_of_zeros_learns_no_numbers_that_are_none() -> None:
    w = np.where(np.arange(3) == 1, 0, W)
    learned = jax.value_and_grad(lambda *x: apply(*x)[1], argnums=(0, 1, 2))
    value, gradients = jax.jit(learned)(w, W1, W2)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(g)) for g in gradients)


def test_the_mapping_starts_as_the_signs_of_the_stage_before() -> None:
    a, shape = np.ones((1, 3, 3, 16), np.float32), (3, 3, 16, 32)
    w = np.random.default_rng(4).normal(size=shape).astype(np.float32)
    layers = {
        stage: BinaryConv(32, method=make_method("lns", stage=stage))
        for stage in ("sign", "mapping")
    }
    init = {stage: jax.jit(layer.init)(jax.random.key(0), a) for stage, layer in layers.items()}
    start = init["mapping"]["params"]
    assert {key: leaf.shape for key, leaf in start["weight"].items()} == {
        "w1": (144, 2),
        "w2": (2, 144),
    }
    params = {**start, "latent_kernel": w}
    seen = {
        stage: jax.jit(functools.partial(layer.apply, mutable=["effective_weights"]))(
            {"params": params}, a
        )[1]
        for stage, layer in layers.items()
    }
    sign, mapping = (np.asarray(jax.tree.leaves(seen[stage])[0]) for stage in layers)
    assert np.mean(sign != mapping) < 5e-3
    assert "weight" not in init["sign"]["params"]


def test_only_the_stage_of_the_mapping_has_a_stage_before_it() -> None:
    assert make_method("lns", stage="sign").predecessor == ""
    assert "stage 'sign'" in make_method("lns").predecessor


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"stage": "first"}, "stage is 'first': use one of sign, mapping"),
        ({"flip_rate": 0.5}, r"flip_rate is 0\.5: use a number in \[0, 0\.5\)"),
        ({"supervision": -1.0}, r"supervision is -1\.0: use a number >= 0"),
        ({"reduction": 0}, "reduction is 0: use a whole number >= 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(knobs, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_method("lns", **knobs)

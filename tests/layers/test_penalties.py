"""What a method adds to the loss, against float64 numpy."""

import jax
import numpy as np
import pytest

from fda_jax.layers import BinaryConv, make_method
from fda_jax.layers.penalties import TowardsScale

W = np.random.default_rng(0).normal(size=(3, 3, 2, 4)).astype(np.float32)
SIZE = np.abs(W.astype(np.float64))
SCALE = SIZE.reshape(-1, 4).mean(0)
SIGNS = np.where(W > 0, 1.0, -1.0)


@pytest.mark.parametrize(
    ("form", "value", "gradient"),
    [
        ("l1", np.abs(SCALE - SIZE).sum(), SIGNS * np.sign(SIZE - SCALE)),
        ("l2", ((SCALE**2 - SIZE**2) ** 2).sum(), -4 * W * (SCALE**2 - SIZE**2)),
    ],
)
def test_the_regulariser_is_its_formula_with_the_scale_held_fixed(form, value, gradient) -> None:
    ours, of_w = jax.value_and_grad(TowardsScale(form, weight=0.25))(W, 0.5)
    np.testing.assert_allclose(ours, 0.25 * value, rtol=1e-5)
    np.testing.assert_allclose(of_w, 0.25 * gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("scale", "target"),
    [
        ("none", 1.0),
        ("layer", SIZE.mean()),
        ("filter", SCALE),
        ("power_of_two", 2.0 ** np.round(np.log2(SCALE))),
    ],
)
def test_the_regulariser_draws_towards_the_scale_that_the_signs_have(scale, target) -> None:
    weight = make_method("bnn_plus", scale=scale, regularizer_weight=1.0).weight
    value, of_w = jax.value_and_grad(weight.penalty)(W, 0.5)
    np.testing.assert_allclose(value, np.abs(target - SIZE).sum(), rtol=1e-5)
    np.testing.assert_array_equal(of_w, SIGNS * np.sign(SIZE - target))


@pytest.mark.parametrize("form", ["l1", "l2"])
def test_binary_weights_cost_nothing(form: str) -> None:
    assert TowardsScale(form, weight=1.0)(SCALE * SIGNS, 0.5) == pytest.approx(0, abs=1e-4)


def test_the_penalty_of_a_row_reaches_the_loss_in_training_alone() -> None:
    layer = BinaryConv(4, method=make_method("bnn_plus", regularizer="l2", regularizer_weight=0.5))
    a = np.ones((1, 3, 3, 2), np.float32)

    def sown(train: bool):
        params = {"params": {"latent_kernel": W}}
        sown = layer.apply(params, a, train=train, progress=0.5, mutable=["penalties"])[1]
        return sown.get("penalties", {})

    (penalty,) = jax.tree.leaves(sown(train=True))
    np.testing.assert_allclose(penalty, TowardsScale("l2", 0.5)(W, 0.0), rtol=1e-6)
    assert not jax.tree.leaves(sown(train=False))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"regularizer": "l3"}, "regularizer is 'l3': use one of none, l1, l2"),
        ({"regularizer_weight": -1.0}, r"regularizer_weight is -1\.0: use a number >= 0"),
        ({"scale": "learned"}, "scale, which is 'learned': use one of none, .*regularizer='none'"),
    ],
)
def test_a_regulariser_that_cannot_be_is_refused(knobs, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_method("bnn_plus", **knobs)

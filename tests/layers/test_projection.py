"""Weights projected on two values by a trained matrix, against float64 numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax.layers import make_method
from fda_jax.layers.projection import ProjectedWeights
from tests.finite import gradient

W = np.random.default_rng(0).normal(size=(2, 2, 3, 4)).astype(np.float32)
G = np.random.default_rng(1).normal(size=W.shape).astype(np.float32)
MATRIX = np.array([[0.5, 1.5], [-0.4, 2.0]], np.float32)
SIZE = np.abs(W.astype(np.float64)).mean()


@jax.jit
def apply(w, matrix):
    variables = {"params": {"projection": matrix}}
    module = ProjectedWeights(penalty_weight=0.25)
    out, state = module.apply(variables, w, train=True, progress=0.3, mutable=["penalties"])
    return out, state["penalties"]["value"]


def products(w, matrix):
    return np.asarray(matrix, np.float64)[..., None, None] * w


def check(ours, smooth) -> None:
    for got, expected in (
        (ours[0], gradient(lambda w: smooth(products(w, MATRIX)), W)),
        (ours[1], gradient(lambda matrix: smooth(products(W, matrix)), MATRIX)),
    ):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("sign", [1, -1])
def test_the_mean_of_the_matrix_chooses_the_nearest_of_two_values(sign: int) -> None:
    value, _ = apply(W, sign * MATRIX)
    # MATRIX.mean() is positive.
    nearest = np.where(np.abs(sign * W - SIZE) < np.abs(sign * W + SIZE), SIZE, -SIZE)
    np.testing.assert_allclose(value, nearest, rtol=1e-6)


def test_the_gradient_passes_where_the_product_with_the_matrix_is_within_one() -> None:
    ours = jax.grad(lambda *operands: jnp.sum(G * apply(*operands)[0]), argnums=(0, 1))(W, MATRIX)
    assert 0.1 < np.mean(np.abs(products(W, MATRIX)) > 1) < 0.9
    check(ours, lambda product: np.sum(G * np.clip(product, -1, 1)))


def test_the_gradient_passes_at_one_itself() -> None:
    w = np.array([1, -1, 0.5, 1.5], np.float32).reshape(1, 1, 1, 4)
    ours = jax.grad(lambda w: jnp.sum(apply(w, jnp.ones((1, 1)))[0]))(w)
    np.testing.assert_array_equal(np.ravel(ours), [1, 1, 1, 0])


def test_the_projection_loss_is_its_formula_with_the_projection_held_fixed() -> None:
    value, ours = jax.value_and_grad(lambda *operands: apply(*operands)[1], argnums=(0, 1))(
        W, MATRIX
    )
    projected = SIZE * np.where(W > 0, 1, -1)
    loss = lambda product: 0.125 * np.sum((projected - product) ** 2)  # noqa: E731
    np.testing.assert_allclose(value, loss(products(W, MATRIX)), rtol=1e-5)
    check(ours, loss)


def test_a_matrix_has_the_size_of_a_kernel_and_starts_at_one() -> None:
    for shape in ((3, 3, 4, 5), (1, 1, 4, 5), (4, 5)):
        module, w = ProjectedWeights(), np.ones(shape, np.float32)
        start = functools.partial(module.init, train=True, progress=0.0)
        params = jax.jit(start)(jax.random.key(0), w)["params"]
        np.testing.assert_array_equal(params["projection"], np.ones(shape[:-2]))


def test_a_weight_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"regularizer is -1\.0: use a number >= 0, e\.g\. 1e-4"):
        make_method("pcnn", regularizer=-1.0)

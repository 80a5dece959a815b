"""Sums of binary bases, against float64 numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax.layers import make_method
from fda_jax.layers.bases import ActivationBases, WeightBases

W = 0.1 + 0.2 * np.random.default_rng(0).normal(size=(3, 3, 6, 4)).astype(np.float32)
A = np.random.default_rng(1).normal(size=(2, 3, 3, 4)).astype(np.float32)
SCALES = pytest.mark.parametrize("scale", ["layer", "filter"])


@functools.partial(jax.jit, static_argnums=(2, 3))
def value_and_gradient(w, g, bases, scale="layer"):
    module = WeightBases(bases, scale)
    value, pullback = jax.vjp(lambda w: module.apply({}, w, train=True, progress=0.3), w)
    return value, pullback(g)[0]


def by_hand(w: np.ndarray, bases: int) -> tuple[np.ndarray, np.ndarray]:
    """The sum and its factors for a column of weights."""
    shifts = [-1 + 2 * i / (bases - 1) for i in range(bases)] if bases > 1 else [0.0]
    signs = np.stack([np.where(w - w.mean() + u * w.std() > 0, 1.0, -1.0) for u in shifts], 1)
    alpha = np.linalg.lstsq(signs, w, rcond=None)[0]
    return signs @ alpha, alpha


@SCALES
@pytest.mark.parametrize("bases", [1, 3, 5])
def test_weights_are_the_least_squares_sum_of_their_bases(bases: int, scale: str) -> None:
    g = np.random.default_rng(2).normal(size=W.shape).astype(np.float32)
    value, of_w = value_and_gradient(W, g, bases, scale)
    columns = W.astype(np.float64).reshape(-1, 4 if scale == "filter" else 1).T
    results = [by_hand(column, bases) for column in columns]
    expected = np.stack([total for total, _ in results], 1).reshape(W.shape)
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-5)
    for column in np.asarray(value).reshape(-1, len(columns)).T:
        assert len(np.unique(column)) == bases + 1
    # 1 through each sign, so each weight gets the sum of the factors.
    np.testing.assert_allclose(
        of_w, g * [alpha.sum() for _, alpha in results], rtol=1e-3, atol=1e-5
    )


def test_more_bases_are_nearer_to_the_weights() -> None:
    errors = [np.linalg.norm(value_and_gradient(W, W, bases)[0] - W) for bases in (1, 3, 5)]
    assert errors[0] > 1.5 * errors[1] > 1.5 * errors[2]


def test_bases_that_are_equal_share_their_factor() -> None:
    # Mean 0 and deviation 1: no weight lies between the thresholds 0 and 1.
    w = np.tile(np.array([1.0, -1.0], np.float32), 8).reshape(4, 4)
    np.testing.assert_allclose(value_and_gradient(w, w, 3)[0], w, rtol=0, atol=1e-4)


@pytest.mark.parametrize("bases", [1, 3])
def test_activations_are_the_sum_of_shifted_signs_within_their_windows(bases: int) -> None:
    g = np.random.default_rng(3).normal(size=A.shape).astype(np.float32)
    shift = np.linspace(-0.3, 1.1, bases).astype(np.float32)
    scale = np.linspace(0.5, 2.0, bases).astype(np.float32)

    @jax.jit
    def apply(a, shift, scale):
        params = {"params": {"shift": shift, "scale": scale}}
        return ActivationBases(bases).apply(params, a, train=True, progress=0.3)

    value, pullback = jax.vjp(apply, A, shift, scale)
    h = np.clip(A[..., None] + shift, 0, 1)
    bits = np.where(h >= 0.5, 1.0, -1.0)
    np.testing.assert_allclose(value, bits @ scale, rtol=1e-6)
    assert len(np.unique(value)) == bases + 1
    inside = (h > 0) & (h < 1)
    assert 0.1 < inside.mean() < 0.9
    of_a, of_shift, of_scale = pullback(g)
    np.testing.assert_allclose(of_a, g * (inside @ scale), rtol=1e-5, atol=1e-6)
    each = g[..., None] * inside * scale
    np.testing.assert_allclose(of_shift, each.sum((0, 1, 2, 3)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        of_scale, (g[..., None] * bits).sum((0, 1, 2, 3)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_before_training_one_basis_is_the_sign_in_its_own_type(dtype) -> None:
    a = jnp.asarray(A, dtype)
    start = functools.partial(ActivationBases().init_with_output, train=True, progress=0.0)
    value, _ = jax.jit(start)(jax.random.key(0), a)
    assert value.dtype == dtype
    np.testing.assert_array_equal(value.astype(jnp.float32), np.where(A > 0, 1, -1))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"weight_bases": 0}, "weight_bases is 0: use a whole number >= 1"),
        ({"activation_bases": 0}, "activation_bases is 0: use a whole number >= 1"),
        ({"scale": "none"}, "scale is 'none': use one of layer, filter"),
    ],
)
def test_bases_that_cannot_be_are_refused(knobs, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_method("abc_net", **knobs)

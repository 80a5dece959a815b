"""Weights turned towards their signs, against float64 numpy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax import ops
from fda_jax.layers import make_method
from fda_jax.layers.rotation import RotatedWeights, factors, fit_rotation, rotate
from tests.finite import gradient

SHAPE = (3, 3, 4, 5)
N1, N2 = 6, 6
MODULE = RotatedWeights(ops.RotationAware(), refits=4)
FIT = jax.jit(fit_rotation, static_argnums=3)
ROTATE = jax.jit(rotate)
INFER = jax.jit(functools.partial(MODULE.apply, train=False, progress=0.4))
# A tall one, a filter whose length is a prime number, a single weight.
every_size = pytest.mark.parametrize("size", [(5, 6, 8), (4, 1, 7), (3, 1, 1)])


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def orthogonal(size: int, seed: int) -> np.ndarray:
    return np.linalg.qr(normal(size, size, seed=seed).astype(np.float64))[0]


def cosines(x: np.ndarray) -> np.ndarray:
    """Of each filter with its signs."""
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    return np.abs(flat).sum(1) / np.sqrt(flat.shape[1]) / np.linalg.norm(flat, axis=1)


def variables(**state: np.ndarray) -> dict:
    start = {"rotation1": np.eye(N1), "rotation2": np.eye(N2), "refit": -1.0, **state}
    theta = np.linspace(0.1, 1.4, 5)
    tree = {"params": {"theta": theta}, "batch_stats": start}
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), tree)


@jax.jit
def train(state, w, progress):
    _, new = MODULE.apply(
        {**variables(), "batch_stats": state},
        w,
        train=True,
        progress=progress,
        mutable=["batch_stats"],
    )
    return new["batch_stats"]


@pytest.mark.parametrize("size", [1, 2, 7, 36, 72, 144, 576, 4608])
def test_a_filter_becomes_the_matrix_that_is_nearest_to_a_square(size: int) -> None:
    pairs = [(n, size // n) for n in range(1, size + 1) if size % n == 0 and n * n <= size]
    assert factors(size) == min(pairs, key=lambda pair: pair[1] - pair[0])


@every_size
def test_a_fit_is_orthogonal_and_each_alternation_turns_filters_nearer_to_signs(size) -> None:
    x = normal(*size)
    x /= np.linalg.norm(x, axis=(1, 2), keepdims=True)
    means = [cosines(x).mean()]
    fitted = np.eye(size[1], dtype=np.float32), np.eye(size[2], dtype=np.float32)
    for _ in range(5):
        fitted = [np.asarray(r) for r in FIT(x, *fitted, 1)]
        for r in fitted:
            np.testing.assert_allclose(r.T @ r, np.eye(len(r)), rtol=0, atol=1e-5)
        means.append(cosines(ROTATE(x, *fitted)).mean())
    assert np.all(np.diff(means) >= -1e-6)
    if size[1] > 1:
        assert means[1] > means[0] + 0.02


def test_an_alternation_is_the_papers_three_lines() -> None:
    x, r1, r2 = normal(5, 6, 8).astype(np.float64), orthogonal(6, 1), orthogonal(8, 2)
    b = np.sign(np.stack([r1.T @ xi @ r2 for xi in x]))
    u, _, vh = np.linalg.svd(sum(xi @ r2 @ bi.T for xi, bi in zip(x, b, strict=True)))
    first = u @ vh
    u, _, vh = np.linalg.svd(sum(xi.T @ first @ bi for xi, bi in zip(x, b, strict=True)))
    ours = FIT(*(np.float32(array) for array in (x, r1, r2)), 1)
    np.testing.assert_allclose(ours[0], first, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours[1], u @ vh, rtol=0, atol=1e-5)


def test_the_rotations_are_the_identity_at_the_start_and_filters_their_own_signs() -> None:
    w = normal(*SHAPE)
    start = jax.jit(lambda: MODULE.init(jax.random.key(0), w, train=True, progress=0.0))()
    np.testing.assert_array_equal(start["batch_stats"]["rotation1"], np.eye(N1))
    np.testing.assert_array_equal(start["batch_stats"]["rotation2"], np.eye(N2))
    theta = np.asarray(start["params"]["theta"])
    assert np.all((theta >= 0) & (theta < math.pi / 2))
    out = INFER(start, w)
    np.testing.assert_array_equal(out, np.where(w > w.mean((0, 1, 2)), 1, -1))


def test_rotations_are_fitted_when_due_and_at_no_other_time() -> None:
    state, seen = variables()["batch_stats"], []
    # Four refits a run; the weights are others in every step.
    for step, progress in enumerate([0.0, 0.1, 0.24, 0.25, 0.3, 0.5, 0.75, 0.99]):
        new = train(state, normal(*SHAPE, seed=step), progress)
        seen.append(bool(np.any(new["rotation1"] != state["rotation1"])))
        np.testing.assert_array_equal(new["refit"], np.floor(4 * progress))
        state = new
    assert seen == [True, False, False, True, False, True, True, False]
    INFER(variables(**state), normal(*SHAPE))  # has nothing to write to


def test_devices_fit_the_same_rotations_and_a_mapped_fit_is_that_of_each() -> None:
    ws = np.stack([normal(*SHAPE, seed=seed) for seed in range(3)])
    start, due = variables()["batch_stats"], np.array([0.5, 0.1, 0.5], np.float32)
    state = {**start, "refit": np.float32(0)}
    mapped = jax.vmap(train, in_axes=(None, 0, 0))(state, ws, due)
    for i in range(3):
        alone = train(state, ws[i], due[i])
        jax.tree.map(
            lambda ours, theirs, i=i: np.testing.assert_allclose(ours[i], theirs, atol=1e-4),
            mapped,
            alone,
        )
    np.testing.assert_array_equal(mapped["rotation1"][1], np.eye(N1))
    same = jax.vmap(train, in_axes=(None, None, None), axis_size=2)(state, ws[0], 0.5)
    np.testing.assert_array_equal(same["rotation1"][0], same["rotation1"][1])


def standardized(w: np.ndarray) -> np.ndarray:
    filters = np.asarray(w, np.float64).reshape(-1, SHAPE[-1])
    return (filters - filters.mean(0)) / filters.std(0, ddof=1)


def test_value_and_gradients_are_those_of_the_adjusted_weights() -> None:
    w, g, progress = normal(*SHAPE), normal(*SHAPE, seed=1), 0.6
    r1, r2 = orthogonal(N1, 3), orthogonal(N2, 4)
    given = variables(rotation1=r1, rotation2=r2, refit=np.floor(4 * progress))
    theta = np.asarray(given["params"]["theta"], np.float64)
    matrices = standardized(w).T.reshape(5, N1, N2)
    turned = np.stack([(r1.T @ m @ r2).ravel() for m in matrices]).T

    def adjusted(w, theta):
        w2 = standardized(w)
        return w2 + np.abs(np.sin(theta)) * (turned - w2)

    def twin(x):
        t = 1e-2 * (10.0 / 1e-2) ** progress
        c = np.clip(x, -math.sqrt(2) / t, math.sqrt(2) / t)
        return max(1 / t, 1) * (math.sqrt(2) * t * c - t**2 * c * np.abs(c) / 2)

    @jax.jit
    def both(w, theta):
        def value(w, theta):
            params = {**given, "params": {"theta": theta}}
            out, _ = MODULE.apply(params, w, train=True, progress=progress, mutable=["batch_stats"])
            return out

        out, pullback = jax.vjp(value, w, theta)
        return out, pullback(jnp.asarray(g))

    value, (of_w, of_theta) = both(w, jnp.asarray(theta, jnp.float32))
    np.testing.assert_array_equal(value, np.where(adjusted(w, theta) > 0, 1, -1).reshape(SHAPE))
    flat = g.astype(np.float64).reshape(-1, 5)
    expected = gradient(lambda w: np.sum(flat * twin(adjusted(w, theta))), w)
    np.testing.assert_allclose(of_w, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    expected = gradient(lambda theta: np.sum(flat * twin(adjusted(w, theta))), theta)
    np.testing.assert_allclose(of_theta, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_not_a_number_is_not_turned_into_signs() -> None:
    w = normal(*SHAPE)
    w[0, 0, 0, 2] = np.nan
    lost = np.isnan(INFER(variables(), w)).reshape(-1, 5)
    np.testing.assert_array_equal(lost.all(0), [False, False, True, False, False])
    assert np.all(np.isnan(train(variables()["batch_stats"], w, 0.0)["rotation1"]))


def test_a_number_of_refits_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="refits is 0: use a whole number >= 1"):
        make_method("rbnn", refits=0)

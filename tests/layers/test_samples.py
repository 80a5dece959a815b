"""Activations of unit spread, against float64 numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax.layers.samples import StandardizedSamples

STANDARDIZE = {
    center: jax.jit(functools.partial(StandardizedSamples(center), progress=0.3))
    for center in (False, True)
}
A = (0.4 + 2.0 * np.random.default_rng(0).normal(size=(3, 4, 4, 5))).astype(np.float32)


@pytest.mark.parametrize("center", [False, True])
def test_each_example_is_divided_by_its_own_spread(center: bool) -> None:
    flat = A.astype(np.float64).reshape(3, -1)
    expected = (flat - center * flat.mean(1, keepdims=True)) / flat.std(1, ddof=1, keepdims=True)
    ours = STANDARDIZE[center](A)
    np.testing.assert_allclose(ours, expected.reshape(A.shape), rtol=0, atol=1e-4)
    # An example does not see the others of its batch.
    alone = STANDARDIZE[center](A[1:2])
    np.testing.assert_allclose(ours[1:2], alone, rtol=0, atol=1e-6)
    same = np.array_equal(np.sign(ours), np.sign(A))
    assert same == (not center)


def test_the_gradient_is_orthogonal_to_what_the_map_does_not_see() -> None:
    g = np.random.default_rng(1).normal(size=A.shape).astype(np.float32)
    for center, standardize in STANDARDIZE.items():
        of_a = jax.vjp(standardize, A)[1](g)[0]
        axes = (1, 2, 3)
        np.testing.assert_allclose(np.sum(of_a * A, axes), np.zeros(3), atol=2e-3)
        shifts = np.abs(np.sum(of_a, axes))
        assert np.all(shifts < 1e-3) == center


@pytest.mark.parametrize("center", [False, True])
def test_an_example_without_spread_stays_finite_and_types_are_kept(center: bool) -> None:
    a = jnp.full((2, 3, 3, 2), 0.5, jnp.bfloat16).at[1, 0, 0, 0].set(2.0)
    value, pullback = jax.vjp(STANDARDIZE[center], a)
    assert value.dtype == jnp.bfloat16
    assert np.all(np.isfinite(value.astype(jnp.float32)))
    assert np.all(np.isfinite(pullback(jnp.ones_like(a))[0].astype(jnp.float32)))


def test_not_a_number_stays_in_its_example() -> None:
    a = A.copy()
    a[1, 2, 3, 4] = np.nan
    lost = np.isnan(STANDARDIZE[False](a)).any((1, 2, 3))
    np.testing.assert_array_equal(lost, [False, True, False])

"""What becomes of latent weights before their signs are taken, against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax import ops
from fda_jax.layers import Quantizer, WeightQuantizer
from fda_jax.layers.normalize import CenteredWeights, StandardizedFilters

SHAPES = pytest.mark.parametrize("shape", [(3, 3, 6, 4), (18, 4)])


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@SHAPES
def test_weights_are_centred_over_input_channels_and_then_clipped(shape: tuple[int, ...]) -> None:
    w = 0.3 + normal(shape)
    wide = w.astype(np.float64)
    centred = wide - wide.mean(-2, keepdims=True)
    np.testing.assert_allclose(
        CenteredWeights(0.5)(w, 0.3), np.clip(centred, -0.5, 0.5), rtol=0, atol=1e-6
    )
    assert np.any(np.abs(centred) > 0.5)
    np.testing.assert_allclose(
        np.sum(CenteredWeights(9.0)(w, 0.3), axis=-2), np.zeros(w.sum(-2).shape), atol=1e-5
    )


@SHAPES
def test_filters_get_mean_0_and_the_variance_1_of_n_minus_1(shape: tuple[int, ...]) -> None:
    w = 0.3 + 0.1 * normal(shape)
    ours = np.asarray(StandardizedFilters()(w, 0.3)).reshape(-1, 4)
    filters = w.astype(np.float64).reshape(-1, 4)
    np.testing.assert_allclose(
        ours, (filters - filters.mean(0)) / filters.std(0, ddof=1), rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(ours.mean(0), np.zeros(4), atol=1e-5)
    np.testing.assert_allclose(ours.var(0, ddof=1), np.ones(4), rtol=1e-5)


@pytest.mark.parametrize("scale", [0.01, 30.0])
def test_standardized_filters_know_neither_the_scale_nor_the_offset_of_their_weights(
    scale: float,
) -> None:
    w = normal((3, 3, 6, 4))
    np.testing.assert_allclose(
        StandardizedFilters()(scale * (w + 0.5), 0.0), StandardizedFilters()(w, 0.0), atol=1e-4
    )


def test_a_filter_without_spread_becomes_zero_and_its_gradient_stays_finite() -> None:
    w = np.full((2, 2, 3, 4), 0.25, np.float32)
    w[..., 1] = normal((2, 2, 3))

    @jax.jit
    def value_and_gradient(w, g):
        value, pullback = jax.vjp(lambda w: StandardizedFilters()(w, 0.0), w)
        return value, *pullback(g)

    value, gradient = value_and_gradient(w, normal(w.shape, seed=1))
    np.testing.assert_array_equal(value[..., 0], 0.0)
    assert np.any(value[..., 1] != 0)
    assert np.all(np.isfinite(gradient))


def test_not_a_number_stays_in_its_filter() -> None:
    w = normal((3, 3, 6, 4))
    w[1, 1, 2, 3] = np.nan
    for normalize in (CenteredWeights(), StandardizedFilters()):
        lost = np.isnan(normalize(w, 0.0)).reshape(-1, 4)
        np.testing.assert_array_equal(lost.any(0), [False, False, False, True])


def test_xnor_nets_gradient_is_that_of_the_scaled_sign_centred() -> None:
    # Within the clip: alpha g + sign(w) mean(g sign(w)) for each filter, then centred over input
    # channels. Public code multiplies by 1 - 1 / channels in place of the centring, the diagonal
    # of the same matrix.
    channels = 6
    w, g = 0.2 * normal((3, 3, channels, 4)), normal((3, 3, channels, 4), seed=1)
    module = WeightQuantizer(
        Quantizer(ops.ClippedSTE(), "filter", normalize=CenteredWeights(), scale_gradient=True)
    )
    total = jax.grad(lambda w: jnp.sum(g * module.apply({}, w, train=True, progress=0.0)))
    ours = jax.jit(total)(w)
    centred = w.astype(np.float64) - w.mean(-2, keepdims=True, dtype=np.float64)
    assert np.all(np.abs(centred) < 1)
    signs, axes = np.where(centred > 0, 1.0, -1.0), (0, 1, 2)
    of_centred = np.abs(centred).mean(axes) * g + signs * (g * signs).mean(axes)
    expected = of_centred - of_centred.mean(-2, keepdims=True)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
    centring = np.eye(channels) - np.full((channels, channels), 1 / channels)
    np.testing.assert_allclose(np.diag(centring), 1 - 1 / channels)


def test_a_bound_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bound is 0\.0: use a number > 0"):
        CenteredWeights(0.0)

"""Pooling against Flax's and by hand, ties, borders and left-over pixels included."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax import ops


def values_and_gradients(*functions_and_arguments):
    """Of each function with its argument and its result's cotangent, all in one program."""
    functions = [function for function, *_ in functions_and_arguments]

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def compute(arguments):
        made = []
        for function, (x, g) in zip(functions, arguments, strict=True):
            y, pull = jax.vjp(function, x)
            made.append((y, *pull(g)))
        return made

    return compute([arguments for _, *arguments in functions_and_arguments])


@pytest.mark.parametrize(
    ("height", "width", "window", "stride", "padding", "dtype"),
    [
        (4, 6, 2, 2, 0, jnp.float32),
        (4, 6, 2, 2, 0, jnp.bfloat16),
        (7, 5, 2, 2, 0, jnp.float32),
        (7, 9, 3, 3, 0, jnp.float32),
        (3, 3, 1, 1, 0, jnp.float32),
        (8, 6, 3, 2, 1, jnp.float32),  # ImageNet's stem
        (8, 6, 3, 2, 1, jnp.bfloat16),
        (7, 5, 3, 2, 1, jnp.float32),
        (5, 4, 3, 1, 1, jnp.float32),
        (9, 8, 5, 2, 2, jnp.float32),
        (6, 7, 4, 3, 3, jnp.float32),
    ],
)
def test_value_and_gradient_are_flaxs_whoever_is_first_of_a_tie(
    height, width, window, stride, padding, dtype
):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-2, 3, (3, height, width, 5)), dtype)
    border = ((padding, padding),) * 2

    def flaxs(x):
        return nn.max_pool(x, (window, window), strides=(stride, stride), padding=border)

    def ours(x):
        return ops.max_pool(x, window, stride=stride, padding=padding)

    # Whole numbers, whose sums do not depend on their order.
    g = jnp.asarray(rng.integers(-9, 10, jax.eval_shape(flaxs, x).shape), dtype)
    for mine, reference in zip(*values_and_gradients((ours, x, g), (flaxs, x, g)), strict=True):
        np.testing.assert_array_equal(mine, reference)


@pytest.mark.parametrize(
    ("window", "stride", "padding"), [(2, 3, 0), (2, 0, 0), (2, 2, 2), (2, 2, -1), (17, 2, 0)]
)
def test_windows_that_cannot_be_are_refused_with_the_remedy(window, stride, padding):
    message = f"windows of {window} pixels with stride {stride} .* must be"
    with pytest.raises(ValueError, match=message):
        ops.max_pool(jnp.zeros((1, 32, 32, 1)), window, stride=stride, padding=padding)


def test_images_that_hold_no_window_are_refused():
    with pytest.raises(ValueError, match="1 by 4 pixels hold no window of 2: use larger"):
        ops.max_pool(jnp.zeros((1, 1, 4, 1)), 2)


def test_the_mean_of_a_window_is_that_by_hand_and_at_the_end_that_of_the_pixels_there_are():
    x = np.arange(1.0, 16.0, dtype=np.float32).reshape(1, 3, 5, 1)
    # 1  2 | 3  4 | 5
    # 6  7 | 8  9 | 10
    # -----+------+---
    # 11 12| 13 14| 15
    means = [[4.0, 6.0, 7.5], [11.5, 13.5, 15.0]]
    np.testing.assert_array_equal(ops.mean_pool(jnp.asarray(x), 2)[0, :, :, 0], means)
    np.testing.assert_array_equal(ops.mean_pool(jnp.asarray(x), 1), x)


@pytest.mark.parametrize(("height", "width", "window"), [(4, 6, 2), (7, 5, 2), (7, 9, 3)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_mean_and_gradient_are_flaxs_with_the_pixels_that_a_window_holds(
    height, width, window, dtype
):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((3, height, width, 5)), dtype)
    behind = [(0, -size % window) for size in (height, width)]

    def flaxs(x):
        size = (window, window)
        return nn.avg_pool(x, size, strides=size, padding=behind, count_include_pad=False)

    exact = jnp.asarray(x, jnp.float32)
    g = jnp.asarray(rng.standard_normal(jax.eval_shape(flaxs, exact).shape), dtype)
    rounding = 1e-6 if dtype == jnp.float32 else 1e-2
    mine, right = values_and_gradients(
        (lambda x: ops.mean_pool(x, window), x, g), (flaxs, exact, jnp.asarray(g, jnp.float32))
    )
    for value, reference in zip(mine, right, strict=True):
        assert value.dtype == dtype
        np.testing.assert_allclose(np.float32(value), reference, rtol=rounding, atol=rounding)


def test_a_nan_is_the_largest_of_its_window():
    x = jnp.zeros((1, 2, 4, 1)).at[0, 1, 0, 0].set(jnp.nan)
    np.testing.assert_array_equal(ops.max_pool(x, 2)[0, 0, :, 0], [np.nan, 0.0])

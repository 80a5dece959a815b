"""Max pooling against Flax's, ties and left-over pixels included."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax import ops


def both(pool, x, g):
    y, pull = jax.vjp(pool, x)
    return y, pull(g)[0]


@pytest.mark.parametrize(
    ("height", "width", "window"), [(4, 6, 2), (7, 5, 2), (7, 9, 3), (3, 3, 1)]
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_value_and_gradient_are_flaxs_whoever_is_first_of_a_tie(height, width, window, dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-2, 3, (3, height, width, 5)), dtype)
    g = jnp.asarray(rng.standard_normal((3, height // window, width // window, 5)), dtype)
    size = (window, window)
    right = both(lambda x: nn.max_pool(x, size, strides=size), x, g)
    for mine, reference in zip(both(lambda x: ops.max_pool(x, window), x, g), right, strict=True):
        np.testing.assert_array_equal(mine, reference)


def test_a_nan_is_the_largest_of_its_window():
    x = jnp.zeros((1, 2, 4, 1)).at[0, 1, 0, 0].set(jnp.nan)
    np.testing.assert_array_equal(ops.max_pool(x, 2)[0, 0, :, 0], [np.nan, 0.0])

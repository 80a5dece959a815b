"""Output scales: one for each position, as a product of vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax.layers import BinaryConv, BinaryDense, make_method
from fda_jax.layers.outputs import OutputScale

Y = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
VECTORS = {
    name: np.random.default_rng(i).normal(size=size).astype(np.float32)
    for i, (name, size) in enumerate({"channel": 4, "height": 3, "width": 5}.items())
}


def test_the_scale_of_a_position_is_the_product_of_its_three_numbers() -> None:
    scaled = OutputScale("channel_height_width").apply({"params": VECTORS}, Y)
    for b, h, w, c in np.ndindex(Y.shape):
        factor = VECTORS["channel"][c] * VECTORS["height"][h] * VECTORS["width"][w]
        assert scaled[b, h, w, c] == pytest.approx(Y[b, h, w, c] * factor, rel=1e-5)


def test_the_scale_of_a_channel_is_its_number() -> None:
    scaled = OutputScale("channel").apply({"params": {"channel": VECTORS["channel"]}}, Y)
    np.testing.assert_allclose(scaled, Y * VECTORS["channel"], rtol=1e-6)


@pytest.mark.parametrize("shape", ["channel", "channel_height_width"])
def test_at_the_start_nothing_is_scaled_and_narrow_types_stay_narrow(shape: str) -> None:
    y = jnp.asarray(Y, jnp.bfloat16)
    scaled, variables = OutputScale(shape).init_with_output(jax.random.key(0), y)
    assert scaled.dtype == jnp.bfloat16
    np.testing.assert_array_equal(scaled.astype(jnp.float32), y.astype(jnp.float32))
    names = {"channel": (4,), "height": (3,), "width": (5,)}
    expected = names if shape == "channel_height_width" else {"channel": (4,)}
    params = variables["params"]
    assert {name: leaf.shape for name, leaf in params.items()} == expected
    assert {leaf.dtype for leaf in params.values()} == {jnp.dtype(jnp.float32)}


def test_a_layer_has_the_scales_of_its_output_and_they_learn() -> None:
    layer = BinaryConv(4, strides=2, method="xnor_net_pp")
    a = np.random.default_rng(1).normal(size=(2, 5, 9, 3)).astype(np.float32)
    params = jax.jit(layer.init)(jax.random.key(0), a)["params"]

    @jax.jit
    @jax.grad
    def gradient(params):
        return jnp.sum(layer.apply({"params": params}, a, train=True, progress=0.5) ** 2)

    shapes = {name: leaf.shape for name, leaf in params["output"].items()}
    assert shapes == {"channel": (4,), "height": (3,), "width": (5,)}
    assert all(np.all(leaf != 0) for leaf in gradient(params)["output"].values())


def test_scales_that_cannot_be_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="scale_shape is 'pixel': use one of channel, channel_h"):
        make_method("xnor_net_pp", scale_shape="pixel")
    layer = BinaryDense(4, method="xnor_net_pp")
    with pytest.raises(ValueError, match=r"shape \(2, 4\) instead of .*use 'channel'"):
        jax.eval_shape(lambda: layer.init(jax.random.key(0), jnp.ones((2, 3))))

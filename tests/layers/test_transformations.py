"""Networks under JAX's transformations: shared batches, second derivatives, recomputation."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from fda_jax import layers, models, ops
from fda_jax.ops import native

IMAGES = jax.random.normal(jax.random.key(1), (8, 8, 8, 1))
METHODS = ["fda", "full_precision"]


@functools.cache
def mesh(kind):
    return jax.make_mesh((4,), ("devices",), axis_types=(kind,))


def make(method, axis_name=None):
    return models.ResNet(10, method, stage_sizes=(1,), widths=(16,), axis_name=axis_name)


@functools.cache
def variables(method):
    return jax.jit(make(method).init)(jax.random.key(0), IMAGES)


def loss(params, images, method, axis_name=None):
    """The mean of squared logits in training, halfway."""
    given = {**variables(method), "params": params}
    logits, _ = make(method, axis_name).apply(
        given, images, train=True, progress=0.5, mutable=["batch_stats"]
    )
    return jnp.mean(logits**2)


@functools.cache
def gradient(method):
    """Of one device on the whole batch."""
    return jax.jit(jax.grad(functools.partial(loss, method=method)))(
        variables(method)["params"], IMAGES
    )


def assert_same(found, wanted):
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4 * np.abs(two).max() + 1e-7)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("checked", [True, False])
def test_devices_that_share_a_batch_by_shard_map_get_the_gradient_of_one(method, checked):
    """Checked, JAX adds up the gradients of what is the same on all devices; else we do."""

    def body(params, images):
        def mean(params):
            own = loss(params, images, method, "devices")
            return jax.lax.pmean(own, "devices") if checked else own

        found = jax.grad(mean)(params)
        return found if checked else jax.lax.pmean(found, "devices")

    shared = jax.shard_map(
        body,
        mesh=mesh(AxisType.Auto),
        in_specs=(P(), P("devices")),
        out_specs=P(),
        check_vma=checked,
    )
    assert_same(jax.jit(shared)(variables(method)["params"], IMAGES), gradient(method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_a_batch_that_lies_on_several_devices_has_the_gradient_of_one(method, kind):
    images = jax.device_put(IMAGES, NamedSharding(mesh(kind), P("devices")))
    params = jax.device_put(variables(method)["params"], NamedSharding(mesh(kind), P()))
    found = jax.jit(jax.grad(functools.partial(loss, method=method)))(params, images)
    assert_same(found, gradient(method))


def ours(x, w, w1, w2):
    y = ops.convolve(x, w, 1, ((1, 1), (1, 1)), w2[1])
    y = ops.batch_norm(y, 1 + w1[:, 0], w2[0], 1e-5, None)[0]
    y = y + ops.noise(y, w1, w2, "sine", 0.1)
    return jnp.mean(ops.max_pool(y, 2) ** 3)


def plain(x, w, w1, w2):
    y = jax.lax.conv_general_dilated(
        x, w, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    y = y * w2[1]
    mean, variance = jnp.mean(y, (0, 1, 2)), jnp.var(y, (0, 1, 2))
    y = (y - mean) / jnp.sqrt(variance + 1e-5) * (1 + w1[:, 0]) + w2[0]
    y = y + jax.nn.relu(y @ w1) @ w2 + 0.1 * jnp.sin(y)
    return jnp.mean(nn.max_pool(y, (2, 2), (2, 2)) ** 3)


@pytest.mark.slow
@pytest.mark.parametrize("method", layers.METHODS)
def test_every_method_can_share_a_batch(method):
    """It is traced; where a sum of signs is 0, rounding decides a gradient's values."""

    def total(params, images, axis_name=None):
        return loss(params, images, method, axis_name)

    params = variables(method)["params"]
    gradient = jax.grad(lambda *a: jax.lax.pmean(total(*a, "devices"), "devices"))
    places = {"in_specs": (P(), P("devices")), "out_specs": P()}
    shared = jax.shard_map(gradient, mesh=mesh(AxisType.Auto), **places)
    assert jax.tree.map(jnp.shape, jax.eval_shape(shared, params, IMAGES)) == jax.tree.map(
        jnp.shape, params
    )
    explicit = mesh(AxisType.Explicit)
    images = jax.device_put(IMAGES, NamedSharding(explicit, P("devices")))
    placed = jax.device_put(params, NamedSharding(explicit, P()))
    jax.jit(jax.grad(total)).trace(placed, images)


@pytest.mark.slow
@pytest.mark.parametrize("switch", ["0", "1"])
def test_real_layers_have_their_second_derivatives_whoever_computes_them(switch, monkeypatch):
    """Reverse over reverse: the Hessian times a vector."""
    monkeypatch.setenv(native.SWITCH, switch)
    native._kernels.cache_clear()
    shapes = ((2, 4, 8, 16), (3, 3, 16, 16), (16, 4), (4, 16))
    keys = jax.random.split(jax.random.key(0), 2 * len(shapes))
    point, vector = (
        [0.3 * jax.random.normal(k, shape) for k, shape in zip(half, shapes, strict=True)]
        for half in (keys[::2], keys[1::2])
    )

    def product(function):
        def along(*point):
            gradients = jax.grad(function, range(4))(*point)
            return sum(jnp.vdot(g, v) for g, v in zip(gradients, vector, strict=True))

        return jax.jit(jax.grad(along, range(4)))(*point)

    try:
        found = product(ours)
    finally:
        native._kernels.cache_clear()
    assert_same(found, product(plain))


class Recomputed(nn.Module):
    """A binary layer whose operands are computed again in the backward pass."""

    @nn.compact
    def __call__(self, x, train, progress):
        conv = nn.remat(layers.BinaryConv, static_argnums=(2,))
        return conv(16, name="conv")(x, train, progress)


class Plain(nn.Module):
    """The same, kept."""

    @nn.compact
    def __call__(self, x, train, progress):
        return layers.BinaryConv(16, name="conv")(x, train=train, progress=progress)


def test_a_binary_layer_can_be_computed_again_in_the_backward_pass():
    x = jax.random.normal(jax.random.key(2), (2, 4, 4, 16))
    params = jax.jit(Plain().init, static_argnums=(2, 3))(jax.random.key(0), x, False, 0.5)

    def loss(params, module):
        return jnp.sum(module.apply(params, x, True, 0.5) ** 2)

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    found, wanted = (gradient(params, module) for module in (Recomputed(), Plain()))
    chex.assert_trees_all_close(found, wanted, rtol=1e-5)

"""Products with scaled matrices, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from fda_jax import ops


def operands(shape, outputs, shared):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape)
    w = rng.standard_normal((shape[-1], outputs))
    scale = rng.uniform(0.1, 2, () if shared else (outputs,))
    return x, w, scale, rng.standard_normal((*shape[:-1], outputs))


@pytest.mark.parametrize("in_gradient", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5)])
def test_a_product_and_its_derivatives(shape, shared, in_gradient):
    x, w, scale, g = operands(shape, 3, shared)
    arrays = [jnp.asarray(array, jnp.float32) for array in (x, w, scale)]
    y, pull = jax.vjp(lambda x, w, scale: ops.multiply(x, w, scale, in_gradient), *arrays)
    dx, dw, dscale = pull(jnp.asarray(g, jnp.float32))
    rows, cotangents = x.reshape(-1, 5), g.reshape(-1, 3)
    without = rows.T @ cotangents
    over_scale = np.sum(cotangents * (rows @ w), axis=None if shared else 0)
    expected = [
        (y, (x @ w) * scale),
        (dx, g @ (w * scale).T),
        (dw, without * scale if in_gradient else without),
        (dscale, over_scale if in_gradient else np.zeros(scale.shape)),
    ]
    for ours, reference in expected:
        np.testing.assert_allclose(ours, reference, rtol=1e-5, atol=1e-5)


def test_without_a_scale_it_is_the_product_forward_mode_included():
    x, w, _, g = operands((4, 5), 3, True)
    y, pull = jax.vjp(ops.multiply, jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32))
    dx, dw = pull(jnp.asarray(g, jnp.float32))
    _, along = jax.jvp(lambda x: ops.multiply(x, jnp.asarray(w)), (jnp.asarray(x),), (dx,))
    for ours, reference in ((y, x @ w), (dx, g @ w.T), (dw, x.T @ g), (along, g @ w.T @ w)):
        np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("checked", [True, False])
def test_devices_add_up_the_gradients_of_what_they_share(checked):
    devices = jax.local_device_count()
    x, w, scale, _ = (jnp.asarray(a, jnp.float32) for a in operands((2 * devices, 5), 3, False))

    def loss(w, scale, x):
        return jnp.sum(ops.multiply(x, w, scale) ** 2)

    def of_part(w, scale, x):
        gradients = jax.grad(loss, (0, 1))(w, scale, x)
        # Where JAX checks what varies over devices, it has added them up already.
        return gradients if checked else jax.lax.psum(gradients, "devices")

    mesh = jax.make_mesh((devices,), ("devices",), axis_types=(AxisType.Auto,))
    every, parts = PartitionSpec(), PartitionSpec("devices")
    shared = jax.shard_map(
        of_part, mesh=mesh, in_specs=(every, every, parts), out_specs=every, check_vma=checked
    )
    found = jax.block_until_ready(jax.jit(shared)(w, scale, x))
    for ours, reference in zip(found, jax.grad(loss, (0, 1))(w, scale, x), strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1,), (4, 1), (1, 3)])
def test_a_scale_of_something_else_than_filters_is_refused(shape):
    x, w, scale = jnp.ones((4, 4, 4, 5)), jnp.ones((1, 1, 5, 3)), jnp.ones(shape)

    def convolved(w):
        return ops.convolve(x, w, 1, ((0, 0), (0, 0)), scale)

    for call in (
        lambda: ops.multiply(x, w[0, 0], scale),
        lambda: convolved(w),
        lambda: jax.vjp(convolved, w),
    ):
        with pytest.raises(ValueError, match=r"3 filters take \(\) or \(3,\): give one number"):
            call()


def test_second_derivatives_are_exact():
    x, w, scale, _ = (jnp.asarray(a, jnp.float32) for a in operands((4, 5), 3, False))
    ours = jax.jacrev(jax.grad(lambda s: jnp.sum(ops.multiply(x, w, s) ** 4)))
    plain = jax.jacrev(jax.grad(lambda s: jnp.sum((x @ w * s) ** 4)))
    np.testing.assert_allclose(*jax.jit(lambda s: (ours(s), plain(s)))(scale), rtol=1e-4)

"""Binary layers against numpy loops: values, gradients, scales, types."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax import ops
from fda_jax.layers import (
    ActivationQuantizer,
    BinaryConv,
    BinaryDense,
    Method,
    Quantizer,
    ScaledOperand,
    WeightQuantizer,
    make_method,
)
from fda_jax.ops import native

NO_SCALE = Method(Quantizer(ops.ClippedSTE(), "none"), Quantizer(ops.ClippedSTE()))
KEY = jax.random.key(0)


def padding(size: int) -> tuple[int, int]:
    return (size - 1) // 2, size // 2


def windows(padded: np.ndarray, i: int, j: int, height: int, width: int, stride: int):
    """The pixels that kernel position (i, j) sees, as a view."""
    return padded[:, i : i + stride * height : stride, j : j + stride * width : stride]


def conv(a: np.ndarray, w: np.ndarray, stride: int = 1, border=None) -> np.ndarray:
    """Convolution with zero padding, one kernel position at a time."""
    a = np.asarray(a, np.float64)
    kh, kw = w.shape[:2]
    padded = np.pad(a, ((0, 0), *(border or (padding(kh), padding(kw))), (0, 0)))
    height, width = (
        (side - size) // stride + 1 for side, size in zip(padded.shape[1:3], (kh, kw), strict=True)
    )
    out = np.zeros((len(a), height, width, w.shape[-1]))
    for i, j in np.ndindex(kh, kw):
        out += windows(padded, i, j, height, width, stride)[:, :height, :width] @ w[i, j]
    return out


def conv_gradients(a: np.ndarray, w: np.ndarray, g: np.ndarray, stride: int = 1):
    """Gradients of sum(g * conv(a, w)) by a and w."""
    kh, kw = w.shape[:2]
    padded = np.pad(np.asarray(a, np.float64), ((0, 0), padding(kh), padding(kw), (0, 0)))
    of_padded, of_w = np.zeros_like(padded), np.zeros(w.shape)
    height, width = g.shape[1:3]
    for i, j in np.ndindex(kh, kw):
        seen = windows(padded, i, j, height, width, stride)[:, :height, :width]
        of_w[i, j] = np.einsum("bhwc,bhwf->cf", seen, g)
        windows(of_padded, i, j, height, width, stride)[:, :height, :width] += g @ w[i, j].T
    top, left = padding(kh)[0], padding(kw)[0]
    return of_padded[:, top : top + a.shape[1], left : left + a.shape[2]], of_w


def signs(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, 1.0, -1.0)


def scale_of(w: np.ndarray, scale: str) -> np.ndarray:
    match scale:
        case "none":
            return np.float64(1)
        case "layer":
            return np.abs(w).mean(dtype=np.float64)
        case "filter":
            return np.abs(w).reshape(-1, w.shape[-1]).mean(0, dtype=np.float64)
    raise AssertionError(scale)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def initialized(layer: nn.Module, a: jax.Array):
    """Variables of a layer, all the same number: nothing is compiled for them."""
    shapes = jax.eval_shape(layer.init, KEY, a)
    return jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, leaf.dtype), shapes)


def without_noise(method: Method) -> Method:
    parts = (method.weight, method.activation)
    return Method(*(part and dataclasses.replace(part, noise=None) for part in parts))


def with_scale(scale: str) -> Method:
    return Method(Quantizer(ops.ClippedSTE(), scale), Quantizer(ops.ClippedSTE()))


@pytest.mark.parametrize(
    ("kernel", "stride", "scale"),
    [
        ((1, 1), 1, "layer"),
        ((3, 3), 1, "layer"),
        ((3, 3), 2, "filter"),
        ((5, 5), 1, "none"),
        ((2, 2), 2, "filter"),
        ((2, 3), 1, "none"),
    ],
)
def test_a_binary_convolution_is_a_plain_one_of_scaled_signs(
    kernel: tuple[int, int], stride: int, scale: str
) -> None:
    a, w = normal(2, 5, 6, 3), normal(*kernel, 3, 4, seed=1)
    layer = BinaryConv(4, kernel, stride, method=with_scale(scale))
    out = jax.jit(layer.apply)({"params": {"latent_kernel": w}}, a)
    expected = conv(signs(a), signs(w) * scale_of(w, scale), stride)
    assert out.shape == expected.shape == (2, -(-5 // stride), -(-6 // stride), 4)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale", ["none", "layer", "filter"])
def test_a_binary_dense_layer_is_a_product_of_scaled_signs(scale: str) -> None:
    a, w = normal(2, 3, 7), normal(7, 4, seed=1)
    layer = BinaryDense(4, method=with_scale(scale))
    out = layer.apply({"params": {"latent_kernel": w}}, a)
    np.testing.assert_allclose(out, signs(a) @ (signs(w) * scale_of(w, scale)), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("kernel", "stride", "given", "border"),
    [
        ((3, 3), 1, 0, ((0, 0), (0, 0))),
        ((2, 3), 2, 1, ((1, 1), (1, 1))),
        ((3, 1), 2, [[0, 2], (1, 0)], ((0, 2), (1, 0))),
    ],
)
def test_a_border_is_as_wide_as_it_is_told(kernel, stride, given, border) -> None:
    a, w = normal(2, 5, 6, 3), normal(*kernel, 3, 4, seed=1)
    layer = BinaryConv(4, kernel, stride, given, method=NO_SCALE)
    out = jax.jit(layer.apply)({"params": {"latent_kernel": w}}, a)
    np.testing.assert_array_equal(out, conv(signs(a), signs(w), stride, border))


def test_a_border_pixel_sees_zeros() -> None:
    # Padding before binarisation would count all nine positions everywhere, some of them as -1.
    layer = BinaryConv(1, method=NO_SCALE)
    params = {"params": {"latent_kernel": np.ones((3, 3, 2, 1), np.float32)}}
    out = jax.jit(layer.apply)(params, np.ones((1, 3, 3, 2), np.float32))
    np.testing.assert_array_equal(out[0, :, :, 0], 2 * np.array([[4, 6, 4], [6, 9, 6], [4, 6, 4]]))


@pytest.mark.parametrize("factor", [0.01, 7.0])
def test_without_a_scale_only_the_signs_of_latent_weights_matter(factor: float) -> None:
    a, w = normal(2, 7), normal(7, 4, seed=1)
    layer = BinaryDense(4, method=NO_SCALE)
    out = layer.apply({"params": {"latent_kernel": factor * w}}, a)
    np.testing.assert_array_equal(out, layer.apply({"params": {"latent_kernel": w}}, a))


def test_full_precision_is_the_convolution_of_flax() -> None:
    a = normal(2, 5, 5, 3)
    ours = BinaryConv(4, (3, 3), 2, method="full_precision")
    assert jax.eval_shape(ours.init, KEY, a)["params"].keys() == {"kernel"}
    theirs = nn.Conv(4, (3, 3), 2, padding=1, use_bias=False)
    variables = {"params": {"kernel": normal(3, 3, 3, 4, seed=1)}}
    ours_out, theirs_out = jax.jit(lambda v: (ours.apply(v, a), theirs.apply(v, a)))(variables)
    np.testing.assert_allclose(ours_out, theirs_out, rtol=0, atol=1e-5)


# Methods whose operands are nothing but scaled signs.
@pytest.mark.parametrize(
    "name", ["full_precision", "identity", "ste", "bireal", "bnn_plus", "dsq", "fda"]
)
def test_gradients_are_those_of_a_smooth_layer_times_the_slopes(name: str) -> None:
    method = without_noise(make_method(name))
    a, w = 0.7 * normal(2, 4, 5, 3), 0.7 * normal(3, 3, 3, 4, seed=1)
    g = normal(2, 2, 3, 4, seed=2)
    progress, stride = 0.37, 2

    def slope_and_operand(quantizer: Quantizer | None, x: np.ndarray):
        if quantizer is None:
            return 1.0, x
        scale = scale_of(x, quantizer.scale)
        slope = np.asarray(quantizer.estimator.slope(jnp.asarray(x), jnp.float32(progress)))
        # The scale multiplies the gradient, or not even that, but none flows through it.
        return (scale if quantizer.scale_in_gradient else 1.0) * slope, scale * signs(x)

    slope_a, binary_a = slope_and_operand(method.activation, a)
    slope_w, binary_w = slope_and_operand(method.weight, w)
    of_a, of_w = conv_gradients(binary_a, binary_w, g, stride)

    layer = BinaryConv(4, (3, 3), stride, method=method)
    param = "kernel" if method.weight is None else "latent_kernel"

    @jax.jit
    def gradients(a, w):
        def loss(a, w):
            out = layer.apply({"params": {param: w}}, a, train=True, progress=progress)
            return jnp.sum(out * g)

        return jax.grad(loss, argnums=(0, 1))(a, w)

    ours_a, ours_w = gradients(a, w)
    np.testing.assert_allclose(ours_a, of_a * slope_a, rtol=0, atol=1e-4)
    np.testing.assert_allclose(ours_w, of_w * slope_w, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("scale", "values"), [("none", 1), ("layer", 1), ("filter", 4)])
@pytest.mark.parametrize("method", ["ste", "fda"])
def test_effective_weights_are_two_valued_at_inference(
    method: str, scale: str, values: int
) -> None:
    layer = BinaryConv(4, method=make_method(method, scale=scale))
    a = normal(1, 3, 3, 2)
    w = normal(3, 3, 2, 4, seed=1)
    assert "effective_weights" not in jax.eval_shape(layer.init, KEY, a)
    # No parameters of a noise module are needed at inference.
    apply = jax.jit(lambda w: layer.apply({"params": w}, a, mutable=["effective_weights"]))
    (weights,) = apply({"latent_kernel": w})[1]["effective_weights"]["kernel"]
    np.testing.assert_array_equal(np.sign(weights), signs(w))
    per_filter = np.abs(weights).reshape(-1, 4)
    assert np.all(per_filter == per_filter[0])
    assert len(set(per_filter[0].tolist())) == values
    np.testing.assert_allclose(per_filter[0], scale_of(w, scale) * np.ones(4), rtol=1e-6)


@pytest.mark.parametrize("layer", [BinaryConv, BinaryDense])
def test_bfloat16_computes_with_float32_latent_weights(layer: type[nn.Module]) -> None:
    a = normal(2, 3, 3, 8)
    narrow, wide = layer(4, dtype=jnp.bfloat16), layer(4)
    params = jax.jit(narrow.init)(KEY, a)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}

    def loss(params, a):
        out = narrow.apply({"params": params}, a, train=True, progress=0.2)
        return out.sum(), out

    gradients, out = jax.eval_shape(jax.grad(loss, has_aux=True), params, a)
    assert out.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype(jnp.float32)}
    exact, rounded = jax.jit(lambda v: (wide.apply(v, a), narrow.apply(v, a)))({"params": params})
    exact, rounded = np.asarray(exact), np.asarray(rounded.astype(jnp.float32))
    np.testing.assert_allclose(rounded, exact, rtol=0, atol=0.01 * np.max(np.abs(exact)))


def test_sizes_are_numbers_or_pairs():
    a = jax.random.normal(KEY, (1, 5, 5, 2))
    pairs = BinaryConv(3, (5, 5), 2, method=NO_SCALE)
    variables = pairs.init(KEY, a)
    for kernel_size, strides in ((5, (2, 2)), ([5, 5], 2), (np.int64(5), np.array([2, 2]))):
        conv = BinaryConv(3, kernel_size, strides, method=NO_SCALE)
        np.testing.assert_array_equal(conv.apply(variables, a), pairs.apply(variables, a))


@pytest.mark.parametrize(
    ("sizes", "shape", "message"),
    [
        ({"strides": (1, 2)}, (1, 5, 5, 2), r"strides are \(1, 2\): use the same"),
        ({"strides": 0}, (1, 5, 5, 2), "strides is 0: use a whole number >= 1"),
        ({"kernel_size": (3,)}, (1, 5, 5, 2), r"kernel_size is \(3,\): use .* or a pair"),
        ({"padding": -1}, (1, 5, 5, 2), "padding is -1: use whole numbers >= 0"),
        ({"padding": (1, 1)}, (1, 5, 5, 2), r"padding is \(1, 1\): use .* or None"),
        ({"padding": "SAME"}, (1, 5, 5, 2), "padding is SAME: use .* or None"),
        ({"padding": ((1.0, 1), (1, 1))}, (1, 5, 5, 2), "padding is .*: use whole numbers >= 0"),
        ({"kernel_size": 2.5}, (1, 5, 5, 2), "kernel_size is 2.5: use a whole number >= 1"),
        ({"kernel_size": None}, (1, 5, 5, 2), "kernel_size is None: use a whole number >= 1"),
        ({"kernel_size": "33"}, (1, 5, 5, 2), "kernel_size is 33: use a whole number >= 1"),
        ({"strides": (1.5, 1.5)}, (1, 5, 5, 2), "strides is .*: use a whole number >= 1"),
        ({"padding": 0}, (1, 2, 5, 2), "2 by 5 pixels .* hold no kernel of 3 by 3"),
        ({}, (5, 5, 2), r"shape \(5, 5, 2\), but BinaryConv takes .* a\[None\]"),
    ],
)
def test_what_a_convolution_cannot_take_is_refused(sizes, shape, message):
    with pytest.raises(ValueError, match=message):
        BinaryConv(3, **sizes).init(KEY, jnp.zeros(shape))


def test_a_border_may_be_a_number_of_numpys():
    a = jax.random.normal(KEY, (1, 5, 5, 2))
    variables = BinaryConv(3, method=NO_SCALE).init(KEY, a)
    wanted = BinaryConv(3, padding=0, method=NO_SCALE).apply(variables, a)
    border = BinaryConv(3, padding=np.int64(0), method=NO_SCALE)
    np.testing.assert_array_equal(border.apply(variables, a), wanted)


@pytest.mark.parametrize("layer", [BinaryConv, BinaryDense])
@pytest.mark.parametrize("features", [0, -1, 2.0, "8", None])
def test_a_number_of_features_that_is_none_is_refused(layer, features):
    with pytest.raises(ValueError, match=r"features is .*: use a whole number >= 1"):
        layer(features).init(KEY, jnp.zeros((1, 4, 4, 2)))


def test_a_scalar_is_nothing_to_multiply():
    with pytest.raises(ValueError, match=r"takes \(..., inputs\): add the axis"):
        BinaryDense(3).init(KEY, jnp.float32(1))


@pytest.mark.parametrize("layer", [BinaryConv(3), BinaryDense(3)])
def test_a_progress_for_each_example_is_refused(layer):
    """It would be broadcast against channels."""
    a = jnp.zeros((2, 4, 4, 2))
    variables = initialized(layer, a)
    with pytest.raises(ValueError, match=r"progress has shape \(2,\).*pass a scalar"):
        layer.apply(variables, a, progress=jnp.zeros(2))
    with pytest.raises(ValueError, match=r"progress has shape \(2,\).*pass a scalar"):
        jax.eval_shape(lambda p: layer.apply(variables, a, progress=p), jnp.zeros(2))


@pytest.mark.parametrize("dtype", ["float32", np.dtype("float32"), np.float32])
def test_a_dtype_by_its_name_computes_the_same(dtype):
    a = jax.random.normal(KEY, (2, 5, 5, 16))
    wanted = BinaryConv(16, method="ste")
    variables = wanted.init(KEY, a)
    named = BinaryConv(16, method="ste", dtype=dtype)
    np.testing.assert_array_equal(named.apply(variables, a), wanted.apply(variables, a))


@pytest.mark.parametrize("layer", [BinaryConv(3), BinaryDense(3)])
def test_training_needs_the_progress(layer):
    """Without it the noise module would be silent and every schedule at its end."""
    a = jnp.zeros((1, 4, 4, 2))
    variables = initialized(layer, a)
    with pytest.raises(ValueError, match="pass progress=step / total_steps"):
        layer.apply(variables, a, train=True)
    np.testing.assert_array_equal(layer.apply(variables, a), layer.apply(variables, a, progress=1))


@pytest.mark.parametrize("layer", [BinaryConv(3), BinaryDense(3)])
@pytest.mark.parametrize("progress", [100, -0.1, np.float32(1.5), jnp.array(2.0), float("nan")])
def test_a_progress_that_is_no_share_is_refused_where_it_is_known(layer, progress):
    a = jnp.zeros((1, 4, 4, 2))
    variables = initialized(layer, a)
    with pytest.raises(ValueError, match=r"lies in \[0, 1\]: pass step / total_steps"):
        layer.apply(variables, a, train=True, progress=progress)
    jax.eval_shape(lambda p: layer.apply(variables, a, train=True, progress=p), 0.5)
    jax.eval_shape(lambda: layer.apply(variables, a, train=True, progress=1 + 1e-7))


@pytest.mark.parametrize(
    "method",
    [
        *("ste", "dorefa", "xnor_net", "irnet", "reactnet", "dsq_learned", "pcnn"),
        *("binaryconnect", "proxconnect", "reverse_proxconnect", "proxquant", "bnn_plus_plus"),
        "abc_net",
    ],
)
@pytest.mark.parametrize("train", [False, True])
def test_a_scale_multiplies_whole_sums_of_signs(method, train, key):
    # 2 x 2 x 16 products of -1 and 1: many of their sums are 0, and are to be it exactly.
    knobs = {"learnable": True} if method == "dsq_learned" else {}
    method = make_method(method.removesuffix("_learned"), **knobs)
    layer = BinaryConv(features=32, kernel_size=2, padding=0, method=method)
    images = jax.random.normal(key, (2, 8, 8, 16))
    variables = jax.jit(layer.init)(jax.random.key(1), images)
    changed = [*variables, "effective_weights", "penalties"]
    apply = functools.partial(layer.apply, train=train, progress=1.0, mutable=changed)
    y, updates = jax.jit(apply)(variables, images)
    kernel = np.asarray(updates["effective_weights"]["kernel"][0])
    scale = np.abs(kernel).max((0, 1, 2))
    np.testing.assert_array_equal(np.abs(kernel), np.broadcast_to(scale, kernel.shape))
    sums = conv(signs(np.asarray(images)), np.sign(kernel), border=((0, 0), (0, 0)))
    np.testing.assert_array_equal(y, sums.astype(np.float32) * scale)
    assert 0.05 < np.mean(np.asarray(y) == 0) < 0.2


@pytest.mark.parametrize("scale", ["layer", "filter"])
def test_trained_scales_of_both_operands_multiply_whole_sums_of_signs(scale, key):
    method = make_method("abc_net", scale=scale)
    layer = BinaryConv(features=32, kernel_size=2, padding=0, method=method)
    images = jax.random.normal(key, (2, 8, 8, 16))
    params = dict(layer.init(jax.random.key(1), images)["params"])
    params["activation"] = {**params["activation"], "scale": jnp.array([0.7])}
    changed = ["effective_weights"]
    y, updates = layer.apply({"params": params}, images, True, 0.5, mutable=changed)
    kernel = np.asarray(updates["effective_weights"]["kernel"][0])
    sums = conv(signs(np.asarray(images)), np.sign(kernel), border=((0, 0), (0, 0)))
    expected = sums.astype(np.float32) * (np.float32(0.7) * np.abs(kernel).max((0, 1, 2)))
    np.testing.assert_array_equal(y, expected)
    assert 0.05 < np.mean(np.asarray(y) == 0) < 0.2


@pytest.mark.parametrize(
    "method", ["ste", "dorefa", "proxconnect", "bnn_plus_plus", "abc_net", "dorefa_of_scaled"]
)
@pytest.mark.parametrize("progress", [0.5, 1.0])
def test_a_scale_outside_of_the_sums_changes_no_derivative(method, progress):
    """In float64, against the convolution of what the quantizers make as numbers."""
    activation = make_method("abc_net").activation if method.endswith("_of_scaled") else None
    method = make_method(method.removesuffix("_of_scaled"))
    method = dataclasses.replace(method, activation=activation or method.activation)
    layer = BinaryConv(16, method=method, dtype=np.float64)
    random = np.random.default_rng(0)

    def whole(params, a):
        operands = []
        for name, x in (("weight", params["latent_kernel"]), ("activation", a)):
            quantizer = getattr(method, name)
            if isinstance(quantizer, Quantizer):
                ordinary = WeightQuantizer if name == "weight" else ActivationQuantizer
                quantizer = ordinary(quantizer)
            own = {"params": params.get(name, {})}
            operands.append(quantizer.apply(own, x, train=True, progress=progress))
        w, x = operands
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def split(params, a):
        return layer.apply({"params": params}, a, train=True, progress=progress)

    def both_orders(product, arguments, along):
        def gradient(arguments):
            return jax.grad(lambda of: jnp.sum(jnp.sin(product(*of))))(arguments)

        _, pull_back = jax.vjp(gradient, arguments)
        return gradient(arguments), pull_back(along)

    with jax.enable_x64(True):
        a = jnp.asarray(random.normal(size=(2, 5, 5, 16)))
        shapes = jax.eval_shape(layer.init, KEY, a)["params"]
        arguments, along = (
            jax.tree.map(lambda like: jnp.asarray(random.normal(0.3, 0.3, like.shape)), (shapes, a))
            for _ in range(2)
        )
        ours, expected = (
            jax.jit(both_orders, static_argnums=0)(product, arguments, along)
            for product in (split, whole)
        )
        for one, other in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-10 * np.abs(other).max())


class Own(nn.Module):
    """Signs of one's own, with a scale apart."""

    scale: float | tuple[float, ...]
    in_gradient: bool = True

    def __call__(self, x, *, train, progress):
        scale = jnp.array(self.scale) if isinstance(self.scale, tuple) else self.scale
        return ScaledOperand(ops.binarize(x, ops.Identity(), progress), scale, self.in_gradient)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("weight", "activation", "words"),
    [
        (Own((0.3, 0.3)), Own(0.7), r"scale has shape \(2,\), but 3 filters take"),
        (Own(0.3), Own((1.0, 2.0, 3.0)), r"activations has shape \(3,\) .* give one"),
        (Own(0.3), Own(0.7, in_gradient=False), "scale_in_gradient=False, but sums over channels"),
    ],
)
def test_a_scale_that_sums_cannot_be_multiplied_by_is_refused(weight, activation, words, dtype):
    method = Method(weight=weight, activation=activation)
    for layer in (BinaryConv(3, method=method, dtype=dtype), BinaryDense(3, method, dtype)):
        with pytest.raises(ValueError, match=words):
            jax.eval_shape(layer.init, KEY, jnp.ones((1, 4, 4, 3)))


def test_a_module_of_ones_own_may_keep_its_scale_apart(key):
    layer = BinaryConv(features=16, method=Method(weight=Own(0.3), activation=Own(0.7)))
    images = jax.random.normal(key, (2, 8, 8, 16))
    variables = layer.init(jax.random.key(1), images)
    y, pull_back = jax.vjp(lambda w: layer.apply(w, images, True, 0.5), variables)
    kernel, a = (signs(np.asarray(x)) for x in (variables["params"]["latent_kernel"], images))
    scale = np.float32(0.7) * np.float32(0.3)
    np.testing.assert_array_equal(y, conv(a, kernel).astype(np.float32) * scale)
    of_w = pull_back(jnp.ones_like(y))[0]["params"]["latent_kernel"]
    expected = 0.21 * conv_gradients(a, kernel, np.ones(y.shape))[1]
    np.testing.assert_allclose(of_w, expected, rtol=1e-5, atol=1e-5)


def test_the_slope_behind_a_sum_of_0_is_no_matter_of_the_order_of_summing(key, monkeypatch):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(2):
                x = BinaryConv(features=16, method="ste")(x, True, 0.5)
                x = nn.PReLU(negative_slope_init=0.25)(x)
            return jnp.mean(x**2 * jnp.arange(16))

    network, images = Network(), jax.random.normal(key, (2, 8, 8, 16))
    variables = jax.jit(network.init)(jax.random.key(1), images)

    def gradient():
        return jax.jit(jax.grad(lambda v: network.apply(v, images)))(variables)

    by_kernels = gradient()
    monkeypatch.setattr(native, "kernels", lambda: None)
    jax.clear_caches()
    for one, other in zip(*map(jax.tree.leaves, (by_kernels, gradient())), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max())

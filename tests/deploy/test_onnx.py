"""Networks as ONNX models answer in another runtime as JAX has them answer."""

import collections
import json
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from jax import lax
from onnx import numpy_helper

from fda_jax import deploy, models, ops
from fda_jax.deploy import onnx_form
from fda_jax.layers import make_method
from tests.deploy.test_freezing import (
    MEAN,
    NETWORKS,
    SHAPE,
    STD,
    logits,
    network_of,
    pictures,
    several,
    tiny,
    trained,
)


def run(model, images):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (answers,) = session.run(None, {"images": images})
    return answers


def converted(model, variables, shape, **facts):
    channels = shape[-1]
    return deploy.to_onnx(
        model, variables, shape, mean=MEAN * channels, std=STD * channels, facts=facts
    )


def assert_same_answers(made, model, variables, shape, key):
    images = pictures(shape, key, 4)
    wanted = logits(model, variables, images)
    for number in (0, 1, 4):
        # Rounding aside; a sign that differed would change a logit by far more.
        answers = run(made, images[:number])
        np.testing.assert_allclose(answers, wanted[:number], atol=1e-5 * np.abs(wanted).max())


@several
def test_every_method_answers_in_another_runtime_as_its_model(method, key):
    model = tiny(method=make_method(method))
    variables = trained(model, SHAPE, key)
    assert_same_answers(converted(model, variables, SHAPE), model, variables, SHAPE, key)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_network_answers_in_another_runtime(name, key):
    model, shape = network_of(name)
    variables = trained(model, shape, key)
    assert_same_answers(converted(model, variables, shape), model, variables, shape, key)


@pytest.mark.slow
def test_option_a_and_several_widths_answer_in_another_runtime(key):
    model = models.ResNet(
        stage_sizes=(1, 1), widths=(4, 8), num_classes=3, method=make_method("fda")
    )
    variables = trained(model, SHAPE, key)
    assert_same_answers(converted(model, variables, SHAPE), model, variables, SHAPE, key)


def test_binary_weights_lie_in_the_file_as_bits(key):
    model = models.ResNet(stage_sizes=(1,), widths=(64,), num_classes=3, method=make_method("fda"))
    variables = trained(model, SHAPE, key)
    made = converted(model, variables, SHAPE)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    planes = {name: array for name, array in held.items() if name.endswith("/planes")}
    binary = models.count_parameters(variables["params"]).binary
    assert sum(array.nbytes for array in planes.values()) == binary // 8
    assert all(array.dtype == np.uint8 for array in planes.values())
    assert max(array.nbytes for name, array in held.items() if name not in planes) < binary // 8
    assert "params/stem/kernel" in held
    assert made.ByteSize() < 4 * binary / 10


def test_the_model_says_what_it_is(key):
    model = tiny(method=make_method("ste"))
    variables = trained(model, SHAPE, key)
    made = converted(model, variables, SHAPE, network="tiny", classes=["a", "b", "c"], seed=3)
    facts = {entry.key: entry.value for entry in made.metadata_props}
    assert facts["network"] == "tiny"
    assert json.loads(facts["classes"]) == ["a", "b", "c"]
    assert json.loads(facts["seed"]) == 3
    (images,), (answers,) = made.graph.input, made.graph.output
    sizes = [dim.dim_param or dim.dim_value for dim in images.type.tensor_type.shape.dim]
    assert (images.name, sizes) == ("images", ["batch", *SHAPE])
    sizes = [dim.dim_param or dim.dim_value for dim in answers.type.tensor_type.shape.dim]
    assert (answers.name, sizes) == ("logits", ["batch", 3])
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [(opset.domain, opset.version) for opset in made.opset_import] == [("", 18)]


def test_a_network_of_16_bit_arithmetic_computes_in_32(key):
    model = tiny(method=make_method("fda"), dtype=jnp.bfloat16)
    variables = trained(model, SHAPE, key)
    made = converted(model, variables, SHAPE)
    assert_same_answers(made, model.clone(dtype=jnp.float32), variables, SHAPE, key)


def test_weights_that_are_not_finite_are_refused(key):
    model = tiny(method=make_method("ste"))
    variables = trained(model, SHAPE, key)
    variables["params"]["stem"]["kernel"] = jnp.full_like(
        variables["params"]["stem"]["kernel"], jnp.nan
    )
    with pytest.raises(ValueError, match=r"stem/kernel holds .* not finite"):
        converted(model, variables, SHAPE)


def convolved(x):
    """(batch, 4, 3) numbers as images of a channel, seen by two filters."""
    kernel = np.random.default_rng(1).standard_normal((3, 3, 1, 2)).astype(np.float32)
    return lax.conv_general_dilated(
        x[..., None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


CONSTANT = np.arange(6, dtype=np.float32).reshape(3, 2)
# Parts of programs that networks may be made of, (batch, 4, 3) numbers in, (batch, ...) out.
PARTS = {
    "products with batches": lambda x: jnp.einsum("bij,bkj->bik", x, x + 1.0),
    "products along a shared axis": lambda x: jnp.einsum(
        "bji,ij->bj", x, np.arange(12.0, dtype=np.float32).reshape(3, 4)
    ),
    "a matrix product": lambda x: x @ CONSTANT,
    "a product over the middle": lambda x: jnp.einsum("bij,ik->bjk", x, jnp.ones((4, 5))),
    "products with two batches": lambda x: jnp.einsum(
        "bhij,bhkj->bhik", x.reshape(-1, 2, 2, 3), x.reshape(-1, 2, 2, 3) + 1.0
    ),
    "products that leave several axes": lambda x: jnp.einsum(
        "hijk,bhmk->bhijm", jnp.arange(36.0).reshape(2, 2, 3, 3), x.reshape(-1, 2, 2, 3)
    ),
    "sums over two axes": lambda x: jnp.einsum("bij,ijk->bk", x, jnp.arange(24.0).reshape(4, 3, 2)),
    "a matrix from the left": lambda x: jnp.einsum("ki,bij->bkj", jnp.arange(8.0).reshape(2, 4), x),
    "a sum of products": lambda x: jnp.einsum("bij,bij->b", x, x),
    "products of every two images": lambda x: jnp.einsum("bij,cik->bjck", x, x + 1.0).sum((2, 3)),
    "turned round": lambda x: lax.rev(x, (1, 2)).transpose(0, 2, 1),
    "cut": lambda x: lax.slice_in_dim(x, 1, 4, 2, axis=1),
    "padded": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 1)), constant_values=-3.0),
    "split": lambda x: jnp.concatenate(jnp.split(x, [1, 3], axis=1)[::-1], axis=1),
    "joined with what is known": lambda x: jnp.concatenate(
        [x, jnp.broadcast_to(jnp.asarray([1.0, 2.0, 3.0]), (x.shape[0], 2, 3))], axis=1
    ),
    "sum of what is spread": lambda x: jnp.sum(
        jnp.broadcast_to(jnp.max(x, axis=1, keepdims=True), (x.shape[0], 4, 3)), axis=1
    ),
    "known alone": lambda x: jnp.broadcast_to(jnp.asarray([1.0, 2.0]), (x.shape[0], 2)),
    "the number of images": lambda x: x * x.shape[0] + jnp.sum(x, axis=0) / x.shape[0],
    "in another shape": lambda x: x.reshape(-1, 2, 6),
    "chosen": lambda x: jnp.where((x > 0) & ~(x > 1) | (x != x), x, -x),
    "rounded": lambda x: jnp.round(x * 0.5),
    "powers": lambda x: x**3 + jnp.square(x) + lax.rsqrt(jnp.abs(x) + 1.0),
    "classes": lambda x: jax.nn.softmax(x, axis=-1),
    "smooth": lambda x: jax.nn.gelu(x) + jax.nn.sigmoid(x) + lax.erf(x) + jnp.sin(x),
    "smooth near 0": lambda x: jnp.expm1(x / 1000) + jnp.log1p(jnp.abs(x)) + jax.nn.softplus(x),
    "smooth in other ways": lambda x: (
        jnp.cbrt(x) + jnp.exp2(x) + jnp.arctan(x) + jnp.cos(x) + jax.nn.gelu(x, approximate=False)
    ),
    "remainders": lambda x: lax.rem(x, 2.0) + lax.clamp(-1.0, x, 1.0),
    "truth": lambda x: (
        jnp.any(x > 0, axis=1) ^ jnp.all(x > -2, axis=1) ^ jnp.isfinite(jnp.log(jnp.abs(x))).any(1)
    ).astype(jnp.float32),
    "ends along an axis": lambda x: jnp.min(x, axis=1) * jnp.prod(x, axis=1),
    "places of ends": lambda x: jnp.argmax(x, axis=1) - jnp.argmin(x, axis=1).astype(jnp.float32),
    "sums so far": lambda x: jnp.cumsum(x, axis=1) + lax.cumsum(x, axis=2, reverse=True),
    "one element": lambda x: x[:, 2],
    "a part": lambda x: x[:, 1:3, :2] + lax.dynamic_slice_in_dim(x, 9, 2, axis=1)[..., 1:],
    "elements in another order": lambda x: x[:, ::-1][:, :, np.array([2, 0, 1, 1])],
    "a table of elements": lambda x: x[:, np.array([[0, 3, 1], [2, 2, 0]])],
    "windows of elements": lambda x: lax.gather(
        x,
        jnp.array([[0], [2]]),
        lax.GatherDimensionNumbers((0, 2, 3), (), (1,)),
        (x.shape[0], 2, 3),
    ),
    "repeated": lambda x: jnp.tile(x, (1, 2, 3)) * jnp.repeat(jnp.repeat(x, 2, 1), 3, 2),
    "stacked": lambda x: jnp.stack([x, -x], axis=2),
    "means of windows": lambda x: (
        nn.avg_pool(x, (3,), (2,), "SAME")
        + nn.avg_pool(x, (3,), (2,), "SAME", count_include_pad=False)
    ),
    "largest of windows": lambda x: nn.max_pool(
        x.reshape(-1, 2, 3, 2), (2, 2), (1, 1), [(0, 1), (1, 0)]
    ),
    "smallest of windows": lambda x: (
        -lax.reduce_window(
            x, np.inf, lax.min, (1, 2, 1), (1, 1, 1), "VALID", window_dilation=(1, 2, 1)
        )
    ),
    "computed again in training": jax.checkpoint(lambda x: jnp.sin(x) * x),
    "of 16 bits": lambda x: (x.astype(jnp.bfloat16) * jnp.bfloat16(2)).astype(jnp.float32),
    "behind a convolution": lambda x: (
        lax.rev(convolved(x), (2,))[:, 1:, :, :1]
        * jnp.pad(convolved(x), ((0, 0), (0, 0), (1, 0), (2, 1)))[:, 1:, :3, 3:]
    ),
    "ends behind a convolution": lambda x: (
        jnp.max(convolved(x) + x[..., None], axis=(1, 3))
        - jnp.sum(convolved(x), axis=(2, 1))[:, :1]
    ),
    "of two convolutions": lambda x: jnp.concatenate(
        [
            convolved(x) * jnp.array([2.0, 3.0]),
            -convolved(x.transpose(0, 2, 1)).transpose(0, 2, 1, 3),
        ],
        1,
    ),
    "choices behind a convolution": lambda x: jnp.where(
        jnp.any(convolved(x) > 0, axis=3, keepdims=True), convolved(x), x[..., None] + jnp.ones(2)
    ),
    "largest of slices": lambda x: (
        ops.max_pool(convolved(x), 2)[:, :2]
        + ops.max_pool(convolved(x), 3, stride=2, padding=1)[:, :, :1]
    ),
    "largest of other slices": lambda x: sum(
        jax.jit(function)(x)[:, :1, :1]
        for function in (
            lambda x: jnp.maximum(x[..., :2], x[..., 1:]),  # neighbouring channels
            lambda x: jnp.maximum(x[:, :2], x[:, 1:3]),  # not of all rows
            lambda x: jnp.maximum(x[:, :3], x[:, :3]),
            lambda x: jnp.maximum(jnp.maximum(x[:, :2], x[:, 2:]), x[:, 1:3]),
            lambda x: jnp.maximum(x[:, ::2], x[:, 1::2]),
            lambda x: x[:, 1:] - jnp.maximum(x[:, 1:], x[:, :3]),
        )
    ),
    "two straight parts": lambda x: (
        jax.nn.relu(x)
        + jnp.maximum(0.0, -x)
        + jnp.where(x > 0, x, jnp.array([0.1, 0.2, 0.3]) * x)
        + jnp.where(x >= 0, x, x * 0.25)
        + jnp.where(x < -1, -1.0, x)
        + jnp.where(x > 1, 1.0, x)
    ),
    "three straight parts": lambda x: (
        nn.hard_tanh(x) + jnp.where(x < -1, -1.0, jnp.where(x > 1, 1.0, x))
    ),
    "other choices": lambda x: (
        jnp.where(x > 0.5, x, 2.0 * x)
        + jnp.where(x > 0, x, 2.0 * x[:, ::-1])
        + jnp.where(x > 0, 1.0, x)
        + jnp.where(x <= 0, x, 2.0 * x)
        + jnp.where(x > 1, 1.0, jnp.where(x < 2, 2.0, x))
        + jnp.where(x[:, :1] > 0, x[:, :1], jnp.arange(4.0)[:, None] * x[:, :1])
    ),
    "ends": lambda x: jnp.clip(x, -1.0, 2.0) + jnp.sign(x) + jnp.floor(x) - jnp.ceil(x / 3),
}


def operators(made):
    return collections.Counter(node.op_type for node in made.graph.node)


@pytest.mark.parametrize(
    ("part", "wanted"),
    [
        ("largest of slices", {"Conv": 2, "MaxPool": 2, "Max": 0}),
        ("two straight parts", {"Relu": 2, "PRelu": 2, "Max": 1, "Min": 1, "Where": 0}),
        ("three straight parts", {"Clip": 1}),
        ("other choices", {"PRelu": 0, "Clip": 0}),
    ],
)
def test_compilers_see_the_operators_that_they_know(part, wanted):
    made = onnx_form.to_model(
        lambda _, images: PARTS[part](images.astype(jnp.float32) - 2.5), {}, (4, 3), {}
    )
    found = operators(made)
    assert {name: found[name] for name in wanted} == wanted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wanted", "most"),
    # In front of the first convolution and behind the last.
    [
        ("vgg_small", {"Conv": 6, "Clip": 6, "MaxPool": 3, "Max": 0}, 2),
        ("resnet18", {"Conv": 6, "PRelu": 4, "MaxPool": 1, "AveragePool": 1, "Max": 0}, 2),
    ],
)
def test_images_are_not_transposed_between_layers(name, wanted, most, key):
    model, shape = network_of(name)
    made = converted(model, trained(model, shape, key), shape)
    found = operators(made)
    assert {each: found[each] for each in wanted} == wanted
    kernels = {node.input[1] for node in made.graph.node if node.op_type == "Conv"}
    transposed = [node for node in made.graph.node if node.op_type == "Transpose"]
    assert sum(kernels.isdisjoint(node.output) for node in transposed) <= most


@pytest.mark.parametrize("part", PARTS)
def test_parts_of_programs_compute_the_same(part):
    def predict(_, images):
        return PARTS[part](images.astype(jnp.float32) - 2.5)

    made = onnx_form.to_model(predict, {}, (4, 3), {})
    for number in (1, 5):
        images = np.random.default_rng(0).integers(0, 6, (number, 4, 3)).astype(np.uint8)
        wanted = np.asarray(jax.jit(predict)(None, images))
        answers = run(made, images)
        assert answers.shape == wanted.shape
        np.testing.assert_allclose(answers, wanted, rtol=1e-5, atol=1e-6)
    assert run(made, images[:0]).shape == (0, *wanted.shape[1:])


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (lambda x: jnp.sort(x, axis=1), "computes with sort"),
        (lambda x: lax.reduce(x, 0.0, lambda a, b: a + b * b, (1,)), "computes with reduce,"),
        (lambda x: jnp.zeros((2 * x.shape[0], 3)), "the batch alone may vary"),
        (lambda x: lax.pad(x, 0.0, [(0, 0, 0), (0, 0, 1), (0, 0, 0)]), "between elements"),
        (lambda x: lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO), "to even numbers alone"),
        (lambda x: x[:, x.max((0, 2)).astype(int)], "picks elements where the images say"),
        (lambda x: lax.dynamic_slice_in_dim(x, x.max().astype(int), 1, 1), "cuts where the images"),
        (lambda x: x[0], "some images of the batch"),
        (lambda x: x[:, np.array([0, 1]), np.array([0, 1])], "several axes at once"),
        (lambda x: x.at[:, np.array([4])].get(mode="fill"), "elements 4 to 4 of 4"),
        (lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 1, 2), (1, 1, 1), "VALID"), "channels"),
        (lambda x: nn.avg_pool(x, (2,), (1,), [(2, 0)]), "outside of the images"),
        (
            lambda x: lax.reduce_window(
                x, 0.0, lax.add, (1, 2, 1), (1, 1, 1), "VALID", window_dilation=(1, 2, 1)
            ),
            "with gaps",
        ),
    ],
)
def test_what_has_no_form_is_refused_in_words(part, words):
    with pytest.raises(ValueError, match=words):
        onnx_form.to_model(lambda _, x: part(x.astype(jnp.float32)), {}, (4, 3), {})


def test_without_the_package_it_says_what_to_install(key, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    model = tiny(method=make_method("ste"))
    with pytest.raises(ValueError, match=r"pip install 'fda_jax\[onnx\]'"):
        converted(model, trained(model, SHAPE, key), SHAPE)


def test_the_layer_that_has_no_form_is_named():
    class Inner(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jax.jit(lambda x: jnp.sort(x, axis=1))(x)

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Inner(name="order")(x)

    with pytest.raises(ValueError, match=r"^Outer/order/?.* computes with sort"):
        onnx_form.to_model(lambda _, x: Outer().apply({}, x.astype(jnp.float32)), {}, (4, 3), {})

"""QONNX models say what is binary, and answer as the networks do, in QONNX's own tools too."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from fda_jax import data, deploy, layers, models, ops
from fda_jax.deploy import onnx_form, qonnx
from fda_jax.layers import make_method
from tests.conftest import REPOSITORY
from tests.deploy.test_freezing import (
    MEAN,
    METHODS_OF_A_BIT,
    METHODS_OF_OTHER_LEVELS,
    SHAPE,
    STD,
    logits,
    pictures,
    several,
    tiny,
    trained,
)


def converted(model, variables, shape=SHAPE):
    channels = shape[-1]
    return deploy.to_onnx(
        model, variables, shape, mean=MEAN * channels, std=STD * channels, qonnx=True
    )


def run(made, images):
    session = onnxruntime.InferenceSession(made.SerializeToString())
    (answers,) = session.run(None, {"images": images.astype(np.float32)})
    return answers


def of_signs(made):
    """Of every product: whether its images, and whether its weights, are signs, scaled or moved."""
    made_by = {name: node for node in made.graph.node for name in node.output}

    def ends_in_signs(name):
        node = made_by.get(name)
        while node is not None and node.op_type in ("Transpose", "Add", "Mul"):
            node = made_by.get(node.input[0], made_by.get(node.input[-1]))
        return node is not None and node.op_type == "BipolarQuant"

    products = [node for node in made.graph.node if node.op_type in ("Conv", "MatMul")]
    return [tuple(map(ends_in_signs, node.input)) for node in products]


@several
def test_a_model_of_every_method_says_what_is_binary_and_answers_as_the_network(method, key):
    model = tiny(method=make_method(method))
    variables = trained(model, SHAPE, key)
    made = converted(model, variables)
    images = pictures(SHAPE, key, 4)
    wanted = logits(model, variables, images)
    np.testing.assert_allclose(run(made, images), wanted, atol=1e-5 * np.abs(wanted).max())
    # AdaBin and ABC-Net have signs, moved and scaled.
    of_images = method not in METHODS_OF_OTHER_LEVELS - {"adabin", "abc_net"}
    layer = (of_images, method in METHODS_OF_A_BIT)
    assert of_signs(made) == [(False, False), layer, layer, (False, False)]


class Dense(nn.Module):
    """Binary throughout."""

    method: str = "fda"

    @nn.compact
    def __call__(self, x, train=False, progress=None):
        x = x.reshape(x.shape[0], -1)
        x = layers.BinaryDense(8, method=self.method)(x, train, progress)
        x = nn.BatchNorm(use_running_average=not train)(x)
        return layers.BinaryDense(3, method=self.method)(x, train, progress)


@pytest.mark.parametrize(
    "model",
    [
        models.ResNet(stage_sizes=(1, 1), widths=(8, 16), num_classes=3, method="fda"),
        models.VGGSmall(widths=(8, 16, 24), num_classes=3, method="binarynet"),
        Dense(),
    ],
)
def test_tools_of_qonnx_run_it_and_count_the_same(model, key):
    # An oracle that is not ours.
    pytest.importorskip("qonnx", reason="QONNX's tools: pip install qonnx")
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_datatypes import InferDataTypes
    from qonnx.util.cleanup import cleanup_model
    from qonnx.util.inference_cost import inference_cost

    variables = trained(model, SHAPE, key)
    theirs = ModelWrapper(converted(model, variables, SHAPE))
    theirs = cleanup_model(theirs, override_inpsize=(1, *SHAPE)).transform(InferDataTypes())
    (images,), (answers,) = theirs.graph.input, theirs.graph.output
    assert str(theirs.get_tensor_datatype(images.name)) == "UINT8"
    # hls4ml asks for the shape of every array.
    shaped = {described.name for described in theirs.graph.value_info}
    assert shaped >= {tensor.name for tensor in theirs.graph.initializer}
    for image in pictures(SHAPE, key, 2):
        given = {images.name: image[None].astype(np.float32)}
        answer = execute_onnx(theirs, given)[answers.name]
        wanted = logits(model, variables, image[None])
        np.testing.assert_allclose(answer, wanted, atol=1e-5 * np.abs(wanted).max())
    summary = models.summarize(model, SHAPE)
    cost = inference_cost(theirs, discount_sparsity=False)["total_cost"]
    assert cost["op_mac_BIPOLAR_BIPOLAR"] == summary.binary_macs
    assert cost["total_macs"] == summary.macs
    assert cost["total_bops"] == summary.ace


@pytest.mark.parametrize(
    ("signs", "of_zero"),
    [
        (lambda x: jnp.where(x > 0, 1.0, -1.0), -1),
        (lambda x: jnp.where(x >= 0, 1.0, -1.0), 1),
        (lambda x: jnp.where(x < 0, -2.0, 2.0), 2),
        (lambda x: jnp.where(x <= 0, -1.0, 1.0), -1),
        (lambda x: layers.ActivationQuantizer(make_method("ste").activation).apply(
            {}, x, train=False, progress=1.0), -1),
    ],
)  # fmt: skip
def test_signs_of_ones_own_are_seen_and_keep_their_sign_of_zero(signs, of_zero):
    def predict(_, images):
        return signs(images - 2.0)

    made = onnx_form.to_model(predict, {}, (4, 3), {}, qonnx=True)
    assert {node.op_type for node in made.graph.node} <= {"Sub", "Constant", "BipolarQuant"}
    images = np.random.default_rng(0).integers(0, 5, (2, 4, 3))
    answers = run(made, images)
    np.testing.assert_array_equal(answers, np.asarray(predict(None, images.astype(np.float32))))
    assert set(answers[images == 2]) == {of_zero}


@pytest.mark.parametrize(
    "choice",
    [
        lambda x: jnp.where(x > 1, 1.0, -1.0),
        lambda x: jnp.where(x > 0, 1.0, -2.0),
        lambda x: jnp.where(x > 0, -1.0, 1.0),
        lambda x: jnp.where(x.astype(jnp.int32) > 0, 1.0, -1.0),
        lambda x: jnp.where(x > 0, x, -x),
    ],
)
def test_other_choices_are_no_signs(choice):
    def predict(_, images):
        return choice(images - 2.0)

    made = onnx_form.to_model(predict, {}, (4, 3), {}, qonnx=True)
    assert "BipolarQuant" not in {node.op_type for node in made.graph.node}
    images = np.random.default_rng(0).integers(0, 5, (2, 4, 3))
    wanted = np.asarray(predict(None, images.astype(np.float32)))
    np.testing.assert_array_equal(run(made, images), wanted)


@pytest.mark.parametrize("geometry", ["matrix", "convolution", "transposed", "moved"])
def test_kernels_of_any_two_values_are_made_of_signs(geometry):
    random = np.random.default_rng(0)
    kernel = np.where(random.normal(size=(3, 3, 2, 4)) > 0, 1, -1).astype(np.float32)
    kernel[..., 0] = -1  # one value alone
    kernel = kernel * np.float32([0.5, 2.0, 0.25, 3.0])
    kernel += np.float32([0.0, 1.0, 0.0, 0.0]) * (geometry == "moved")
    if geometry != "convolution":
        kernel = kernel[0, 0]
    signs, scale, middle = qonnx.split(kernel)
    np.testing.assert_array_equal(scale * signs + middle, kernel)
    assert set(np.unique(signs)) == {-1, 1}
    assert np.any(middle) == (geometry == "moved")

    def predict(arrays, images):
        signs = arrays["layer/signs"]
        if geometry == "convolution":
            numbers = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(images, signs, (1, 1), "SAME", None, None, numbers)
        if geometry == "transposed":
            return images.reshape(-1, 4) @ signs.T
        if geometry == "moved":
            return images @ (signs * arrays["layer/scale"] + middle)
        return images @ signs * arrays["layer/scale"]

    arrays = {"layer/signs": signs, "layer/scale": scale}
    made = onnx_form.to_model(predict, arrays, (5, 4, 2), {}, qonnx=True)
    images = random.integers(0, 256, (2, 5, 4, 2))
    wanted = predict(arrays, images.astype(np.float32))
    np.testing.assert_allclose(run(made, images), wanted, rtol=1e-6, atol=1e-3)
    (node,) = (node for node in made.graph.node if node.op_type == "BipolarQuant")
    (of_scale,) = (each for each in made.graph.node if each.output[0] == node.input[1])
    (scale,) = (helper.get_attribute_value(attribute) for attribute in of_scale.attribute)
    assert (node.input[0], scale) == ("layer/signs", 1)


def test_each_node_has_an_array_of_its_own_and_nothing_is_left_over(key):
    model = tiny(method=make_method("fda"))
    made = converted(model, trained(model, SHAPE, key))
    held = [tensor.name for tensor in made.graph.initializer]
    read = [name for node in made.graph.node for name in node.input if name in held]
    assert sorted(read) == sorted(held)
    made_by = [name for node in made.graph.node for name in node.output]
    used = {name for node in made.graph.node for name in node.input} | {"logits"}
    assert used.issuperset(made_by)
    onnx.checker.check_model(made, full_check=True)


class Sequence(nn.Module):
    """Binary layers between a real one and another; half of all norms turn the sign round."""

    border: int | None = None  # of convolutions, or None for a dense network

    @nn.compact
    def __call__(self, x, train=False, progress=None):
        def norm(x):
            turned = nn.initializers.constant(jnp.resize(jnp.array([1.0, -1.0]), x.shape[-1]))
            return nn.BatchNorm(use_running_average=not train, scale_init=turned)(x)

        if self.border is not None:
            x = norm(nn.Conv(8, (3, 3))(x))
            x = layers.BinaryConv(16, method="fda", padding=self.border)(x, train, progress)
            x = norm(ops.max_pool(x, 2))
        x = norm(nn.Dense(32)(x.reshape(x.shape[0], -1)))
        for _ in range(2):
            x = norm(layers.BinaryDense(32, method="fda")(x, train, progress))
        return nn.Dense(10)(nn.relu(x))


@pytest.fixture(scope="module")
def recipes():
    """The two blocks of Python of docs/shipping.md's section on hls4ml, the first one run."""
    pytest.importorskip("hls4ml", reason="pip install hls4ml==1.3.0")
    text = (REPOSITORY / "docs" / "shipping.md").read_text()
    blocks = re.findall(r"```python\n(import hls4ml.*?|from hls4ml.*?)```", text, re.DOTALL)
    first, second = blocks
    exec(first, made := {})
    return made["to_hls"], second


@pytest.mark.slow
@pytest.mark.parametrize("border", [None, 0, 1])
def test_hls4ml_makes_a_network_with_the_same_answers(border, recipes, key, tmp_path, monkeypatch):
    # An oracle that is not ours.
    to_hls, two_bits = recipes
    if border:
        from hls4ml.model.optimizer.passes import bipolar_quant_opt

        for name in ("BinaryQuantizer", "XnorPrecisionType"):  # set back afterwards
            monkeypatch.setattr(bipolar_quant_opt, name, getattr(bipolar_quant_opt, name))
        exec(two_bits, {})
    model = Sequence(border)
    variables = trained(model, SHAPE, key)
    onnx.save(converted(model, variables), tmp_path / "network.onnx")
    images = data.load("digits", dir=tmp_path).test.images
    network = to_hls(str(tmp_path / "network.onnx"), SHAPE, str(tmp_path / "hls"))
    answers = network.predict(images.astype(np.float32))
    wanted = logits(model, variables, images)
    np.testing.assert_array_equal(answers.argmax(-1), wanted.argmax(-1))
    np.testing.assert_allclose(answers, wanted, atol=1e-5 * np.abs(wanted).max())

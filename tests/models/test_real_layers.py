"""Hidden layers that stay real, by patterns of their names."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from fda_jax import deploy, models
from fda_jax.layers import METHODS
from tests.deploy.test_freezing import (
    MEAN,
    STD,
    assert_costs,
    assert_same_answers,
    can_count,
    frozen,
    pictures,
    trained,
)
from tests.deploy.test_qonnx import of_signs

SHAPE = (8, 8, 1)
ONE = "stage1_block1/conv1"


def network(*patterns, method="fda"):
    return models.build("resnet8", num_classes=3, method=method, real_layers=patterns)


def kernels(params):
    return {
        "/".join(path[:-1]): path[-1]
        for path in flatten_dict(params)
        if path[-1].endswith("kernel")
    }


@pytest.mark.parametrize("method", ["fda", "rbnn", "reactnet"])
def test_a_layer_that_stays_real_is_a_plain_convolution_of_what_it_sees(method, key):
    model = network(ONE, method=method)
    variables = trained(model, SHAPE, key)
    kinds = kernels(variables["params"])
    assert kinds[ONE] == "kernel"
    assert set(variables["params"]["stage1_block1"]["conv1"]) == {"kernel"}
    assert list(kinds.values()).count("latent_kernel") == 5

    @jax.jit
    def look(variables, images):
        seen = {}

        def keep(call, args, kwargs, context):
            output = call(*args, **kwargs)
            if "/".join(context.module.path) == ONE and context.method_name == "__call__":
                seen[ONE] = args[0], output
            return output

        with nn.intercept_methods(keep):
            model.apply(variables, images)
        return seen[ONE]

    before, after = look(variables, jax.random.normal(key, (2, *SHAPE)))
    kernel = variables["params"]["stage1_block1"]["conv1"]["kernel"]
    wanted = jax.lax.conv_general_dilated(
        before, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(after, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "full_precision"])
def test_with_all_layers_real_any_method_has_the_parameters_of_none(method):
    def parameters(model):
        images = jnp.zeros((1, *SHAPE))
        shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
        return {path: leaf.shape for path, leaf in flatten_dict(shapes).items()}

    def products(shapes):  # beside nonlinearities, which are the method's
        return {path: shape for path, shape in shapes.items() if path[-1].endswith("kernel")}

    all_real = products(parameters(network("*", method=method)))
    assert all_real == products(parameters(network(method="full_precision")))


def test_a_network_that_is_partly_real_is_shipped_and_counts_its_bits(key):
    model = network("stage2_*", ONE)
    variables = trained(model, SHAPE, key)
    made = frozen(model, variables, SHAPE)
    assert (made.bit_program is not None) == can_count
    assert_same_answers(made, model, variables, pictures(SHAPE, key))
    bits = {layer: facts["bits"] for layer, facts in made.facts["binary"].items()}
    real = {ONE, "stage2_block1/conv1", "stage2_block1/conv2"}
    assert bits == {layer: None if layer in real else 1 for layer in bits}
    summary = assert_costs(made, model, SHAPE)
    assert summary.binary_macs == 9 * (64 * 16 * 16 + 4 * 32 * 64 + 4 * 64 * 64)
    qonnx = deploy.to_onnx(model, variables, SHAPE, mean=MEAN, std=STD, qonnx=True)
    order = [layer not in real for layer in bits]
    assert of_signs(qonnx) == [(False, False), *((each, each) for each in order), (False, False)]


def test_patterns_are_of_whole_paths_and_one_that_says_nothing_is_refused():
    model = network("conv1", "stage1_block1")
    with pytest.raises(ValueError, match=r"'conv1', but no hidden layer of resnet8 is that: they"):
        models.check_network("resnet8", model, SHAPE, num_classes=3, method=model.method)

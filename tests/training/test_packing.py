"""Packed trees: nothing is lost, gradients are packed too, and a packed step is the same step."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax import models
from fda_jax.layers import make_method
from fda_jax.training.optimizer import make_optimizer
from fda_jax.training.packing import Packed, pack, pack_parameters, unpacked
from fda_jax.training.state import init_state
from fda_jax.training.step import Batch, Preprocessing, make_train_step

TREE = {
    "conv1": {"latent_kernel": jnp.arange(6.0).reshape(1, 2, 3)},
    "classifier": {"kernel": jnp.ones((2, 2)), "bias": jnp.array([7.0, 8.0])},
    "norm1": {"scale": jnp.array(3.0)},
}
SHAPE = (8, 8, 1)
# Latent rules, penalties, modules of their own, parameters and state of a quantizer.
METHODS = [
    "fda",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("proxquant", "xnor_net_pp", "bnn_plus", "bop", "adabin")
    ),
]


def test_a_packed_tree_holds_one_vector_for_each_group_and_gives_the_tree_back():
    packed = pack_parameters(TREE)
    assert {name: vector.shape for name, vector in packed.vectors.items()} == {
        "binary": (6,),
        "norm": (1,),
        "real": (6,),
    }
    chex.assert_trees_all_equal(packed.tree(), TREE)
    assert pack_parameters(packed) is packed
    assert unpacked(TREE) is TREE


def test_arrays_of_another_dtype_keep_it_in_a_vector_of_their_own():
    tree = {"mean": jnp.ones(2), "bits": jnp.array([1, 2], jnp.int32)}
    packed = pack(tree, lambda _, leaf: str(leaf.dtype))
    assert packed.vectors["int32"].dtype == jnp.int32
    chex.assert_trees_all_equal(packed.tree(), tree)


def test_the_gradient_of_a_packed_tree_is_the_gradient_packed():
    def loss(tree):
        kernel = tree["classifier"]["kernel"]
        return jnp.sum(jnp.sin(tree["conv1"]["latent_kernel"])) + jnp.sum(kernel @ kernel)

    gradient = jax.grad(lambda packed: loss(packed.tree()))(pack_parameters(TREE))
    assert isinstance(gradient, Packed)
    chex.assert_trees_all_close(gradient.tree(), jax.grad(loss)(TREE), rtol=1e-6)


def test_packing_goes_through_vmap_with_the_layout_of_one():
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), TREE)
    doubled = jax.vmap(lambda tree: unpacked(pack_parameters(tree)))(stacked)
    chex.assert_trees_all_equal(doubled, stacked)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_a_packed_state_is_the_step_of_the_state(name):
    """Its weights are quantized by groups of layers, and its optimizer runs on vectors."""
    method = make_method(name)
    model = models.build("resnet_digits", num_classes=3, method=method)
    model = model.clone(stage_sizes=(1,), widths=(4,))
    optimizer = make_optimizer(
        name="sgd",
        schedule=lambda step: 0.1,
        momentum=0.9,
        nesterov=False,
        weight_decay=0.01,
        decay_groups=("binary", "noise"),
        clip_norm=1.0,
        latent_rule=method.latent_rule,
        total_steps=4,
    )
    step = make_train_step(
        model, optimizer, Preprocessing((0.5,), (0.25,), 1, True), total_steps=4, ema_decay=0.5
    )
    state = init_state(model, optimizer, jax.random.key(0), SHAPE, with_ema=True)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, *SHAPE), dtype=np.uint8)
    batch = Batch(jnp.asarray(images), jnp.asarray(rng.integers(0, 3, 8), jnp.int32))

    @jax.jit
    def both(state):
        packed = step(state.pack(), batch, jax.random.key(1))
        return step(state, batch, jax.random.key(1)), (packed[0].unpack(), *packed[1:])

    plain, packed = both(state)
    chex.assert_trees_all_close(packed, plain, rtol=2e-4, atol=2e-6)
    assert isinstance(state.pack().params, Packed)
    assert not isinstance(packed[0].params, Packed)

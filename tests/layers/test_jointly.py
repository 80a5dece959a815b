"""Weights quantized for all layers together are what each layer would have made of them."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax import models
from fda_jax.layers import BinaryConv, make_method, quantize_weights
from fda_jax.layers.quantizers import QUANTIZED

IMAGES = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
PROGRESS = 0.3


@pytest.fixture(
    scope="module", params=["fda", pytest.param("xnor_net_pp", marks=pytest.mark.slow), "bnn_plus"]
)
def network(request):
    method = make_method(request.param)
    model = models.build("resnet_digits", num_classes=3, method=method)
    model = model.clone(stage_sizes=(1, 1), widths=(4, 8))
    return method, model, jax.jit(model.init)(jax.random.key(0), IMAGES)


def loss_of(model, method, *, jointly):
    def loss(params, batch_stats):
        quantized = quantize_weights(method.weight, params, PROGRESS) if jointly else {}
        logits, sown = model.apply(
            {"params": params, "batch_stats": batch_stats, **quantized},
            IMAGES,
            train=True,
            progress=PROGRESS,
            mutable=["batch_stats", "penalties"],
        )
        penalty = sum(jax.tree.leaves(sown.get("penalties", {})), 0.0)
        return jnp.mean(logits**2) + penalty, (logits, penalty)

    return jax.value_and_grad(loss, has_aux=True)


def test_network_penalty_and_gradients_are_the_same(network):
    method, model, variables = network
    alone, together = jax.jit(
        lambda params, batch_stats: tuple(
            loss_of(model, method, jointly=jointly)(params, batch_stats)
            for jointly in (False, True)
        )
    )(variables["params"], variables["batch_stats"])
    chex.assert_trees_all_close(together, alone, rtol=1e-4, atol=1e-6)
    assert float(jnp.abs(alone[1]["stage1_block1"]["conv1"]["latent_kernel"]).max()) > 0


def test_a_layer_with_another_quantizer_quantizes_for_itself(network):
    method, model, variables = network
    params = variables["params"]
    strange = make_method("binarynet").weight

    def zeros(quantizer):
        made = jax.eval_shape(lambda p: quantize_weights(quantizer, p, PROGRESS), params)
        assert set(made) == {QUANTIZED}
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), made)

    apply = jax.jit(functools.partial(model.apply, train=False))
    plain = apply(variables, IMAGES)
    taken = apply({**variables, **zeros(method.weight)}, IMAGES)
    left = apply({**variables, **zeros(strange)}, IMAGES)
    assert np.abs(np.asarray(taken - plain)).max() > 0
    np.testing.assert_array_equal(left, plain)


def test_a_penalty_counts_where_the_layer_takes_the_weights(network):
    method, model, variables = network
    penalty = make_method("bnn_plus").weight.penalty

    def penalties(model, quantizer):
        quantized = {}
        if quantizer is not None:
            quantized = quantize_weights(quantizer, variables["params"], PROGRESS)
        sown = model.apply(
            {**variables, **quantized},
            IMAGES,
            train=True,
            progress=PROGRESS,
            mutable=["batch_stats", "penalties"],
        )[1]
        return sum(jax.tree.leaves(sown.get("penalties", {})), 0.0)

    @jax.jit
    def measure():
        fined = dataclasses.replace(method.weight, penalty=penalty)
        fined_model = model.clone(method=dataclasses.replace(method, weight=fined))
        own = penalties(model, None), penalties(model, fined)
        return own, (penalties(fined_model, None), penalties(fined_model, fined))

    (plain, left), (alone, taken) = measure()
    assert float(alone) > 0
    np.testing.assert_allclose(taken, alone, rtol=1e-5)
    # Of another quantizer, even one that differs in its penalty alone, nothing is taken.
    if method.weight.penalty is None:
        assert float(plain) == float(left) == 0.0


def test_layers_of_another_method_quantize_for_themselves():
    class Mixed(nn.Module):
        @nn.compact
        def __call__(self, x, train=False, progress=None):
            for method in ("fda", "ste"):
                x = BinaryConv(4, method=method, name=method)(x, train, progress)
            return x

    model, quantizer = Mixed(), make_method("fda").weight
    variables = jax.jit(model.init)(jax.random.key(0), IMAGES)

    @jax.jit
    def both(variables):
        made = quantize_weights(quantizer, variables["params"], PROGRESS)
        assert set(made[QUANTIZED]) == {"fda"}
        return [
            model.apply(given, IMAGES, train=True, progress=PROGRESS)
            for given in ({**variables, **made}, variables)
        ]

    together, alone = both(variables)
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)


def test_the_weights_penalty_of_a_layer_that_is_called_twice_counts_once():
    method = make_method("bnn_plus")

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = BinaryConv(1, method=method, name="layer")
            return layer(layer(x, True, PROGRESS), True, PROGRESS)

    variables = jax.jit(Twice().init)(jax.random.key(0), IMAGES)
    apply = jax.jit(functools.partial(Twice().apply, mutable=["penalties"]))
    (penalty,) = jax.tree.leaves(apply(variables, IMAGES)[1]["penalties"])
    wanted = method.weight.penalty(variables["params"]["layer"]["latent_kernel"], PROGRESS)
    np.testing.assert_allclose(penalty, wanted, rtol=1e-6)

"""The share of binary weights whose sign changed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax import layers, models, ops
from fda_jax.training.flips import make_signs

SHAPE = (4, 4, 7)  # 63 weights a filter: the last byte is not full


def centred(w, progress):
    del progress
    return w - jnp.mean(w, axis=tuple(range(w.ndim - 1)))


# Their effective weights have other signs than the latent ones.
CENTRED = dataclasses.replace(
    layers.make_method("ste"), weight=layers.Quantizer(ops.ClippedSTE(), normalize=centred)
)


def layer(method):
    """A layer is a network of one."""
    model = layers.BinaryConv(features=71, method=method)
    return model.init(jax.random.key(0), jnp.zeros((1, *SHAPE))), make_signs(model, SHAPE)


def change_latent(variables, change):
    """Variables whose latent weights are changed, everything else as it is."""
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: change(leaf) if path[-1].key == "latent_kernel" else leaf,
        variables["params"],
    )
    return {**variables, "params": params}


@pytest.mark.parametrize("method", ["ste", CENTRED], ids=["ste", "centred"])
def test_nothing_flips_by_itself_and_everything_by_negation(method):
    variables, signs = layer(method)
    first = signs(variables)
    count = models.count_parameters(variables["params"]).binary
    assert (first.count, first.bits.dtype, len(first.bits)) == (count, np.uint8, -(-count // 8))
    assert first.share_flipped_since(signs(change_latent(variables, lambda w: 3 * w))) == 0.0
    assert signs(change_latent(variables, jnp.negative)).share_flipped_since(first) == 1.0


def test_one_filter_position_flips_its_share():
    variables, signs = layer("ste")
    changed = change_latent(variables, lambda w: w.at[0, 0].multiply(-1.0))
    assert signs(changed).share_flipped_since(signs(variables)) == pytest.approx(1 / 9)


def test_the_signs_are_those_of_the_effective_weights_not_of_the_latent_ones():
    variables, signs = layer(CENTRED)
    shifted = change_latent(variables, lambda w: w + 5.0)
    # Rounding moves a few weights that lie next to their mean.
    assert signs(shifted).share_flipped_since(signs(variables)) < 1e-3
    variables, signs = layer("ste")
    shifted = change_latent(variables, lambda w: w + 5.0)
    assert signs(shifted).share_flipped_since(signs(variables)) == pytest.approx(0.5, abs=0.05)


def test_a_network_without_binary_weights_has_no_signs():
    variables, signs = layer("full_precision")
    assert signs(variables) is None

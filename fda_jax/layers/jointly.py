"""The weights of all layers quantized together: a few large kernels in place of hundreds."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from fda_jax.layers.quantizers import QUANTIZED, Quantized, Quantizer, WeightQuantizer


def quantize_weights(
    quantizer: Quantizer, params: Mapping[str, Any], progress: jax.Array | float
) -> dict[str, Any]:
    """What every binary layer of a network makes of its latent weights in training.

    Layers whose weights, and parameters of the quantizer, have the same shapes go through one
    mapped call. On a GPU the kernels of a layer alone take longer to start than to run.

    Args:
      quantizer: of the weights of every binary layer.
      params: of the network.
      progress: finished share of training, in [0, 1].

    Returns:
      {QUANTIZED: what the layers look for}, to be passed to the network with its parameters.

    Laws: network and gradients as without it, to rounding.
    """
    flat = flatten_dict(dict(params))
    groups: dict[Any, list[tuple[tuple[str, ...], dict[str, Any]]]] = {}
    for path in [path[:-1] for path in flat if path[-1] == "latent_kernel"]:
        start = (*path, "weight")
        own = {key[len(start) :]: leaf for key, leaf in flat.items() if key[: len(start)] == start}
        layer = {"latent": flat[*path, "latent_kernel"], "params": unflatten_dict(own)}
        leaves, structure = jax.tree.flatten(layer)
        key = (structure, tuple(leaf.shape for leaf in leaves))
        groups.setdefault(key, []).append((path, layer))
    module = WeightQuantizer(quantizer)
    start = functools.partial(module.init, jax.random.key(0), train=True, progress=0.0)
    quantized: dict[tuple[str, ...], Quantized] = {}

    def quantize(layer: dict[str, Any]) -> Any:
        return module.apply(
            {"params": layer["params"]},
            layer["latent"],
            train=True,
            progress=progress,
            mutable=["penalties"],
            method="apart",
        )

    for (structure, _), layers in groups.items():
        latent = layers[0][1]["latent"]
        wanted = jax.eval_shape(start, latent).get("params", {})
        if jax.tree.structure({"latent": latent, "params": wanted}) != structure:
            continue  # layers of another method, which have other parameters
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(layer for _, layer in layers))
        kernels, sown = jax.vmap(quantize)(stacked)
        penalties = jax.tree.leaves(sown)  # of each layer, or nothing
        for i, (path, _) in enumerate(layers):
            penalty = penalties[0][i] if penalties else None
            kernel = jax.tree.map(lambda leaf, i=i: leaf[i], kernels)
            quantized[*path, "kernel"] = Quantized(kernel, penalty, quantizer)
    return {QUANTIZED: unflatten_dict(quantized)}

"""What a network holds: binary, real and training-only parameters."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class ParameterCount:
    """Numbers of scalars in a network.

    Attributes:
      binary: latent weights that become one bit each.
      real: parameters that stay real at inference, batch normalisation's scale and bias included.
      training_only: parameters of the noise modules and of the weights' quantizers; at inference
        nothing of them is left but what they make of the binary weights and their scales.
    """

    binary: int
    real: int
    training_only: int


GROUPS = ("binary", "noise", "quantizer", "log", "norm", "prelu", "real")
# What a method brings to a network, as of `parameter_group`.
METHODS_OWN = ("noise", "quantizer", "log")


def parameter_group(path: tuple[str, ...]) -> str:
    """Group of a parameter by its path, of `GROUPS`.

    "binary": latent weights; "noise": noise modules; "log": those of a method's quantizers that are
    a logarithm or a logit (`log_...`, `..._logit`), of which 0 is a value like any other, so that
    decay would be a pull towards it; "quantizer": what else its quantizers and output scales have;
    "norm", "prelu": normalisation and nonlinearities; "real": the rest.

    Args:
      path: names from the network down to the parameter, e.g. ("conv2", "latent_kernel").

    Returns:
      One of `GROUPS`.
    """
    if path[-1] == "latent_kernel":
        return "binary"
    if "noise" in path:
        return "noise"
    if not {"weight", "activation", "output"}.isdisjoint(path):
        return "log" if path[-1].startswith("log_") or path[-1].endswith("_logit") else "quantizer"
    owner = path[-2] if len(path) > 1 else ""
    if owner.startswith(("prelu", "rprelu", "maxout")):
        return "prelu"
    return "norm" if "norm" in owner else "real"


def group_labels(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tree of `params` with the name of its group at each leaf."""
    return jax.tree_util.tree_map_with_path(lambda path, _: parameter_group(_names(path)), params)


def count_parameters(params: Mapping[str, Any]) -> ParameterCount:
    """Count the parameters of a network.

    Args:
      params: the "params" collection of its variables.

    Returns:
      A `ParameterCount`.
    """
    sizes = {"binary": 0, "real": 0, "training_only": 0}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        sizes[_fate(_names(path))] += leaf.size
    return ParameterCount(**sizes)


def _fate(path: tuple[str, ...]) -> str:
    """What becomes of a parameter at inference, as a field of `ParameterCount`."""
    group = parameter_group(path)
    if group == "noise" or (group in METHODS_OWN and "weight" in path):
        return "training_only"
    return "binary" if group == "binary" else "real"


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    # A variable of Flax NNX is no leaf, but holds one; modules in a list are numbered.
    keys = (entry.key for entry in path if not isinstance(entry, jax.tree_util.GetAttrKey))
    return tuple(map(str, keys))

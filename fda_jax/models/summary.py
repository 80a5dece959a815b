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
      training_only: parameters of the noise modules; nothing of them is left at inference.
    """

    binary: int
    real: int
    training_only: int


GROUPS = ("binary", "noise", "norm", "prelu", "real")


def parameter_group(path: tuple[str, ...]) -> str:
    """Group of a parameter by its path: "binary", "noise", "norm", "prelu" or "real".

    Args:
      path: names from the network down to the parameter, e.g. ("conv2", "latent_kernel").

    Returns:
      One of `GROUPS`.
    """
    if path[-1] == "latent_kernel":
        return "binary"
    if path[-1] == "negative_slope":
        return "prelu"
    if "noise" in path:
        return "noise"
    return "norm" if len(path) > 1 and "norm" in path[-2] else "real"


def group_labels(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tree of `params` with the name of its group at each leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: parameter_group(tuple(entry.key for entry in path)), params
    )


def count_parameters(params: Mapping[str, Any]) -> ParameterCount:
    """Count the parameters of a network.

    Args:
      params: the "params" collection of its variables.

    Returns:
      A `ParameterCount`.
    """
    sizes = dict.fromkeys(GROUPS, 0)
    for group, leaf in zip(
        jax.tree.leaves(group_labels(params)), jax.tree.leaves(params), strict=True
    ):
        sizes[group] += leaf.size
    return ParameterCount(
        binary=sizes["binary"],
        real=sizes["norm"] + sizes["prelu"] + sizes["real"],
        training_only=sizes["noise"],
    )

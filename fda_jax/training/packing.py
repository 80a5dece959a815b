"""Many small arrays as a few vectors: a GPU then runs one kernel where it ran hundreds.

ResNet-20 with noise modules has 110 parameters and 38 running statistics. An optimizer that steps
through them one by one launches some 300 kernels of a few microseconds each, a third of all that a
training step launches.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fda_jax.models.summary import parameter_group


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where each array of a tree lies.

    Attributes:
      structure: of the tree.
      groups: name of the vector that holds an array, for each of the tree's arrays.
      shapes: of the arrays.
    """

    structure: Any
    groups: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    def vectors(self, tree: Any) -> dict[str, jax.Array]:
        """The arrays of each group, one behind another."""
        parts: dict[str, list[jax.Array]] = {}
        for group, leaf in zip(self.groups, self.structure.flatten_up_to(tree), strict=True):
            parts.setdefault(group, []).append(jnp.ravel(leaf))
        return {group: jnp.concatenate(leaves) for group, leaves in sorted(parts.items())}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """A tree of arrays as a vector for each group; itself a tree, whose leaves are the vectors.

    Attributes:
      vectors: by the name of the group, all elements of its arrays.
      layout: where they belong.
    """

    vectors: dict[str, jax.Array]
    layout: Layout = dataclasses.field(metadata={"static": True})

    def tree(self) -> Any:
        """The tree; its gradient is packed again, which costs one kernel a group too."""
        return _unpack(self.layout, self.vectors)


def pack(tree: Any, group_of: Callable[[tuple[str, ...], jax.Array], str]) -> Packed:
    """Pack a tree; one that is packed already is returned as it is.

    Args:
      tree: nested dicts of arrays.
      group_of: (path, array) -> name of the vector that it goes to; the arrays of a group must have
        one dtype.

    Returns:
      A `Packed`.
    """
    if isinstance(tree, Packed):
        return tree
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    groups = tuple(group_of(tuple(key.key for key in path), leaf) for path, leaf in leaves)
    layout = Layout(structure, groups, tuple(jnp.shape(leaf) for _, leaf in leaves))
    return Packed(layout.vectors(tree), layout)


def pack_parameters(params: Any) -> Packed:
    """Pack parameters, or gradients, by the groups of `models.summary.GROUPS`."""
    return pack(params, lambda path, _: parameter_group(path))


def pack_statistics(batch_stats: Any) -> Packed:
    """Pack running statistics by their dtype."""
    return pack(batch_stats, lambda _, leaf: str(jnp.result_type(leaf)))


def unpacked(tree: Any) -> Any:
    """The tree of a `Packed`; any other tree as it is."""
    return tree.tree() if isinstance(tree, Packed) else tree


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _unpack(layout: Layout, vectors: dict[str, jax.Array]) -> Any:
    at = dict.fromkeys(vectors, 0)
    leaves = []
    for group, shape in zip(layout.groups, layout.shapes, strict=True):
        size = math.prod(shape)
        part = jax.lax.slice_in_dim(vectors[group], at[group], at[group] + size)
        leaves.append(part.reshape(shape))
        at[group] += size
    return jax.tree.unflatten(layout.structure, leaves)


_unpack.defvjp(
    lambda layout, vectors: (_unpack(layout, vectors), None),
    lambda layout, _, cotangents: (layout.vectors(cotangents),),
)

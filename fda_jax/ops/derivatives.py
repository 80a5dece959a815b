"""What a function with derivatives of its own owes JAX's transformations."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def differentiated_as(plain: Callable[..., Any], call: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose derivatives are those of another one that computes the same."""
    function = jax.custom_jvp(call)
    function.defjvp(lambda primals, tangents: jax.jvp(plain, primals, tangents))
    return function


def varies_over(array: jax.Array) -> frozenset[str]:
    """The axes of a `jax.shard_map` over which an array differs from device to device."""
    kind = jax.typeof(array)
    newer = getattr(kind, "manual_axis_type", None)  # JAX 0.12
    return frozenset(getattr(kind, "vma", ()) if newer is None else newer.varying)


def cotangent_of(primal: jax.Array, cotangent: jax.Array) -> jax.Array:
    """Sum a cotangent over the axes of a `jax.shard_map` over which its primal is the same.

    That is what JAX's own derivatives do, and what it asks of a `jax.custom_vjp`.
    """
    axes = tuple(varies_over(cotangent) - varies_over(primal))
    return jax.lax.psum(cotangent, axes) if axes else cotangent


def broadcast_like(parameter: jax.Array | float, x: jax.Array) -> jax.Array:
    """A parameter at every element of an array that it multiplies or is added to.

    Written before it is rounded to the array's dtype, so that its gradient, a sum over all those
    elements, is taken in the parameter's: a sum of thousands of bfloat16 stands still where it is
    some 256 times as large as its next term.

    Args:
      parameter: float32, of a shape that broadcasts to that of x.
      x: float array.

    Returns:
      The parameter, shaped and typed like x.
    """
    return jnp.broadcast_to(parameter, x.shape).astype(x.dtype)

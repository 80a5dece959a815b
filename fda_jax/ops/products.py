"""Products with scaled matrices, and what the scale of a kernel does to gradients."""

import functools

import jax
import jax.numpy as jnp


def multiply(
    x: jax.Array,
    w: jax.Array,
    scale: jax.Array | None = None,
    scale_in_gradient: bool = True,
) -> jax.Array:
    """Product of vectors with a matrix.

    Forward:  y[..., o] = scale[o] sum_i x[..., i] w[i, o]
    Backward: its exact derivatives, in all arguments; without scale_in_gradient that of w has no
      scale, and that of the scale is 0.

    Args:
      x: (..., inputs), float array.
      w: (inputs, outputs), of the dtype of x.
      scale: of the outputs, (outputs,) or () for one that they share, of the dtype of x; None for
        1. It multiplies sums that are whole: those of signs are exact.
      scale_in_gradient: whether it multiplies the gradient of w.

    Returns:
      (..., outputs), of the dtype of x.

    Raises:
      ValueError: a scale of another shape.
    """
    check_scale(scale, w.shape[-1])
    return x @ w if scale is None else _multiply(x, w, scale, scale_in_gradient)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _multiply(x: jax.Array, w: jax.Array, scale: jax.Array, scale_in_gradient: bool) -> jax.Array:
    return (x @ w) * scale


def check_scale(scale: jax.Array | float | None, filters: int) -> None:
    """Refuse a scale that would be spread over something else than filters.

    Raises:
      ValueError: names its shape, those that it may have, and the remedy.
    """
    if scale is not None and jnp.shape(scale) not in ((), (filters,)):
        raise ValueError(
            f"the scale has shape {jnp.shape(scale)}, but {filters} filters take () or "
            f"({filters},): give one number, or one for each"
        )


def scaled(y: jax.Array, scale: jax.Array | None) -> jax.Array:
    """y (..., filters) times the scale of each filter, or as it is."""
    return y if scale is None else y * scale


def scaled_gradients(
    dw: jax.Array, w: jax.Array, scale: jax.Array | None, scale_in_gradient: bool
) -> tuple[jax.Array, jax.Array | None]:
    """Gradients of a kernel and of its scale.

    Args:
      dw: (..., filters), the gradient of the kernel if the scale were 1.
      w: likewise, the kernel.
      scale: of the filters, (filters,) or ().
      scale_in_gradient: see `multiply`.

    Returns:
      The gradient of the kernel, and that of the scale, if there is one.
    """
    if scale is None:
        return dw, None
    if not scale_in_gradient:
        return dw, jnp.zeros_like(scale)
    # A product is linear in its kernel, so this sum is that of the cotangents times the outputs.
    return dw * scale, jnp.sum(dw * w, axis=tuple(range(w.ndim - scale.ndim)))


def _forward(x: jax.Array, w: jax.Array, scale: jax.Array, scale_in_gradient: bool) -> tuple:
    return (x @ w) * scale, (x, w, scale)


def _backward(scale_in_gradient: bool, residual: tuple, g: jax.Array) -> tuple:
    x, w, scale = residual
    like_x, like_w = jax.eval_shape(lambda: (x, w))
    by = w * scale
    (dx,) = jax.linear_transpose(lambda x: x @ by, like_x)(g)
    (dw,) = jax.linear_transpose(lambda w: x @ w, like_w)(g)
    return dx, *scaled_gradients(dw, w, scale, scale_in_gradient)


_multiply.defvjp(_forward, _backward)

"""The noise adaptation module as a function of arrays."""

import functools
import math

import jax
import jax.numpy as jnp

from fda_jax.ops.derivatives import cotangent_of
from fda_jax.ops.native import PERCEPTRON, PERCEPTRON_GRADIENT, choose
from fda_jax.ops.trigonometry import sine

SHORTCUTS = ("none", "linear", "sine")
NOISE_SCHEDULES = ("cosine", "linear", "constant")
# Hidden units up to which their product is written out.
_NARROW = 8


def shortcut(t: jax.Array, kind: str, slope: float) -> jax.Array:
    """The shortcut eta of the noise adaptation module.

    Forward: 0 ("none"), a t ("linear") or a sin(t) ("sine")
    Source:  [FDA Eq. 13, Table 4]

    Args:
      t: float array of any shape.
      kind: one of `SHORTCUTS`.
      slope: a, the shortcut's slope at 0; 0.1 in the paper.

    Returns:
      Array shaped and typed like t.

    Raises:
      ValueError: an unknown kind.
    """
    match kind:
        case "none":
            return jnp.zeros_like(t)
        case "linear":
            return slope * t
        case "sine":
            return slope * sine(t)
    raise ValueError(f"shortcut is {kind!r}: use one of {', '.join(SHORTCUTS)}")


def noise(t: jax.Array, w1: jax.Array, w2: jax.Array, kind: str, slope: float) -> jax.Array:
    """Learned estimate of what the truncation of the Fourier series left out.

    Forward:  relu(t W1) W2 + eta(t)
    Backward: dt = (g W2^T * [t W1 > 0]) W1^T + g eta'(t); dW1 = t^T (g W2^T * [t W1 > 0]);
              dW2 = relu(t W1)^T g
    Source:   [FDA Eqs. 13, 15-17]. The paper writes [t W1 >= 0]; at exactly 0 we take 0.

    Forward-mode differentiation raises JAX's TypeError for custom_vjp functions.

    Args:
      t: (..., d) float array.
      w1: (d, hidden).
      w2: (hidden, d).
      kind: of the shortcut, see `shortcut`.
      slope: of the shortcut at 0.

    Returns:
      (..., d) array.
    """
    return _perceptron(t, w1, w2) + shortcut(t, kind, slope)


@jax.custom_vjp
def _perceptron(t: jax.Array, w1: jax.Array, w2: jax.Array) -> jax.Array:
    """Compute relu(t W1) W2 over the last axis; in training on the kernels of `native`."""
    return _plain(t, w1, w2)


def _plain(t: jax.Array, w1: jax.Array, w2: jax.Array) -> jax.Array:
    return _widen(jax.nn.relu(t @ w1), w2)


def _widen(hidden: jax.Array, w: jax.Array) -> jax.Array:
    """Multiply hidden (..., h) by w (h, d); as sums of products where h is small.

    Those become part of the loop round them, so that a result as wide as the activations is not
    written to memory and read again.
    """
    if len(w) > _NARROW:
        return hidden @ w
    wide = jnp.float32
    terms = [hidden[..., i : i + 1].astype(wide) * w[i].astype(wide) for i in range(len(w))]
    return sum(terms[1:], terms[0]).astype(hidden.dtype)


def _forward(t: jax.Array, w1: jax.Array, w2: jax.Array) -> tuple:
    rows = t.reshape(-1, t.shape[-1])
    result = choose(
        PERCEPTRON,
        _plain,
        (rows, w1, w2),
        shapes=jax.eval_shape(lambda: rows),
        fits=lambda lanes: _fits(w1, lanes),
    )
    return result.reshape(t.shape), (t, w1, w2)


def _backward(residual: tuple, g: jax.Array) -> tuple:
    t, w1, w2 = residual
    rows, cotangents = (a.reshape(-1, t.shape[-1]) for a in (t, g))
    dt, (dw1, dw2) = choose(
        PERCEPTRON_GRADIENT,
        _gradient,
        (rows, w1, w2, cotangents),
        shapes=jax.eval_shape(lambda: (rows, jnp.stack([w2, w2]))),
        fits=lambda lanes: _fits(w1, lanes),
    )
    return cotangent_of(t, dt.reshape(t.shape)), cotangent_of(w1, dw1.T), cotangent_of(w2, dw2)


def _gradient(
    t: jax.Array, w1: jax.Array, w2: jax.Array, g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradient of t, and the gradients of W1^T and W2 beside one another."""
    inner = t @ w1
    hidden = jnp.where(inner > 0, g @ w2.T, 0)
    # Sums over rows lie where the matrices do, where devices share the rows.
    over_rows = functools.partial(jnp.matmul, out_sharding=jax.typeof(w2).sharding)
    gradients = [over_rows(hidden.T, t), over_rows(jax.nn.relu(inner).T, g)]
    return _widen(hidden, w1.T), jnp.stack(gradients)


def _fits(w1: jax.Array, lanes: int) -> bool:
    width, hidden = w1.shape
    return width % lanes == 0 and hidden <= lanes


_perceptron.defvjp(_forward, _backward)


def hidden_width(features: int, reduction: int) -> int:
    """Width of the hidden layer for d features: d // k, and d // 4 where that would be 0.

    Source: [FDA Eq. 13] for d // k with k = 64; d // 4 below k is BiBench's reading. At least 1.

    Args:
      features: d, numbers that go into the module; a Python int >= 1.
      reduction: k; a Python int >= 1, 64 by default in the methods.

    Returns:
      A Python int >= 1.
    """
    return max(1, features // reduction if features >= reduction else features // 4)


def noise_scale(
    progress: jax.Array | float, start: float, schedule: str = "cosine", end: float = 1.0
) -> jax.Array:
    """Strength alpha of the noise module, from `start` to exactly 0.

    Forward: with p = progress / end, start (1 + cos(pi p)) / 2 ("cosine"), start (1 - p)
      ("linear") or start ("constant") while p < 1, then 0
    Source:  [FDA Eq. 14] alpha "reaches 0 at the end of training", its shape is left open; the
      cosine is BiBench's, the constant shows what the decrease is worth. An earlier end is ours:
      the network then learns for a while as it will be in inference.

    Args:
      progress: finished share of training, scalar in [0, 1]; may be traced.
      start: alpha at progress 0; 0.1 by default in the methods.
      schedule: one of `NOISE_SCHEDULES`.
      end: progress from which on alpha is 0, in (0, 1].

    Returns:
      float32 scalar.

    Raises:
      ValueError: an unknown schedule.
    """
    progress = jnp.asarray(progress, jnp.float32) / end
    match schedule:
        case "cosine":
            alpha = 0.5 * start * (1.0 + jnp.cos(math.pi * progress))
        case "linear":
            alpha = start * (1.0 - progress)
        case "constant":
            alpha = jnp.full_like(progress, start)
        case _:
            raise ValueError(
                f"noise schedule is {schedule!r}: use one of {', '.join(NOISE_SCHEDULES)}"
            )
    return jnp.where(progress >= 1.0, 0.0, alpha)

"""The noise adaptation module as a function of arrays."""

import math

import jax
import jax.numpy as jnp

from fda_jax.ops.trigonometry import sine

SHORTCUTS = ("none", "linear", "sine")


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

    Args:
      t: (..., d) float array.
      w1: (d, hidden).
      w2: (hidden, d).
      kind: of the shortcut, see `shortcut`.
      slope: of the shortcut at 0.

    Returns:
      (..., d) array.
    """
    return jax.nn.relu(t @ w1) @ w2 + shortcut(t, kind, slope)


def hidden_width(features: int, reduction: int) -> int:
    """Width of the hidden layer for d features: d // k, and d // 4 where that would be 0.

    Source: [FDA Eq. 13] for d // k with k = 64; d // 4 below k is BiBench's reading. At least 1.
    """
    return max(1, features // reduction if features >= reduction else features // 4)


def noise_scale(progress: jax.Array | float, start: float) -> jax.Array:
    """Strength alpha of the noise module: half a cosine from `start` to exactly 0.

    Forward: start (1 + cos(pi progress)) / 2
    Source:  [FDA Eq. 14] asks for a decrease to 0; the shape is BiBench's.

    Args:
      progress: finished share of training, scalar in [0, 1]; may be traced.
      start: alpha at progress 0; 0.1 by default in the methods.

    Returns:
      float32 scalar.
    """
    progress = jnp.asarray(progress, jnp.float32)
    return jnp.where(progress >= 1.0, 0.0, 0.5 * start * (1.0 + jnp.cos(math.pi * progress)))

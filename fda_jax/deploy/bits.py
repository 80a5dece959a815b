"""Weights of few values as bits, and back, without loss."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fda_jax import ops

# Of the weights of a filter: more are not worth a table of them.
MOST_LEVELS = 16


@dataclasses.dataclass(frozen=True)
class Packed:
    """A kernel whose filters have few different values each.

    Weight i of filter f is levels[c, f], where bit k of the number c is bit i of plane k; weights
    are counted in C order over the whole kernel, and bits from the lowest of a byte on.

    Attributes:
      planes: uint8 (bits a weight, ceil(weights / 8)).
      levels: float32 (2 ** bits a weight, filters), ascending.
    """

    planes: np.ndarray
    levels: np.ndarray


def pack(kernel: np.ndarray) -> Packed | None:
    """Pack a kernel whose filters have at most 16 different values each.

    Args:
      kernel: (..., filters), float32.

    Returns:
      A `Packed`, or None where a filter has more values, or the bits and their levels would take
      as much room as the kernel.

    Raises:
      ValueError: the kernel holds a number that is not finite.

    Laws: `unpack(planes, levels, kernel.shape)` is the kernel, bit for bit.
    """
    if not np.all(np.isfinite(kernel)):
        raise ValueError("a kernel with numbers that are not finite cannot be packed")
    columns = kernel.reshape(-1, kernel.shape[-1]).T
    values = [np.unique(column) for column in columns]
    most = max(map(len, values))
    if most > MOST_LEVELS:
        return None
    depth = max(1, (most - 1).bit_length())
    levels = np.stack([np.pad(v, (0, 2**depth - len(v)), mode="edge") for v in values], axis=1)
    codes = np.stack([np.searchsorted(v, c) for v, c in zip(values, columns, strict=True)], axis=1)
    bits = (codes.reshape(1, -1) >> np.arange(depth)[:, None]) & 1
    packed = Packed(np.packbits(bits.astype(np.uint8), axis=1, bitorder="little"), levels)
    return packed if packed.planes.nbytes + levels.nbytes < kernel.nbytes else None


def unpack(planes: jax.Array, levels: jax.Array, shape: Sequence[int]) -> jax.Array:
    """The kernel that `pack` packed.

    Args:
      planes: see `Packed`.
      levels: see `Packed`.
      shape: of the kernel.

    Returns:
      (..., filters), float32.
    """
    size = int(np.prod(shape))
    bits = (planes[:, :, None] >> jnp.arange(8, dtype=jnp.uint8)) & 1
    bits = bits.reshape(len(planes), -1)[:, :size].reshape(-1, *shape)
    values = levels.reshape(len(levels), *(1 for _ in shape[:-1]), shape[-1])
    for bit in bits[::-1]:  # the highest first: it says in which half of the levels a weight is
        low, high = jnp.split(values, 2)
        values = jnp.where(bit, high, low)
    return values[0]


def signs(planes: np.ndarray, levels: np.ndarray, shape: Sequence[int]) -> ops.SignKernel:
    """A kernel of one bit a weight, as it is multiplied by counting bits.

    Args:
      planes: see `Packed`, one of them.
      levels: see `Packed`.
      shape: of the kernel; a matrix, or a convolution's.

    Returns:
      An `ops.SignKernel` of NumPy arrays.
    """
    bits = np.unpackbits(planes[0], count=int(np.prod(shape)), bitorder="little")
    is_high = bits.reshape(*(1 for _ in range(4 - len(shape))), *shape).astype(bool)
    return ops.sign_kernel(is_high, *levels)

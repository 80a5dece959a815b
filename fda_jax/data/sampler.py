"""The order of training: one endless stream that shuffles anew each epoch."""

import functools

import numpy as np

from fda_jax.data.errors import DataError


def stream_indices(num_examples: int, start: int, stop: int, seed: int) -> np.ndarray:
    """Which examples stand at positions [start, stop) of the endless training stream.

    The stream is one fresh permutation of all examples per epoch, one after another. Batches are
    cut from the stream, not from an epoch, so none is ever short and no example is ever dropped.

    Laws: positions [e n, (e + 1) n) hold each of the n examples exactly once; any way to cut a
    range into pieces gives the same indices; the same seed gives the same stream for ever.

    Args:
        num_examples: n, number of examples, 1 <= n < 2**31.
        start: first position, >= 0.
        stop: one past the last position, >= start.
        seed: seed of the order, 0 <= seed < 2**64.

    Returns:
        (stop - start,), int32, indices in 0..n-1.

    Raises:
        DataError: an argument is out of its range.
    """
    if not 1 <= num_examples < 2**31:
        raise DataError(f"num_examples is {num_examples}; a stream needs 1 to 2**31 - 1 examples.")
    if not 0 <= start <= stop:
        raise DataError(f"positions [{start}, {stop}) are no range; need 0 <= start <= stop.")
    if not 0 <= seed < 2**64:
        raise DataError(f"seed is {seed}; it must lie in 0..2**64 - 1.")
    indices = np.empty(stop - start, np.int32)
    filled = 0
    while filled < indices.size:
        epoch, offset = divmod(start + filled, num_examples)
        piece = _permutation(num_examples, seed, epoch)[offset : offset + indices.size - filled]
        indices[filled : filled + piece.size] = piece
        filled += piece.size
    return indices


# A batch touches one epoch's order or two; more serve callers that work side by side, such as
# runs of several seeds in one program.
@functools.lru_cache(maxsize=16)
def _permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    key = np.array([seed, epoch], np.uint64)
    order = np.random.Generator(np.random.Philox(key=key)).permutation(num_examples)
    order = order.astype(np.int32)
    order.flags.writeable = False
    return order

"""Many devices: the one home of jax.pmap."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

AXIS = "devices"


def parallel(
    fn: Callable[..., Any],
    *,
    in_axes: Sequence[int | None],
    donate: Sequence[int] = (),
) -> Callable[..., Any]:
    """Run `fn` on every device, with the axis name `AXIS`; its results are equal on all of them.

    Args:
      fn: function whose collectives name `AXIS` and whose results do not depend on the device.
      in_axes: for each argument 0 (split over this process's devices) or None (the same to all).
      donate: positions of arguments whose memory the results may take over.

    Returns:
      A compiled function with the signature of `fn`; an argument of axis 0 has the local devices
      as its leading axis. Results carry no device axis.
    """
    mapped = jax.pmap(
        fn,
        axis_name=AXIS,
        in_axes=tuple(in_axes),
        out_axes=None,  # type: ignore[arg-type]  # pmap takes it; its stub does not say so
        donate_argnums=tuple(donate),
    )
    if jax.default_backend() != "cpu" or jax.local_device_count() == 1:
        return mapped
    # Collectives of un-awaited steps can starve one another on the CPU backend's thread pool.
    return lambda *args: jax.block_until_ready(mapped(*args))


def replicate(tree: Any) -> Any:
    """Put a tree of host arrays on every local device, as `parallel` returns its results.

    Doing so once before the first call keeps that call from being compiled for another layout
    than the later ones.
    """
    if not jax.tree.leaves(tree):
        return tree  # with several processes pmap cannot return nothing
    # The leading axis is what makes pmap run; the tree itself is the same for every device.
    return _copy()(tree, np.zeros((jax.local_device_count(),), np.int32))


@functools.cache
def _copy() -> Callable[..., Any]:
    return parallel(lambda tree, _: tree, in_axes=(None, 0))


def any_process(flag: bool) -> bool:
    """Whether the flag is up in any process; every process must call it, and gets one answer."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def wait_for_all(name: str) -> None:
    """Return once every process has come to the point of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def split(array: np.ndarray) -> np.ndarray:
    """This process's part of a global batch, with its devices as the leading axis.

    Args:
      array: (..., batch) index array of the global batch.

    Returns:
      (local devices, ..., batch / devices).
    """
    devices, local = jax.device_count(), jax.local_device_count()
    parts = np.stack(np.split(array, devices, axis=-1))
    first = jax.process_index() * local
    return parts[first : first + local]

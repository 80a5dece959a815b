"""Many devices: the one home of jax.pmap."""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

AXIS = "devices"


# On a GPU a training step is hundreds of kernels of a few microseconds. XLA puts them into CUDA
# graphs. These options let a graph hold convolutions and the loop round them, and kernels that do
# not need one another run side by side; on an H100 a step took 2.5 ms with all of
# them and 3.1 ms with convolutions in graphs alone (benchmarks/NOTES.md).
GPU_OPTIONS: Mapping[str, Any] = MappingProxyType(
    {
        "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,"
        "DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE",
        "xla_gpu_command_buffer_scheduling_mode": "CONCURRENT",
        "xla_gpu_experimental_enable_conv_fusion": True,
    }
)


def parallel(
    fn: Callable[..., Any],
    *,
    in_axes: Sequence[int | None],
    donate: Sequence[int] = (),
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Callable[..., Any]:
    """Run `fn` on every device, with the axis name `AXIS`; its results are equal on all of them.

    Args:
      fn: function whose collectives name `AXIS` and whose results do not depend on the device.
      in_axes: for each argument 0 (split over this process's devices) or None (the same to all).
      donate: positions of arguments whose memory the results may take over.
      options: for XLA on a GPU, e.g. `GPU_OPTIONS`; left out where this version refuses them. The
        function then takes arguments of one shape alone.

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
    if options and _is_gpu():
        return _with_options(mapped, dict(options))
    if jax.default_backend() != "cpu" or jax.local_device_count() == 1:
        return mapped
    # Collectives of un-awaited steps can starve one another on the CPU backend's thread pool.
    return lambda *args: jax.block_until_ready(mapped(*args))


def _is_gpu() -> bool:
    return jax.default_backend() == "gpu"


def _with_options(mapped: Any, options: dict[str, Any]) -> Callable[..., Any]:
    """`mapped`, compiled with these options for the arguments of its first call."""
    compiled: list[Callable[..., Any]] = []

    def call(*args: Any) -> Any:
        if not compiled:
            lowered = mapped.lower(*args)
            try:
                compiled.append(lowered.compile(compiler_options=options))
            except jax.errors.JaxRuntimeError as error:
                # An option that this version does not know, or an experiment that failed.
                reason = str(error).strip().splitlines()[0][:300]
                warnings.warn(
                    f"compiled without the options {options}, which XLA refused: {reason}. Results "
                    "are the same to rounding, steps may be slower",
                    RuntimeWarning,
                    stacklevel=2,
                )
                compiled.append(mapped)
        return compiled[0](*args)

    return call


def replicate(tree: Any) -> Any:
    """Put a tree of host arrays on every local device, as `parallel` returns its results.

    Doing so once before the first call keeps that call from being compiled for another layout
    than the later ones.
    """
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

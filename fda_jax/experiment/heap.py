"""Memory of a training step on the CPU: kept from step to step instead of asked for anew."""

import ctypes
import os
import sys

import jax

# Parameters of glibc's mallopt (malloc.h), and the largest number it takes.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_LARGEST = 2**31 - 1


def reuse_pages() -> None:
    """Let the program of a step run in the pages that the step before ran in.

    XLA asks for the memory of a program's temporaries in one piece at each call, and glibc gets
    such a piece from the kernel and hands it back every time: a fifth of a ResNet-20 step went into
    pages that the kernel cleared. Two settings end that: glibc serves large pieces from its heap,
    which it keeps (up to 2 GiB at its end), and JAX runs CPU programs on the thread that calls
    them, whose heap can grow. The memory in use at the peak stays what it was.

    Nothing is done where another C library serves memory, with several simulated devices (whose
    programs wait for one another), and for accelerators. Call it before anything is computed.
    """
    if sys.platform != "linux" or _has_several_devices():
        return
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and jax.default_backend() == "cpu":
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)


def _has_several_devices() -> bool:
    asked = jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]  # made at run time
    return asked > 1 or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")

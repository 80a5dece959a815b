"""Kernels in C++ for the CPU backend: built once with the machine's own compiler, then kept.

XLA's convolutions leave a CPU half idle on the shapes that binary networks train with, most of all
in the gradient of the weights, and XLA has none of bits. The folder `kernels` holds our own, the
sums of batch normalisation and the noise module's perceptron. They need a C++ compiler at hand (as
torch.compile does); where there is none, or FDA_JAX_NATIVE=0 is set, XLA's are used: nothing but
the speed and the last bits of a sum change.
"""

import ctypes
import dataclasses
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from fda_jax.ops.derivatives import differentiated_as, varies_over

SOURCE = Path(__file__).with_name("kernels") / "kernels.cc"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-w")
FORWARD = "fda_jax_forward"
SCALED_FORWARD = "fda_jax_scaled_forward"
INPUT_GRADIENT = "fda_jax_input_gradient"
WEIGHT_GRADIENT = "fda_jax_weight_gradient"
CHANNEL_SUMS = "fda_jax_channel_sums"
PERCEPTRON = "fda_jax_perceptron"
PERCEPTRON_GRADIENT = "fda_jax_perceptron_gradient"
SIGNS = "fda_jax_signs"
# Shipped networks call some of them by name: a kernel whose arguments change gets a new one.
TARGETS = (
    FORWARD,
    SCALED_FORWARD,
    INPUT_GRADIENT,
    WEIGHT_GRADIENT,
    CHANNEL_SUMS,
    PERCEPTRON,
    PERCEPTRON_GRADIENT,
    SIGNS,
)
# Float32 numbers in the widest of vector registers.
MOST_LANES = 16
SWITCH = "FDA_JAX_NATIVE"
BUILD_SECONDS = 120
# A name can be registered with XLA once.
_LOADING = threading.RLock()


@dataclasses.dataclass(frozen=True)
class Kernels:
    """The kernels are registered with XLA under the names of `TARGETS`.

    Attributes:
      lanes: float32 numbers in a vector register; outputs must come in multiples of it.
    """

    lanes: int


def cache_folder() -> Path:
    """Of what can be made again, as the XDG base directories have it: ~/.cache/fda_jax, mostly.

    Raises:
      RuntimeError: the user has no home.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "fda_jax"


def choose(
    target: str,
    xla: Callable[..., Any],
    arguments: Sequence[jax.Array],
    *,
    shapes: Any,
    fits: Callable[[int], bool],
    otherwise: Callable[..., Any] | None = None,
    attributes: Mapping[str, np.int64] = MappingProxyType({}),
) -> Any:
    """Call our kernel on the CPU if it takes the arrays, and XLA on all other devices.

    Within a `jax.shard_map` that checks how values vary over its axes XLA is called on the CPU,
    too: of a kernel's result it cannot be known.

    Args:
      target: of `TARGETS`.
      xla: (*arguments) -> result.
      arguments: of the kernel; it takes float32 alone.
      shapes: a `jax.ShapeDtypeStruct` for the result, or a sequence of them for several.
      fits: lanes -> whether the kernel takes these shapes.
      otherwise: what the CPU runs where the kernel does not; None for `xla`.
      attributes: of the kernel.

    Returns:
      The result, or a sequence of them.
    """
    if any(varies_over(array) for array in arguments):
        return xla(*arguments)
    cpu = otherwise
    # Where the default device is no CPU, nothing is built: that a CPU is asked for there is rare.
    if jax.default_backend() == "cpu" and all(
        array.dtype == np.float32 and array.size for array in arguments
    ):
        ours = kernels()
        if ours is not None and fits(ours.lanes):
            # A batch of calls (vmap) runs them one after another: each fills all cores.
            call = jax.ffi.ffi_call(target, shapes, vmap_method="sequential")
            cpu = differentiated_as(otherwise or xla, functools.partial(call, **attributes))
    if cpu is None:
        return xla(*arguments)
    return jax.lax.platform_dependent(*arguments, cpu=cpu, default=xla)


def kernels() -> Kernels | None:
    """Build (the first time on a machine, a few seconds), load and register the kernels.

    Returns:
      `Kernels`, or None where they are switched off or cannot be had; the reason is then a warning.
    """
    with _LOADING:
        return _kernels()


@functools.cache
def _kernels() -> Kernels | None:
    if os.environ.get(SWITCH, "1") == "0":
        return None
    with_which = compiler()
    if with_which is None:
        return _without("there is no C++ compiler (install g++ or clang++)")
    try:
        library = _load(with_which)
        for target in TARGETS:
            capsule = jax.ffi.pycapsule(getattr(library, target))
            jax.ffi.register_ffi_target(target, capsule, platform="cpu")
        return Kernels(lanes=library.fda_jax_lanes())
    except (OSError, AttributeError, ValueError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        return _without(f"{with_which} could not build them: {str(said).strip()[-500:]}")


def compiler() -> str | None:
    """The C++ compiler: CXX, or one that is found; None where there is none."""
    return os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)


def _without(reason: str) -> None:
    warnings.warn(
        f"convolutions on the CPU run without our kernels, about half as fast: {reason}. "
        f"{SWITCH}=0 silences this",
        RuntimeWarning,
        stacklevel=4,
    )


def _load(compiler: str) -> ctypes.CDLL:
    """The library for this source, compiler, jaxlib and processor; compiled if it is missing."""
    version = subprocess.run(
        [*shlex.split(compiler), "--version"],
        capture_output=True,
        text=True,
        check=True,
        timeout=BUILD_SECONDS,
    ).stdout
    made_from = [
        *(file.read_text() for file in sorted(SOURCE.parent.glob("*.[ch]*"))),
        version,
        " ".join(FLAGS),
        metadata.version("jaxlib"),
        _processor(),
    ]
    digest = hashlib.sha256("\0".join(made_from).encode()).hexdigest()[:16]
    name = f"kernels-{digest}.so"
    try:
        folder = cache_folder() / "native"
        kept = folder / name
        if _is_whole(kept):
            return ctypes.CDLL(str(kept))
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError):  # no home to keep it in: for this process alone
        with tempfile.TemporaryDirectory(prefix="fda_jax-") as passing:
            return ctypes.CDLL(str(_compile(compiler, Path(passing) / name)))
    return ctypes.CDLL(str(_compile(compiler, kept)))


def _is_whole(library: Path) -> bool:
    """Whether it is there as it was built: half a library takes its process down."""
    try:
        return _digest_file(library).read_text() == _digest(library)
    except (OSError, ValueError):
        return False


def _digest_file(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _digest(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


def _compile(compiler: str, to: Path) -> Path:
    """Compile the source; the file is there whole or not at all, whoever else compiles it."""
    with tempfile.TemporaryDirectory(dir=to.parent) as folder:
        built = Path(folder) / to.name
        subprocess.run(
            [
                *shlex.split(compiler),
                *FLAGS,
                "-I",
                jax.ffi.include_dir(),
                str(SOURCE),
                "-o",
                str(built),
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=BUILD_SECONDS,
        )
        digest = _digest_file(built)
        digest.write_text(_digest(built))
        built.replace(to)
        digest.replace(_digest_file(to))
    return to


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return platform.machine() + next(
        (line for line in lines if line.startswith(("flags", "Features"))), ""
    )

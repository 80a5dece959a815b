"""A network in one file: bits, real numbers, and the program that makes logits of them."""

import dataclasses
import functools
import json
import math
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np
from jax import export

from fda_jax import ops
from fda_jax.deploy.bits import signs, unpack
from fda_jax.ops import native
from fda_jax.ops.checks import check_choice

FORMAT = 2
# Those of before, which are read too: 1 knows no bit arithmetic.
_READ = (1, FORMAT)
# Entries of the file beside the arrays.
_FACTS, _PROGRAM, _BIT_PROGRAM = "facts", "program", "bit_program"
ARITHMETICS = ("auto", "bits", "real")


@dataclasses.dataclass(frozen=True, eq=False)
class PackedNetwork:
    """A frozen network: called with images as they are stored, it returns logits.

    Nothing of its training is left. The program is StableHLO (`jax.export`) for CPUs, GPUs and
    TPUs; it takes the arrays as they lie in the file and makes the weights of their bits itself.
    It computes in floating point. A second program, for CPUs, multiplies signs by signs with an
    exclusive or and adds up by counting bits, which is exact and several times as fast; it needs
    `ops.native.kernels`.

    Attributes:
      facts: what the file says of itself: "format", "image_shape" (height, width, channels),
        "binary" ({layer: {"shape", "bits", "scaled"}}, the last one of whether the scale multiplies
        the layer's sums), "kernels" (those of `ops.native` that the second
        program calls), and what whoever froze it added: of a run "network",
        "method", "dataset", "classes" (names by label), "seed", "step", "revision", "fda_jax" and
        "jax" (versions).
      arrays: by name. LAYER/planes and LAYER/levels of a binary layer, see `bits.Packed`;
        LAYER/kernel of one whose weights take too many values to be packed; real parameters and
        statistics by their path.
      program: of `jax.export`; (arrays, uint8 images (batch, height, width, channels)) -> float32
        logits (batch, classes), for every batch.
      bit_program: likewise, of the arrays that `for_bit_arithmetic` makes; None where activations
        are not signs.
      arithmetic: "bits", "real", or "auto" for "bits" where it can be had.

    Raises:
      ValueError: an unknown arithmetic, or "bits" where it cannot be had.
    """

    facts: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    program: bytes
    bit_program: bytes | None = None
    arithmetic: str = "auto"

    def __post_init__(self) -> None:
        check_choice("arithmetic", self.arithmetic, ARITHMETICS)
        missing = self.arithmetic == "bits" and self._misses()
        if missing:
            raise ValueError(f"arithmetic is 'bits', but {missing}: use 'auto' or 'real'")

    @functools.cached_property
    def counts_bits(self) -> bool:
        """Whether it is the binary layers' bits that are multiplied."""
        return self.arithmetic != "real" and not self._misses()

    def _misses(self) -> str:
        """Why there is no bit arithmetic; "" where there is."""
        if self.bit_program is None:
            return (
                "this network has no program for it (its activations are not signs, or it was "
                "exported without a C++ compiler or before there was one)"
            )
        unknown = set(self.facts.get("kernels", ())) - set(native.TARGETS)
        if unknown:
            return (
                f"its program calls {', '.join(sorted(unknown))}, a kernel that this version does "
                "not have (export the run again)"
            )
        if jax.default_backend() != "cpu":
            return f"it is of CPUs, and this is a {jax.default_backend()}"
        if native.kernels() is None:
            return "its kernel, which a C++ compiler makes, cannot be had here"
        return ""

    def __call__(self, images: Any) -> jax.Array:
        """Logits of images.

        Args:
          images: (batch, height, width, channels), uint8, 0 to 255, RGB where there are three
            channels.

        Returns:
          (batch, classes), float32.

        Raises:
          ValueError: the images are not of the network's shape and type, or this JAX cannot read
            the program.
        """
        shape, dtype = tuple(self.facts["image_shape"]), getattr(images, "dtype", None)
        given = np.shape(images)
        if len(given) != 4 or given[0] < 1 or given[1:] != shape or dtype != np.uint8:
            raise ValueError(
                f"images are {dtype or type(images).__name__} of shape {given}, but this network "
                f"takes uint8 of shape (batch, {', '.join(map(str, shape))}), at least one: resize "
                "them, and give pixels of 0 to 255"
            )
        try:
            return self._run(self._inputs, images)
        except (NotImplementedError, jax.errors.JaxRuntimeError) as error:
            if "deserialize" not in str(error):
                raise
            raise self._unreadable(error) from error

    def __repr__(self) -> str:
        """What it is in a line, without its arrays and programs."""
        facts, layers = self.facts, self.facts["binary"]
        of = ", ".join(facts[key] for key in ("network", "method", "dataset") if key in facts)
        sizes = self.sizes()
        return (
            f"<PackedNetwork {f'{of}; ' if of else ''}images {tuple(facts['image_shape'])}; "
            f"{len(layers)} binary layers, {sizes['binary']:,} bytes; real numbers "
            f"{sizes['real']:,} bytes; arithmetic {self.arithmetic!r}>"
        )

    def weights(self) -> dict[str, np.ndarray]:
        """The kernel of every binary layer as numbers, (..., filters), float32, by its name."""
        layers = self.facts["binary"].items()
        return {name: np.asarray(kernel(self._on_device, name, facts)) for name, facts in layers}

    def sizes(self) -> dict[str, int]:
        """Bytes: of the binary layers' bits and levels, of real numbers, of the programs; and what
        the binary layers' kernels and real numbers would take as float32 ("unpacked")."""
        layers = self.facts["binary"]
        binary = {name for name in self.arrays if name.rpartition("/")[0] in layers}
        sizes = dict.fromkeys(("binary", "real"), 0)
        for name, array in self.arrays.items():
            sizes["binary" if name in binary else "real"] += array.nbytes
        kernels = sum(4 * int(np.prod(layer["shape"])) for layer in layers.values())
        programs = len(self.program) + len(self.bit_program or b"")
        return {**sizes, "program": programs, "unpacked": kernels + sizes["real"]}

    def save(self, path: str | Path) -> None:
        """Write the file: a compressed NumPy archive, whole or not at all.

        Args:
          path: of the file, which must not exist.

        Raises:
          FileExistsError: there is a file of this name.
          OSError: it cannot be written.
        """
        entries: dict[str, Any] = {
            _FACTS: np.frombuffer(json.dumps(self.facts, sort_keys=True).encode(), np.uint8),
            _PROGRAM: np.frombuffer(self.program, np.uint8),
            **self.arrays,
        }
        if self.bit_program is not None:
            entries[_BIT_PROGRAM] = np.frombuffer(self.bit_program, np.uint8)
        write_whole(path, lambda file: np.savez_compressed(file, **entries))

    def __getstate__(self) -> dict[str, Any]:
        """Only the fields: what is cached is of this process."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @functools.cached_property
    def _on_device(self) -> Mapping[str, jax.Array]:
        return _kept(self.arrays)

    @functools.cached_property
    def _inputs(self) -> Mapping[str, jax.Array]:
        if not self.counts_bits:
            return self._on_device
        return _kept(for_bit_arithmetic(self.arrays, self.facts["binary"]))

    @functools.cached_property
    def _run(self) -> Any:
        program = (self.bit_program or b"") if self.counts_bits else self.program
        try:
            exported = export.deserialize(bytearray(program))
            (arrays, images), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
            taken = {**_kinds(arrays), "images": f"{images.dtype}{list(images.shape[1:])}"}
        except Exception as error:  # whatever its reader trips over
            raise self._unreadable(error) from error
        given = {**_kinds(self._inputs), "images": f"uint8{list(self.facts['image_shape'])}"}
        for name in sorted({*taken, *given}):
            found, wanted = given.get(name, "nothing"), taken.get(name, "nothing")
            if found != wanted:
                raise ValueError(
                    f"the network's program takes {wanted} as {name}, but the file holds {found}: "
                    "export the run again"
                )
        return jax.jit(exported.call)

    def _unreadable(self, error: Exception) -> ValueError:
        writer = self.facts.get("jax", "of another version")
        return ValueError(
            f"JAX {jax.__version__} cannot read the network's program, which JAX {writer} wrote "
            f"({error}): use that version or a later one, or export the run again"
        )


def _kinds(arrays: Mapping[str, jax.Array]) -> dict[str, str]:
    """The type and shape of each."""
    return {name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items()}


def _kept(arrays: Mapping[str, np.ndarray]) -> Mapping[str, jax.Array]:
    """Arrays on the device, also where the first call comes from within a `jax.jit`."""
    with jax.ensure_compile_time_eval():
        return jax.device_put(dict(arrays))


def kernel(arrays: Mapping[str, Any], layer: str, facts: Mapping[str, Any]) -> jax.Array:
    """The kernel of a binary layer, (..., filters), float32, of its entry in "binary"."""
    if facts["bits"] is None:
        return arrays[f"{layer}/kernel"]
    return unpack(arrays[f"{layer}/planes"], arrays[f"{layer}/levels"], facts["shape"])


def for_bit_arithmetic(
    arrays: Mapping[str, np.ndarray], binary: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The arrays of a network with those of each layer of one bit a weight as `kernel_of_bits`
    takes them.

    Args:
      arrays: as of a `PackedNetwork`.
      binary: what its facts say of the binary layers.
    """
    laid_out = dict(arrays)
    for layer, facts in binary.items():
        if facts["bits"] == 1:
            packed = (laid_out.pop(f"{layer}/{name}") for name in ("planes", "levels"))
            parts = vars(signs(*packed, facts["shape"]))
            laid_out |= {f"{layer}/{name}": part for name, part in parts.items()}
    return laid_out


def kernel_of_bits(
    arrays: Mapping[str, jax.Array], layer: str, facts: Mapping[str, Any]
) -> jax.Array | ops.SignKernel:
    """The kernel of a binary layer for bit arithmetic, of its entry in "binary"."""
    if facts["bits"] != 1:
        return kernel(arrays, layer, facts)
    names = (field.name for field in dataclasses.fields(ops.SignKernel))
    return ops.SignKernel(*(arrays[f"{layer}/{name}"] for name in names))


def write_whole(path: str | Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a new file whole or not at all.

    Args:
      path: of the file, which must not exist.
      write: what writes into it.

    Raises:
      FileExistsError: there is a file of this name.
      OSError: it cannot be written.
    """
    path = Path(path)
    exists = FileExistsError(f"{path} exists already: choose another name, or remove it")
    if path.exists():
        raise exists
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:  # somebody was faster
            raise exists from None
        except OSError:  # a file system without links
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | Path, *, arithmetic: str = "auto") -> PackedNetwork:
    """Read the file of a packed network.

    A file is a program, which runs when the network is called: load only files that you trust.

    Args:
      path: of the file, see `PackedNetwork.save`.
      arithmetic: see `PackedNetwork`.

    Returns:
      A `PackedNetwork`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, no packed network, or of a later format than this version reads;
        or "bits" cannot be had.
    """
    if Path(path).suffix.lower() == ".onnx" and Path(path).is_file():
        raise ValueError(
            f"{path} is an ONNX model by its name, which ONNX Runtime runs: load the .npz that "
            "`python -m fda_jax.export` writes by default"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            entries = {name: file[name] for name in file.files}
        facts = dict(json.loads(entries.pop(_FACTS).tobytes()))
        program = entries.pop(_PROGRAM).tobytes()
        bit_program = entries.pop(_BIT_PROGRAM).tobytes() if _BIT_PROGRAM in entries else None
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever the readers of archives and arrays trip over
        raise _no_network(path, error) from error
    if facts.get("format") not in _READ:
        raise ValueError(
            f"{path} is of format {facts.get('format')}, but this version reads formats up to "
            f"{FORMAT}: use the version that wrote it, or export the run again"
        )
    try:
        _check_parts(facts, entries)
    except Exception as error:
        raise _no_network(path, error) from error
    return PackedNetwork(facts, entries, program, bit_program, arithmetic)


def _no_network(path: str | Path, why: Exception) -> ValueError:
    said = f"{type(why).__name__}: {why}"
    return ValueError(f"{path} is no packed network, or it is damaged ({said}): export it again")


def _check_parts(facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse a file whose parts do not belong together: the kernels take them as they are."""
    sizes, called = facts["image_shape"], facts.get("kernels", [])
    if len(sizes) != 3 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"image_shape is {sizes} instead of height, width and channels")
    if not isinstance(called, list) or not all(isinstance(name, str) for name in called):
        raise ValueError(f"kernels is {called} instead of a list of names")
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name} holds {array.dtype} instead of numbers")
    for layer, said in facts["binary"].items():
        shape, bits = tuple(said["shape"]), said["bits"]
        if bits is None:
            wanted = {"kernel": shape}
        else:
            wanted = {"planes": (bits, -(-math.prod(shape) // 8)), "levels": (2**bits, shape[-1])}
            if arrays[f"{layer}/planes"].dtype != np.uint8:
                raise ValueError(f"{layer}/planes holds no bytes")
        for name, expected in wanted.items():
            found = arrays[f"{layer}/{name}"].shape
            if found != expected:
                raise ValueError(f"{layer}/{name} has shape {found} instead of {expected}")

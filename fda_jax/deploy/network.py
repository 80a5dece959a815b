"""A network in one file: bits, real numbers, and the program that makes logits of them."""

import dataclasses
import functools
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from fda_jax.deploy.bits import unpack

FORMAT = 1
# Entries of the file beside the arrays.
_FACTS, _PROGRAM = "facts", "program"


@dataclasses.dataclass(frozen=True)
class PackedNetwork:
    """A frozen network: called with images as they are stored, it returns logits.

    Nothing of its training is left. The program is StableHLO (`jax.export`) for CPUs, GPUs and
    TPUs; it takes the arrays as they lie in the file and makes the weights of their bits itself.
    It computes in floating point, so the network is smaller than a real one and not faster.

    Attributes:
      facts: what the file says of itself: "format", "image_shape" (height, width, channels),
        "binary" ({layer: {"shape", "bits"}}), and what whoever froze it added: of a run "network",
        "method", "dataset", "classes" (names by label), "seed", "step", "revision", "fda_jax" and
        "jax" (versions).
      arrays: by name. LAYER/planes and LAYER/levels of a binary layer, see `bits.Packed`;
        LAYER/kernel of one whose weights take too many values to be packed; real parameters and
        statistics by their path.
      program: of `jax.export`; (arrays, uint8 images (batch, height, width, channels)) -> float32
        logits (batch, classes), for every batch.
    """

    facts: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    program: bytes

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
        if np.ndim(images) != 4 or np.shape(images)[1:] != shape or dtype != np.uint8:
            raise ValueError(
                f"images are {dtype or type(images).__name__} of shape {np.shape(images)}, but "
                f"this network takes uint8 of shape (batch, {', '.join(map(str, shape))}): resize "
                "them, and give pixels of 0 to 255"
            )
        try:
            return self._run(self._on_device, images)
        except (NotImplementedError, jax.errors.JaxRuntimeError) as error:
            if "deserialize" not in str(error):
                raise
            writer = self.facts.get("jax", "of another version")
            raise ValueError(
                f"JAX {jax.__version__} cannot read the network's program, which JAX {writer} "
                f"wrote ({error}): use that version or a later one, or export the run again"
            ) from error

    def weights(self) -> dict[str, np.ndarray]:
        """The kernel of every binary layer as numbers, (..., filters), float32, by its name."""
        layers = self.facts["binary"].items()
        return {name: np.asarray(kernel(self._on_device, name, facts)) for name, facts in layers}

    def sizes(self) -> dict[str, int]:
        """Bytes: of the binary layers' bits and levels, of real numbers, of the program; and what
        the binary layers' kernels and real numbers would take as float32 ("unpacked")."""
        layers = self.facts["binary"]
        binary = {name for name in self.arrays if name.rpartition("/")[0] in layers}
        sizes = dict.fromkeys(("binary", "real"), 0)
        for name, array in self.arrays.items():
            sizes["binary" if name in binary else "real"] += array.nbytes
        kernels = sum(4 * int(np.prod(layer["shape"])) for layer in layers.values())
        return {**sizes, "program": len(self.program), "unpacked": kernels + sizes["real"]}

    def save(self, path: str | Path) -> None:
        """Write the file: a compressed NumPy archive, whole or not at all.

        Args:
          path: of the file, which must not exist.

        Raises:
          FileExistsError: there is a file of this name.
          OSError: it cannot be written.
        """
        path = Path(path)
        if path.exists():
            raise FileExistsError(f"{path} exists already: choose another name, or remove it")
        entries: dict[str, Any] = {
            _FACTS: np.frombuffer(json.dumps(self.facts, sort_keys=True).encode(), np.uint8),
            _PROGRAM: np.frombuffer(self.program, np.uint8),
            **self.arrays,
        }
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                np.savez_compressed(file, **entries)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @functools.cached_property
    def _on_device(self) -> Mapping[str, jax.Array]:
        return jax.device_put(dict(self.arrays))

    @functools.cached_property
    def _run(self) -> Any:
        return jax.jit(export.deserialize(bytearray(self.program)).call)


def kernel(arrays: Mapping[str, jax.Array], layer: str, facts: Mapping[str, Any]) -> jax.Array:
    """The kernel of a binary layer, (..., filters), float32, of its entry in "binary"."""
    if facts["bits"] is None:
        return arrays[f"{layer}/kernel"]
    return unpack(arrays[f"{layer}/planes"], arrays[f"{layer}/levels"], facts["shape"])


def load(path: str | Path) -> PackedNetwork:
    """Read the file of a packed network.

    Args:
      path: of the file, see `PackedNetwork.save`.

    Returns:
      A `PackedNetwork`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, no packed network, or of a later format than this version reads.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            entries = {name: file[name] for name in file.files}
        facts = dict(json.loads(entries.pop(_FACTS).tobytes()))
        program = entries.pop(_PROGRAM).tobytes()
    except FileNotFoundError:
        raise
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is no packed network, or it is damaged ({error}): export it again"
        ) from error
    if facts.get("format") != FORMAT:
        raise ValueError(
            f"{path} is of format {facts.get('format')}, but this version reads format {FORMAT}: "
            "use the version that wrote it, or export the run again"
        )
    return PackedNetwork(facts, entries, program)

"""Readers of the official CIFAR and MNIST files, each checked by its published md5 first."""

import gzip
import hashlib
import pickle
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fda_jax.data.errors import DataError
from fda_jax.data.specs import DatasetSpec
from fda_jax.data.splits import ArraySplit, Dataset, array_split

# idx format: two zero bytes, 8 for unsigned byte, the number of dimensions.
_IDX_UBYTE_PREFIX = b"\0\0\x08"


def load_official(spec: DatasetSpec, directory: Path) -> Dataset:
    """Loads CIFAR-10, CIFAR-100, MNIST or Fashion-MNIST from its official files.

    Args:
        spec: which one.
        directory: folder that holds the files, or the sub-folder `spec.folder` with them.

    Returns:
        The data set with two resident splits, in the official order.

    Raises:
        DataError: a file is missing, altered, or not what its format says.
    """
    if spec.name == "cifar10":
        classes, train, test = _read_cifar10(spec, directory)
    elif spec.name == "cifar100":
        classes, train, test = _read_cifar100(spec, directory)
    else:
        classes, train, test = _read_mnist(spec, directory)
    if classes is None or len(classes) != spec.num_classes:
        raise DataError(f"{spec.name}: {classes} are not {spec.num_classes} class names.")
    return Dataset(
        name=spec.name,
        num_classes=spec.num_classes,
        image_shape_hwc=spec.image_shape_hwc,
        mean=spec.mean,
        std=spec.std,
        classes=tuple(classes),
        train=train,
        test=test,
    )


def read_verified(spec: DatasetSpec, directory: Path, file: str) -> bytes:
    """Reads one official file and checks its md5.

    Args:
        spec: the data set the file belongs to.
        directory: the data directory.
        file: name of the file, a key of `spec.files`.

    Returns:
        The file's bytes: what was checked is what gets parsed.

    Raises:
        DataError: the file is missing, or its md5 is not the published one.
    """
    path = _find(spec, directory, file)
    content = path.read_bytes()
    # Not for security but to know the file; some systems forbid md5 unless told so.
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != spec.files[file]:
        raise DataError(
            f"{path} ({len(content)} bytes) has md5 {found}, but the official {spec.name} file "
            f"has md5 {spec.files[file]}: it is damaged, cut short or another file. It was not "
            f"opened. Delete it and get it again from {spec.url}"
        )
    return content


def _find(spec: DatasetSpec, directory: Path, file: str) -> Path:
    for path in (directory / spec.folder / file, directory / file):
        if path.is_file():
            return path
    raise DataError(
        f"{spec.name}: file {file} is neither in {directory / spec.folder} nor in {directory}. "
        + _remedy(spec, directory)
    )


def _remedy(spec: DatasetSpec, directory: Path) -> str:
    if spec.archive is None:
        return f"Get the files {', '.join(spec.files)} from {spec.url}"
    unpack = f"tar -xzf {directory / spec.archive} -C {directory}"
    if (directory / spec.archive).is_file():
        return f"The archive {spec.archive} is there; unpack it with: {unpack}"
    return f"Get {spec.url} into {directory}, then unpack it with: {unpack}"


def _damaged(spec: DatasetSpec, file: str, why: object) -> DataError:
    return DataError(
        f"{spec.name}: file {file} has the expected md5 but cannot be read as one ({why}); get it "
        f"again from {spec.url}"
    )


def _unpickle(spec: DatasetSpec, directory: Path, file: str) -> dict[bytes, Any]:
    # Unpickling can run any code, so only bytes with the published md5 get here.
    content = read_verified(spec, directory, file)
    try:
        record = pickle.loads(content, encoding="bytes")
    except Exception as error:
        raise _damaged(spec, file, f"{type(error).__name__}: {error}") from error
    if not isinstance(record, dict):
        raise _damaged(spec, file, f"it holds a {type(record).__name__}, not a dict")
    return record


def _entry(spec: DatasetSpec, file: str, record: dict[bytes, Any], key: bytes) -> Any:
    if key not in record:
        raise _damaged(spec, file, f"no entry {key!r} among {sorted(record)}")
    return record[key]


def _cifar_split(
    spec: DatasetSpec, directory: Path, files: Sequence[str], label_key: bytes, name: str
) -> ArraySplit:
    h, w, c = spec.image_shape_hwc
    images, labels = [], []
    for file in files:
        record = _unpickle(spec, directory, file)
        pixels = np.asarray(_entry(spec, file, record, b"data"))
        if pixels.ndim != 2 or pixels.shape[1] != h * w * c:
            raise _damaged(spec, file, f"pixels are {pixels.shape}, not (n, {h * w * c})")
        # The files hold a whole red plane, then a green and a blue one.
        images.append(pixels.reshape(-1, c, h, w).transpose(0, 2, 3, 1))
        labels.append(np.asarray(_entry(spec, file, record, label_key)))
    return array_split(
        np.concatenate(images),
        np.concatenate(labels),
        image_shape_hwc=spec.image_shape_hwc,
        num_classes=spec.num_classes,
        name=f"{spec.name} {name}",
    )


def _cifar_classes(spec: DatasetSpec, directory: Path, file: str, key: bytes) -> list[str]:
    names = _entry(spec, file, _unpickle(spec, directory, file), key)
    return [name.decode("ascii") for name in names]


def _read_cifar10(
    spec: DatasetSpec, directory: Path
) -> tuple[Sequence[str], ArraySplit, ArraySplit]:
    classes = _cifar_classes(spec, directory, "batches.meta", b"label_names")
    batches = [f"data_batch_{i}" for i in range(1, 6)]
    train = _cifar_split(spec, directory, batches, b"labels", "train")
    return classes, train, _cifar_split(spec, directory, ["test_batch"], b"labels", "test")


def _read_cifar100(
    spec: DatasetSpec, directory: Path
) -> tuple[Sequence[str], ArraySplit, ArraySplit]:
    classes = _cifar_classes(spec, directory, "meta", b"fine_label_names")
    train = _cifar_split(spec, directory, ["train"], b"fine_labels", "train")
    return classes, train, _cifar_split(spec, directory, ["test"], b"fine_labels", "test")


def _read_mnist(
    spec: DatasetSpec, directory: Path
) -> tuple[Sequence[str] | None, ArraySplit, ArraySplit]:
    def split(prefix: str, name: str) -> ArraySplit:
        images = _read_idx(spec, directory, f"{prefix}-images-idx3-ubyte.gz", num_dims=3)
        labels = _read_idx(spec, directory, f"{prefix}-labels-idx1-ubyte.gz", num_dims=1)
        return array_split(
            images[..., None],
            labels,
            image_shape_hwc=spec.image_shape_hwc,
            num_classes=spec.num_classes,
            name=f"{spec.name} {name}",
        )

    return spec.classes, split("train", "train"), split("t10k", "test")


def _read_idx(spec: DatasetSpec, directory: Path, file: str, *, num_dims: int) -> np.ndarray:
    try:
        content = gzip.decompress(read_verified(spec, directory, file))
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(spec, file, f"{type(error).__name__}: {error}") from error
    header_bytes = 4 + 4 * num_dims
    magic = _IDX_UBYTE_PREFIX + bytes([num_dims])
    if content[:4] != magic or len(content) < header_bytes:
        raise _damaged(spec, file, f"it starts with {content[:4]!r}, not {magic!r}")
    shape = np.frombuffer(content[4:header_bytes], ">u4").astype(np.int64)
    if len(content) - header_bytes != shape.prod():
        raise _damaged(
            spec,
            file,
            f"{len(content) - header_bytes} bytes follow a header that says {shape.tolist()}",
        )
    return np.frombuffer(content, np.uint8, offset=header_bytes).reshape(shape)

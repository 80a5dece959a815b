"""Readers of the official files, on tiny files of the same format and on the real CIFAR-10."""

import dataclasses
import gzip
import hashlib
import os
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fda_jax.data import SPECS, ArraySplit, DataError, Dataset, check_labels, load

CIFAR = ("cifar10", "cifar100")
MNIST = ("mnist", "fashion_mnist")
NAMES = (*CIFAR, *MNIST)
RNG = np.random.default_rng(0)


def pickled_batch(name: str, n: int, labels: list[int] | None = None) -> dict[bytes, Any]:
    key = b"labels" if name == "cifar10" else b"fine_labels"
    data = RNG.integers(0, 256, (n, 3072), dtype=np.uint8)
    drawn = RNG.integers(0, SPECS[name].num_classes, n).tolist()
    return {b"data": data, key: drawn if labels is None else labels}


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return gzip.compress(header + values.tobytes(), compresslevel=1)


def official_files(name: str) -> dict[str, bytes]:
    """Tiny files in the official format: 4 examples a CIFAR file, 6 of MNIST."""
    if name in CIFAR:
        records: dict[str, dict[bytes, Any]] = {
            file: pickled_batch(name, 4) for file in SPECS[name].files if "meta" not in file
        }
        key, file = (
            (b"label_names", "batches.meta") if name == "cifar10" else (b"fine_label_names", "meta")
        )
        records[file] = {key: [f"class {i}".encode() for i in range(SPECS[name].num_classes)]}
        return {file: pickle.dumps(record, protocol=2) for file, record in records.items()}
    return {
        file: idx(
            RNG.integers(0, 256, (6, 28, 28), dtype=np.uint8)
            if "images" in file
            else RNG.integers(0, 10, 6, dtype=np.uint8)
        )
        for file in SPECS[name].files
    }


def publish(monkeypatch: pytest.MonkeyPatch, name: str, files: dict[str, bytes]) -> None:
    """Makes the md5 of these files the published ones."""
    sums = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
    monkeypatch.setitem(SPECS, name, dataclasses.replace(SPECS[name], files=sums))


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return folder


def arrays(dataset: Dataset) -> tuple[ArraySplit, ArraySplit]:
    assert isinstance(dataset.train, ArraySplit)
    assert isinstance(dataset.test, ArraySplit)
    return dataset.train, dataset.test


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("nested", [True, False])
def test_files_are_found_in_the_sub_folder_or_in_the_directory_itself(
    name: str, nested: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = official_files(name)
    publish(monkeypatch, name, files)
    write(tmp_path / SPECS[name].folder if nested else tmp_path, files)
    dataset = load(name, dir=tmp_path)
    train, test = arrays(dataset)
    assert len(train) == {"cifar10": 20, "cifar100": 4}.get(name, 6)
    assert len(test) == (4 if name in CIFAR else 6)
    assert train.images.shape[1:] == SPECS[name].image_shape_hwc == dataset.image_shape_hwc
    assert train.images.dtype == np.uint8
    assert train.labels.dtype == np.int32
    assert len(dataset.classes) == SPECS[name].num_classes
    assert train.images.flags.c_contiguous


def test_cifar_pixels_and_labels_come_out_in_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = official_files("cifar10")
    publish(monkeypatch, "cifar10", files)
    dataset = load("cifar10", dir=write(tmp_path, files))
    train, _ = arrays(dataset)
    record = pickle.loads(files["data_batch_3"], encoding="bytes")
    for i, row, column, channel in [(0, 0, 0, 0), (1, 2, 3, 1), (3, 31, 30, 2)]:
        flat = channel * 1024 + row * 32 + column
        assert train.images[8 + i, row, column, channel] == record[b"data"][i, flat]
    np.testing.assert_array_equal(train.labels[8:12], record[b"labels"])
    assert dataset.classes[3] == "class 3"


def test_mnist_pixels_and_labels_come_out_in_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = official_files("mnist")
    publish(monkeypatch, "mnist", files)
    _, test = arrays(load("mnist", dir=write(tmp_path, files)))
    raw = gzip.decompress(files["t10k-images-idx3-ubyte.gz"])
    assert test.images[2, 5, 7, 0] == raw[16 + 2 * 784 + 5 * 28 + 7]
    labels = gzip.decompress(files["t10k-labels-idx1-ubyte.gz"])
    np.testing.assert_array_equal(test.labels, list(labels[8:]))


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named_with_where_to_get_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(name, dir=tmp_path)
    message = str(caught.value)
    assert any(file in message for file in SPECS[name].files)
    assert str(tmp_path) in message
    assert SPECS[name].url in message


@pytest.mark.parametrize("name", CIFAR)
def test_a_packed_archive_is_answered_with_how_to_unpack_it(name: str, tmp_path: Path) -> None:
    archive = SPECS[name].archive
    assert archive is not None
    (tmp_path / archive).write_bytes(b"")
    with pytest.raises(DataError, match=rf"tar -xzf {tmp_path}/{archive} -C {tmp_path}"):
        load(name, dir=tmp_path)


class _Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("name", CIFAR)
def test_an_altered_pickle_is_never_opened(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    attack = pickle.dumps({b"data": _Malicious(victim)})
    pickle.loads(attack)
    assert victim.exists(), "the attack must work where a pickle is opened"
    victim.rmdir()
    files = official_files(name)
    publish(monkeypatch, name, files)
    for file in files:
        folder = write(tmp_path / file, files | {file: attack})
        with pytest.raises(DataError) as caught:
            load(name, dir=folder)
        message = str(caught.value)
        assert file in message
        assert hashlib.md5(attack).hexdigest() in message
        assert hashlib.md5(files[file]).hexdigest() in message
        assert f"{len(attack)} bytes" in message
        assert not victim.exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_file_cut_short_is_told_by_its_md5(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = official_files(name)
    publish(monkeypatch, name, files)
    for file, content in files.items():
        folder = write(tmp_path / f"cut {file}", files | {file: content[:-7]})
        with pytest.raises(DataError, match=rf"{file} \({len(content) - 7} bytes\) has md5"):
            load(name, dir=folder)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keep", [0, 3, 40, -1])
def test_a_file_published_cut_short_is_still_refused(
    name: str, keep: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = official_files(name)
    file = next(iter(files))
    files[file] = files[file][:keep]
    publish(monkeypatch, name, files)
    with pytest.raises(DataError, match=f"file {file} .*cannot be read"):
        load(name, dir=write(tmp_path, files))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (bytes([0, 0, 8, 1, 0, 0, 0, 6]) + bytes(6), "it starts with"),
        (bytes([0, 0, 8, 3]) + struct.pack(">3I", 6, 28, 28) + bytes(5), "5 bytes follow"),
        (bytes([0, 0, 8, 3]) + struct.pack(">3I", *[2**32 - 1] * 3), "0 bytes follow"),
    ],
)
def test_an_idx_file_that_contradicts_its_header_is_refused(
    content: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = official_files("mnist") | {"train-images-idx3-ubyte.gz": gzip.compress(content)}
    publish(monkeypatch, "mnist", files)
    with pytest.raises(DataError, match=said):
        load("mnist", dir=write(tmp_path, files))


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ([1, 2], "holds a list"),
        ({b"labels": [0]}, "no entry b'data'"),
        ({b"data": np.zeros((2, 9), np.uint8), b"labels": [0, 1]}, r"\(2, 9\)"),
        (pickled_batch("cifar10", 3, [0, 1]), "19 images and 18 labels"),
        (pickled_batch("cifar10", 3, [0, 12, 1]), "label 12 of example 1 is outside 0..9"),
        (pickled_batch("cifar10", 3, [0, 4, -2]), "label -2 of example 2 is outside 0..9"),
    ],
)
def test_a_cifar_file_with_wrong_contents_is_refused(
    record: object, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = official_files("cifar10") | {"data_batch_1": pickle.dumps(record, protocol=2)}
    publish(monkeypatch, "cifar10", files)
    with pytest.raises(DataError, match=said):
        load("cifar10", dir=write(tmp_path, files))


def test_check_labels_names_the_worst_value() -> None:
    check_labels(np.array([0, 9, 5]), 10, "x")
    check_labels(np.array([], np.int64), 10, "x")
    with pytest.raises(DataError, match=r"label 300 of example 2 .*2 of 4"):
        check_labels(np.array([3, -1, 300, 0]), 10, "x")
    with pytest.raises(DataError, match="label 255 of example 0"):
        check_labels(np.array([255], np.uint8), 10, "x")
    with pytest.raises(DataError, match="float64"):
        check_labels(np.array([1.0]), 10, "x")
    with pytest.raises(DataError, match=r"\(1, 2\)"):
        check_labels(np.array([[1, 2]]), 10, "x")


def compact_cifar10() -> Path | None:
    """The whole of CIFAR-10 in a compact form, kept beside the repository by some developers."""
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "cifar10"
    return folder if (folder / "test.npz").is_file() else None


def rebuild(folder: Path) -> None:
    """Writes the official python files by the unpacking script that stands beside the data."""
    source = compact_cifar10()
    assert source is not None
    script = source.parents[1] / "tools" / "unpack_cifar10.py"
    subprocess.run([sys.executable, script, folder], check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.skipif(compact_cifar10() is None, reason="CIFAR-10 is not at ../shared/data/cifar10")
def test_the_real_cifar10_has_its_published_shape_and_balance(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("cifar10")
    try:
        rebuild(folder)
        dataset = load("cifar10", dir=folder)
    finally:
        shutil.rmtree(folder)
    train, test = arrays(dataset)
    assert train.images.shape == (50_000, 32, 32, 3)
    assert test.images.shape == (10_000, 32, 32, 3)
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    # The means that everyone quotes for CIFAR-10's training images.
    means = train.images.mean((0, 1, 2), dtype=np.float64) / 255
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=1e-4)
    assert dataset.classes[:3] == ("airplane", "automobile", "bird")
    assert dataset.mean == (0.485, 0.456, 0.406)

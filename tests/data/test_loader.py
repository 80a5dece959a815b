"""Names, arguments, and what happens where an optional package is not installed."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fda_jax.data import SPECS, ArraySplit, DataError, Dataset, load


@pytest.mark.parametrize(
    ("name", "near"),
    [("cifar-10", "cifar10"), ("CIFAR100", "cifar100"), ("fashionmnist", "fashion_mnist")],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(DataError, match=f"Did you mean .*'{near}'"):
        load(name, dir=".")


@pytest.mark.parametrize("name", ["", "xyzzy", "tfds:", "folder:", "torch:cifar10"])
def test_a_name_like_no_other_is_answered_with_the_list(name: str) -> None:
    with pytest.raises(DataError) as caught:
        load(name, dir=".")
    assert all(known in str(caught.value) for known in (*SPECS, "tfds:NAME", "folder:PATH"))


def test_sizes_and_threads_out_of_range_are_named() -> None:
    with pytest.raises(DataError, match=r"data\.image_size is 0"):
        load("digits", dir=".", image_size=0)
    with pytest.raises(DataError, match=r"data\.num_threads is -1"):
        load("digits", dir=".", num_threads=-1)


@pytest.mark.parametrize(
    ("module", "name", "remedy"),
    [
        ("tensorflow_datasets", "tfds:mnist", r"pip install 'fda_jax\[tfds\]'"),
        ("PIL.Image", "folder:x", r"pip install 'fda_jax\[folder\]'"),
        ("grain", "folder:x", r"pip install 'fda_jax\[folder\]'"),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_the_remedy(
    module: str, name: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if module == "grain":
        pytest.importorskip("PIL.Image")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=remedy) as caught:
        load(name, dir=tmp_path)
    assert module in str(caught.value)


def test_importing_the_package_needs_none_of_the_optional_ones() -> None:
    code = (
        "import sys, fda_jax.data\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'grain', 'PIL', 'sklearn'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or None)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_row_of_the_table_is_whole() -> None:
    for name, spec in SPECS.items():
        assert spec.name == name
        assert len(spec.mean) == len(spec.std) == spec.image_shape_hwc[2]
        assert spec.classes is None or len(spec.classes) == spec.num_classes
        assert all(len(md5) == 32 for md5 in spec.files.values())
        assert spec.url.startswith("http")


def test_a_limit_keeps_that_many_training_examples_evenly_spaced_and_all_for_testing() -> None:
    whole, part = load("digits", dir="."), load("digits", dir=".", limit=100)
    assert (len(part.train), len(part.test)) == (100, len(whole.test))
    kept = [i * len(whole.train) // 100 for i in range(100)]
    assert isinstance(whole.train, ArraySplit)
    assert isinstance(part.train, ArraySplit)
    np.testing.assert_array_equal(part.train.images, whole.train.images[kept])
    np.testing.assert_array_equal(part.train.labels, whole.train.labels[kept])


@pytest.mark.parametrize("limit", [-1, 1443])
def test_a_limit_that_is_no_number_of_examples_is_refused(limit: int) -> None:
    with pytest.raises(DataError, match="1442"):
        load("digits", dir=".", limit=limit)


PIXELS, NAMES = np.zeros((300, 4, 4, 3), np.uint8), np.arange(300) % 3


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (PIXELS / 255, NAMES, r"uint8.*np\.rint\(255 \* images\)"),
        (PIXELS[..., 0], NAMES, r"\(300, 4, 4\) uint8, but must be \(n, h, w, c\)"),
        (PIXELS, NAMES[:200], "300 images and 200 labels"),
        (PIXELS[:0], NAMES[:0], "at least one"),
        (PIXELS, np.eye(3)[NAMES], r"labels are \(300, 3\) float64"),
    ],
)
def test_a_split_of_ones_own_must_be_pixels_and_labels(images, labels, said: str) -> None:
    with pytest.raises(DataError, match=said):
        ArraySplit(images, labels)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train": ArraySplit(PIXELS, NAMES + 1)}, r"mine train: label 3 .* outside 0\.\.2"),
        ({"test": ArraySplit(PIXELS[:, :2], NAMES)}, r"mine test: images are \(2, 4, 3\)"),
        ({"mean": (125.3, 123.0, 113.9)}, r"mean is \(125.*\[0, 1\]: of pixels divided by 255"),
        ({"std": (63.0, 62.1, 66.7)}, r"std is \(63.*\(0, 1\]"),
        ({"std": (0.5, 0.0, 0.5)}, r"std is \(0\.5, 0\.0, 0\.5\)"),
        ({"mean": (0.5,)}, "must be 3 numbers"),
        ({"classes": ("a", "b")}, "2 names of classes for 3"),
    ],
)
def test_a_data_set_of_ones_own_must_agree_with_itself(change: dict, said: str) -> None:
    split = ArraySplit(PIXELS, NAMES)
    whole = Dataset("mine", 3, (4, 4, 3), (0.5,) * 3, (0.5,) * 3, (), split, split)
    with pytest.raises(DataError, match=said):
        dataclasses.replace(whole, **change)

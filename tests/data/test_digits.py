"""The embedded digits."""

import importlib.resources

import numpy as np
import pytest

from fda_jax.data import SPECS, ArraySplit, Dataset, load


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", dir="no/such/folder")


def both(digits: Dataset) -> tuple[ArraySplit, ArraySplit]:
    assert isinstance(digits.train, ArraySplit)
    assert isinstance(digits.test, ArraySplit)
    return digits.train, digits.test


def test_there_are_1797_images_and_a_fifth_of_each_class_is_for_testing(digits: Dataset) -> None:
    train, test = both(digits)
    assert (len(train), len(test)) == (1442, 355)
    assert train.images.shape == (1442, 8, 8, 1)
    assert train.images.dtype == np.uint8
    assert train.labels.dtype == np.int32
    assert train.resident


def test_the_splits_are_the_original_with_its_values_stretched_to_255(digits: Dataset) -> None:
    original = pytest.importorskip("sklearn.datasets").load_digits()
    train, test = both(digits)
    expected = np.round(original.images * 255 / 16).astype(np.uint8)[..., None]
    in_test = np.zeros(1797, bool)
    for label in range(10):
        in_test[np.flatnonzero(original.target == label)[4::5]] = True
    np.testing.assert_array_equal(train.images, expected[~in_test])
    np.testing.assert_array_equal(test.images, expected[in_test])
    np.testing.assert_array_equal(train.labels, original.target[~in_test])
    np.testing.assert_array_equal(test.labels, original.target[in_test])


def test_pixels_take_the_17_stretched_values(digits: Dataset) -> None:
    train, _ = both(digits)
    np.testing.assert_array_equal(
        np.unique(train.images), np.rint(np.arange(17) * 255 / 16).astype(np.uint8)
    )


def test_every_class_is_in_both_splits(digits: Dataset) -> None:
    train, test = both(digits)
    assert np.bincount(train.labels, minlength=10).min() >= 120
    assert set(np.bincount(test.labels)) <= {34, 35, 36}
    assert digits.classes == tuple("0123456789")


def test_the_statistics_are_those_of_the_training_images(digits: Dataset) -> None:
    train, _ = both(digits)
    pixels = train.images / 255.0
    np.testing.assert_allclose(digits.mean, pixels.mean(), atol=5e-5)
    np.testing.assert_allclose(digits.std, pixels.std(), atol=5e-5)
    assert digits.mean == SPECS["digits"].mean


def test_the_file_says_where_it_comes_from_and_under_which_licence() -> None:
    resource = importlib.resources.files("fda_jax.data").joinpath("digits.npz")
    with resource.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        assert "Alpaydin" in str(archive["source"])
        assert "CC BY 4.0" in str(archive["licence"])

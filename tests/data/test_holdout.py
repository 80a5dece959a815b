"""Training examples that are held out: which, that none is lost, and what cannot be held out."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from fda_jax.data import ArraySplit, DataError, Dataset, StreamSplit, hold_out, load
from fda_jax.data.folder import ImageFiles

SHAPE = (2, 2, 1)
# Of 1,000 examples of one class, 100 held out: other numbers would judge old runs by other images.
FIRST = [1, 2, 14, 17, 22, 30]


def numbered(labels: np.ndarray) -> Dataset:
    """Training images that hold their own number, with these labels."""
    pixels = np.arange(len(labels), dtype=np.uint32).view(np.uint8).reshape(-1, *SHAPE)
    split = ArraySplit(pixels, labels.astype(np.int32))
    parts = {"train": split, "test": ArraySplit(pixels[:1], split.labels[:1])}
    return Dataset("numbered", 10, SHAPE, (0.5,), (0.5,), (), **parts)


def numbers(split: object) -> list[int]:
    assert isinstance(split, ArraySplit)
    return split.images.reshape(-1).view(np.uint32).tolist()


@pytest.mark.parametrize("count", [1, 7, 250, 999])
@pytest.mark.parametrize("order", ["sorted", "in turn", "random", "uneven"])
def test_each_example_is_in_one_of_the_two_and_each_class_gives_its_share(
    order: str, count: int
) -> None:
    labels = np.arange(1000) % 10
    if order == "sorted":
        labels = np.sort(labels)
    elif order == "random":
        labels = np.random.default_rng(0).permutation(labels)
    elif order == "uneven":
        labels = np.random.default_rng(0).choice([0, 1, 1, 1, 1, 1, 1, 9], 1000)
    whole = numbered(labels)
    parted = hold_out(whole, count)
    kept, held_out = numbers(parted.train), numbers(parted.test)
    assert len(held_out) == count
    assert kept == sorted(kept)
    assert sorted(kept + held_out) == list(range(1000))
    np.testing.assert_array_equal(parted.train.labels, labels[kept])
    np.testing.assert_array_equal(parted.test.labels, labels[held_out])
    shares = np.bincount(labels, minlength=10) * count / 1000
    assert np.abs(np.bincount(labels[held_out], minlength=10) - shares).max() < 1
    assert parted.facts() == {
        "classes": [],
        "training_examples": 1000 - count,
        "holdout_examples": count,
    }


def test_the_choice_within_a_class_is_random_and_the_same_for_ever() -> None:
    held_out = np.array(numbers(hold_out(numbered(np.zeros(1000, int)), 100).test))
    assert held_out[:6].tolist() == FIRST
    gaps = np.diff(held_out)
    assert len(set(gaps.tolist())) > 10
    assert 400 < held_out.mean() < 600


def test_streams_hold_out_files_and_what_has_no_labels_before_it_is_read(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(3, dtype=np.int32), 8)
    files = ImageFiles(tuple(str(tmp_path / f"{i}.png") for i in range(24)), labels)
    whole = Dataset(
        "streams",
        3,
        (8, 8, 3),
        (0.5,) * 3,
        (0.5,) * 3,
        (),
        train=StreamSplit(files, image_size=8, num_threads=0, flip=False),
        test=StreamSplit(files, image_size=8, num_threads=0),
    )
    parted = hold_out(whole, 6)
    assert isinstance(parted.train, StreamSplit)
    assert isinstance(parted.test, StreamSplit)
    assert not parted.train.flip
    np.testing.assert_array_equal(np.bincount(parted.test.labels), [2, 2, 2])
    np.testing.assert_array_equal(np.bincount(parted.train.labels), [6, 6, 6])

    class Unread:
        labels = None

        def __len__(self) -> int:
            return 24

        def __getitem__(self, index: int) -> tuple[int, int]:
            return index, 0

    unknown = dataclasses.replace(whole.train, source=Unread())
    parted = hold_out(dataclasses.replace(whole, train=unknown), 6)
    sources = [part.source for part in (parted.train, parted.test)]
    assert [part.labels for part in sources] == [None, None]
    found = [source[i][0] for source in sources for i in range(len(source))]
    assert (len(sources[0]), sorted(found)) == (18, list(range(24)))


def test_a_photograph_held_out_is_seen_as_a_test_image_is(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    pytest.importorskip("grain")
    rng = np.random.default_rng(0)
    for part, name in ((part, name) for part in ("train", "val") for name in "ab"):
        (tmp_path / part / name).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 256, (12, 20, 3), np.uint8)
            pillow.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    whole = load(f"folder:{tmp_path}", dir=".", image_size=8)
    parted = load(f"folder:{tmp_path}", dir=".", image_size=8, holdout=4)
    asked = [(np.arange(8), np.arange(8))]
    ((every, _),) = whole.train.stream(asked, seed=0, train=False)
    ((held_out, labels),) = parted.test.stream([(np.arange(4), np.arange(4))], seed=0, train=False)
    assert labels.tolist() == [0, 0, 1, 1]
    for image in held_out:
        assert any((image == other).all() for other in every)


def test_a_limit_is_of_what_is_not_held_out() -> None:
    parted = load("digits", dir=".", holdout=1000, limit=100)
    assert (len(parted.train), len(parted.test), parted.eval_split) == (100, 1000, "holdout")
    with pytest.raises(DataError, match=r"data\.limit is 500.* 442 training"):
        load("digits", dir=".", holdout=1000, limit=500)


@pytest.mark.parametrize("count", [-1, 1442, 5000, 0.1])
def test_a_number_that_cannot_be_held_out_is_named(count: int) -> None:
    with pytest.raises(DataError, match=rf"data\.holdout is {count},.* 1441.* 1442 .* digits"):
        load("digits", dir=".", holdout=count)


def test_nothing_is_held_out_twice_or_of_no_kind() -> None:
    parted = load("digits", dir=".", holdout=100)
    with pytest.raises(DataError, match="100 examples held out already"):
        hold_out(parted, 10)
    with pytest.raises(DataError, match="eval_split is 'validation'"):
        dataclasses.replace(parted, eval_split="validation")

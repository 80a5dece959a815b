"""Class folders and their streams, on made-up PNGs and on real photographs where there are any."""

import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fda_jax.data import DataError, Dataset, StreamSplit, load, stream_indices
from fda_jax.data.folder import decode_rgb

pillow = pytest.importorskip("PIL.Image")
pytest.importorskip("grain")

SIZE = 16
COLOURS = {"ant": (200, 30, 30), "bee": (30, 200, 30), "cat": (30, 30, 200)}


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pillow.fromarray(pixels).save(path)


def make_tree(root: Path, eval_folder: str = "val") -> Path:
    """Three classes, each of one colour; 4 train and 2 test images a class, of varied size."""
    rng = np.random.default_rng(0)
    for (side, count), (name, colour) in itertools.product(
        (("train", 4), (eval_folder, 2)), COLOURS.items()
    ):
        for i in range(count):
            pixels = np.empty((20 + 5 * i, 30 - 4 * i, 3), np.uint8)
            pixels[:] = colour
            pixels[: 10 + i] += rng.integers(0, 20, (10 + i, 1, 1), dtype=np.uint8)
            save(root / side / name / f"{i}.{('png', 'PNG', 'bmp', 'webp')[i]}", pixels)
    return root


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("tree") / "images")


@pytest.fixture(scope="module")
def animals(tree: Path) -> Dataset:
    return load("folder:images", dir=tree.parent, image_size=SIZE, num_threads=2)


def streamed(split: object) -> StreamSplit:
    assert isinstance(split, StreamSplit)
    return split


def chunks_of(
    n: int, batch: int, start: int = 0, stop: int = 10**9
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for first in range(start, stop, batch):
        yield stream_indices(n, first, first + batch, 0), np.arange(first, first + batch)


def test_classes_are_the_sorted_folder_names_and_labels_their_places(animals: Dataset) -> None:
    train = streamed(animals.train)
    assert animals.classes == ("ant", "bee", "cat")
    assert animals.image_shape_hwc == (SIZE, SIZE, 3)
    assert (len(train), len(animals.test)) == (12, 6)
    assert not train.resident
    np.testing.assert_array_equal(train.labels, np.repeat(np.arange(3, dtype=np.int32), 4))


@pytest.mark.parametrize("num_threads", [0, 1, 4])
def test_examples_come_in_exactly_the_order_asked(tree: Path, num_threads: int) -> None:
    split = load(f"folder:{tree}", dir="/", image_size=SIZE, num_threads=num_threads).train
    asked = [np.array([11, 0, 5]), np.array([4]), np.array([3, 3, 8, 7, 1])]
    out = list(streamed(split).stream([(a, a) for a in asked], seed=0, train=False))
    for indices, (images, labels) in zip(asked, out, strict=True):
        assert images.shape == (len(indices), SIZE, SIZE, 3)
        assert images.dtype == np.uint8
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(labels, indices // 4)
        # The colour proves that the pixels belong to the label.
        np.testing.assert_array_equal(images.mean((1, 2)).argmax(1), labels)


def test_a_restart_anywhere_repeats_the_same_pixels(animals: Dataset) -> None:
    train = streamed(animals.train)
    whole = list(train.stream(chunks_of(12, 5, 0, 40), seed=3, train=True))
    later = list(train.stream(chunks_of(12, 5, 25, 40), seed=3, train=True))
    rebatched = list(train.stream(chunks_of(12, 8, 0, 40), seed=3, train=True))
    for (a, x), (b, y) in zip(whole[5:], later, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(
        np.concatenate([a for a, _ in whole]), np.concatenate([a for a, _ in rebatched])
    )


def test_another_seed_or_position_gives_another_view(animals: Dataset) -> None:
    def views(seed: int, position: int) -> np.ndarray:
        chunk = (np.arange(12), np.arange(12) + position)
        return next(iter(streamed(animals.train).stream([chunk], seed=seed, train=True)))[0]

    assert (views(0, 0) != views(1, 0)).any()
    assert (views(0, 0) != views(0, 12)).any()
    np.testing.assert_array_equal(views(0, 0), views(0, 0))


def test_test_views_ignore_seed_and_position(animals: Dataset) -> None:
    def views(seed: int, position: int) -> np.ndarray:
        chunk = (np.arange(6), np.arange(6) + position)
        return next(iter(streamed(animals.test).stream([chunk], seed=seed, train=False)))[0]

    np.testing.assert_array_equal(views(0, 0), views(7, 99))


def test_with_nothing_random_training_reads_what_tests_read(animals: Dataset) -> None:
    fixed = replace(streamed(animals.train), smallest_area=1.0, flip=False)
    chunk = (np.arange(12), np.arange(12))
    (train, _), (test, _) = (
        next(iter(fixed.stream([chunk], seed=0, train=train))) for train in (True, False)
    )
    np.testing.assert_array_equal(train, test)
    mirrored = replace(fixed, flip=True)
    seen, _ = next(iter(mirrored.stream([chunk], seed=0, train=True)))
    turned = [bool((a == b[:, ::-1]).all()) for a, b in zip(seen, test, strict=True)]
    assert 0 < sum(turned) < 12
    assert all((a == b).all() for a, b, turn in zip(seen, test, turned, strict=True) if not turn)


def test_padding_is_black_with_label_0(animals: Dataset) -> None:
    chunk = (np.array([5, -1, -1]), np.zeros(3, np.int32))
    ((images, labels),) = streamed(animals.test).stream([chunk], seed=0, train=False)
    assert labels.tolist() == [2, 0, 0]
    assert images[0].any()
    assert not images[1:].any()


def grain_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "grain" in thread.name]


def test_an_endless_stream_is_read_only_a_little_ahead_and_closing_it_ends_its_threads(
    animals: Dataset,
) -> None:
    drawn = 0

    def endless() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        nonlocal drawn
        for chunk in chunks_of(12, 6):
            drawn += 1
            yield chunk

    stream = streamed(animals.train).stream(endless(), seed=0, train=True)
    for _ in range(3):
        next(stream)
    assert drawn <= 6
    assert grain_threads()
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    for _ in range(100):
        if not grain_threads():
            break
        time.sleep(0.05)
    assert not grain_threads()


def test_no_chunks_give_no_examples(animals: Dataset) -> None:
    assert list(streamed(animals.train).stream([], seed=0, train=True)) == []


@pytest.mark.parametrize(
    ("indices", "positions", "said"),
    [
        ([0, 12], [0, 1], "indices 0..12, but the split has examples 0..11"),
        ([-2], [0], r"indices -2..-2"),
        ([0, 1], [0], r"\(2,\) and positions of shape \(1,\)"),
        ([], [], "k of at least 1"),
        ([0], [-1], "position -1"),
    ],
)
def test_a_wrong_chunk_is_refused(
    animals: Dataset, indices: list[int], positions: list[int], said: str
) -> None:
    good = (np.array([0]), np.array([0]))
    bad = (np.array(indices, np.int32), np.array(positions, np.int32))
    with pytest.raises(DataError, match=said):
        list(streamed(animals.train).stream([good, bad], seed=0, train=True))
    with pytest.raises(DataError, match="seed is -1"):
        list(streamed(animals.train).stream([good], seed=-1, train=True))


def test_an_error_of_the_chunks_themselves_reaches_the_consumer(animals: Dataset) -> None:
    def failing() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield np.arange(4), np.arange(4)
        raise RuntimeError("the sampler broke")

    stream = iter(streamed(animals.train).stream(failing(), seed=0, train=True))
    assert len(next(stream)[0]) == 4
    with pytest.raises(RuntimeError, match="the sampler broke"):
        next(stream)


@pytest.mark.parametrize("content", [b"", b"no image at all", "cut"])
def test_a_corrupt_image_is_named_by_its_path(tmp_path: Path, content: bytes | str) -> None:
    root = make_tree(tmp_path)
    victim = root / "train" / "bee" / "0.png"
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    split = streamed(load(f"folder:{root}", dir=".", image_size=SIZE, num_threads=2).train)
    with pytest.raises(DataError, match=str(victim)):
        list(split.stream([(np.arange(12), np.arange(12))], seed=0, train=True))


def test_grey_palette_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    root = make_tree(tmp_path, eval_folder="test")
    grey = np.full((20, 20), 77, np.uint8)
    save(root / "test" / "ant" / "a.png", grey)
    save(root / "test" / "ant" / "b.png", np.dstack([grey] * 4))
    pillow.fromarray(grey).convert("P").save(root / "test" / "ant" / "c.gif")
    split = streamed(load(f"folder:{root}", dir=".", image_size=SIZE, num_threads=2).test)
    ((images, _),) = split.stream([(np.array([2, 3, 4]), np.arange(3))], seed=0, train=False)
    np.testing.assert_array_equal(images, 77)


def test_grey_images_of_16_bits_keep_their_upper_8(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for name in ("grey.png", "grey.tif"):
        pillow.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / name)
        decoded = np.asarray(decode_rgb(str(tmp_path / name)))
        np.testing.assert_array_equal(decoded, np.repeat(grey[..., None], 3, axis=-1))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_images_whose_pixels_have_no_range_are_refused(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "wide.tif"
    pillow.fromarray(np.ones((4, 4), dtype)).save(path)
    with pytest.raises(DataError, match=rf"{path} cannot be decoded.*save it with 8 bits"):
        decode_rgb(str(path))


def test_what_is_only_named_like_an_image_is_refused(tmp_path: Path) -> None:
    make_tree(tmp_path / "images")
    (tmp_path / "images" / "train" / "bee" / "x.jpg").mkdir()
    with pytest.raises(DataError, match=r"x\.jpg is named like an image, but is a folder"):
        load("folder:images", dir=tmp_path)


def test_a_class_on_one_side_only_is_named(tmp_path: Path) -> None:
    root = make_tree(tmp_path)
    (root / "val" / "dog").mkdir()
    (root / "train" / "eel").mkdir()
    with pytest.raises(DataError, match=r"\['eel'\].*\['dog'\]"):
        load(f"folder:{root}", dir=".")


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="val or test"):
        load("folder:.", dir=tmp_path)
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match="train does not exist"):
        load("folder:.", dir=tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="train holds no class folders"):
        load("folder:.", dir=tmp_path)
    for side in ("train", "val"):
        (tmp_path / side / "ant").mkdir()
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match="ant holds no image"):
        load("folder:.", dir=tmp_path)


def real_photographs() -> Path:
    """Some ImageNet photographs, kept beside the repository by some developers."""
    return Path(__file__).resolve().parents[2].parent / "shared" / "data" / "imagenette"


@pytest.mark.skipif(
    not real_photographs().is_dir(), reason="no photographs at ../shared/data/imagenette"
)
def test_real_photographs_are_decoded_into_sensible_pixels() -> None:
    dataset = load(f"folder:{real_photographs()}", dir=".", image_size=64, num_threads=2)
    assert dataset.num_classes == 10
    for split, train in ((dataset.train, True), (dataset.test, False)):
        chunks = itertools.islice(chunks_of(len(split), 32), 3)
        images, labels = (
            np.concatenate(parts)
            for parts in zip(*streamed(split).stream(chunks, seed=0, train=train), strict=True)
        )
        assert images.shape == (96, 64, 64, 3)
        assert 0.3 < images.mean() / 255 < 0.6
        assert images.std((1, 2, 3)).min() > 1
        assert len(set(labels.tolist())) > 5

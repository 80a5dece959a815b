"""What a compiled call reads, from memory and from a stream of decoded files."""

import dataclasses

import numpy as np
import pytest

from fda_jax import data
from fda_jax.training.feed import Feeder, calls, eval_chunks, train_chunks
from fda_jax.training.plan import Plan

PLAN = Plan(
    epochs=2,
    batch_size=8,
    num_train=21,
    num_test=21,
    num_devices=4,
    steps_per_call=2,
    eval_batch_size=8,
    eval_every_epochs=1,
    checkpoint_every_epochs=1,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """21 grey pictures for training and as many for testing, each of a brightness of its own."""
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("grain")
    root = tmp_path_factory.mktemp("pictures")
    for part in ("train", "val"):
        for i in range(21):
            path = root / part / f"class{i % 3}" / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.new("L", (12, 9), 10 * i).save(path)
    return data.load("folder:.", dir=root, image_size=6, num_threads=2)


@pytest.fixture(scope="module")
def digits():
    whole = data.load("digits", dir=".")
    return data.ArraySplit(whole.train.images[:21], whole.train.labels[:21])


def read(item, step=None):
    """Images and labels of one step in the order of the global batch; padding left out."""
    images, labels = [], []
    for device in range(4):
        indices = item.indices[device] if step is None else item.indices[device, step]
        resident = item.images.ndim == 4
        pixels = item.images if resident else item.images[device]
        classes = item.labels if resident else item.labels[device]
        for i in indices:
            if i >= 0:
                images.append(np.asarray(pixels[int(i)]))
                labels.append(int(classes[int(i)]))
    return images, labels


def test_a_resident_split_gives_the_examples_that_the_indices_name(digits):
    chunks = list(train_chunks(PLAN, 3, 0))
    feeds = Feeder(digits, seed=3, train=True).feeds(iter(chunks))
    for call, (indices, _), item in zip(calls(PLAN, 0), chunks, feeds, strict=True):
        for step in range(call.count):
            images, labels = read(item, step)
            np.testing.assert_array_equal(images, digits.images[indices[step]])
            np.testing.assert_array_equal(labels, digits.labels[indices[step]])


def test_a_streamed_split_gives_the_examples_that_the_indices_name(folder):
    chunks = list(train_chunks(PLAN, 3, 0))
    feeds = Feeder(folder.train, seed=3, train=True).feeds(iter(chunks))
    shapes = set()
    for call, (indices, _), item in zip(calls(PLAN, 0), chunks, feeds, strict=True):
        shapes.add((item.images.shape, item.labels.shape, item.indices.shape))
        for step in range(call.count):
            images, labels = read(item, step)
            # Within a class the files are sorted, so brightness tells which file it was.
            of_class = [[i for i in range(21) if i % 3 == c] for c in range(3)]
            files = [i for members in of_class for i in members]
            wanted = [files[i] for i in indices[step]]
            assert [int(image[0, 0, 0]) // 10 for image in images] == wanted
            assert labels == [i % 3 for i in wanted]
    assert shapes == {((4, 4, 6, 6, 3), (4, 4), (4, 2, 2))}


def test_a_streamed_test_set_is_read_once_whatever_its_last_batch_holds(folder):
    feeds = Feeder(folder.test, seed=0, train=False).feeds(eval_chunks(PLAN))
    seen = [int(image[0, 0, 0]) // 10 for item in feeds for image in read(item)[0]]
    assert sorted(seen) == list(range(21))


def test_the_examples_of_a_step_come_back_for_a_diagnosis(digits, folder):
    chunks = list(train_chunks(PLAN, 3, 0))[:1]
    for split in (digits, folder.train):
        (item,) = Feeder(split, seed=3, train=True).feeds(iter(chunks))
        images, labels = item.examples_of(1)
        wanted_images, wanted_labels = read(item, 1)
        np.testing.assert_array_equal(images, wanted_images)
        np.testing.assert_array_equal(labels, wanted_labels)


def test_a_step_that_is_looked_at_is_the_first_of_its_call():
    plan = dataclasses.replace(PLAN, steps_per_call=4, diagnose_every_steps=2)
    found = list(calls(plan, 0))
    assert [(call.step, call.count) for call in found] == [(0, 2), (2, 1), (3, 1), (4, 2)]
    assert [call.step for call in found if plan.is_diagnosed(call.step)] == [0, 2, 4]
    resumed = list(calls(plan, 1))
    assert [(call.step, call.count) for call in resumed] == [(1, 1), (2, 1), (3, 1), (4, 2)]
    chunks = np.concatenate([rows[rows >= 0] for rows, _ in train_chunks(plan, 0, 0)])
    unbroken = np.concatenate([rows[rows >= 0] for rows, _ in train_chunks(PLAN, 0, 0)])
    np.testing.assert_array_equal(chunks, unbroken)

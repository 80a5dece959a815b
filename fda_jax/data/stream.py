"""Decodes images in parallel ahead of the consumer, in exactly the order asked for."""

import itertools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fda_jax.data.errors import DataError, require
from fda_jax.data.views import eval_view, train_view

PADDING = -1


class ExampleSource(Protocol):
    """Random access to decoded examples; reading must be safe from several threads."""

    @property
    def labels(self) -> np.ndarray | None:
        """All labels, (n,) int32, or None where they cannot be had cheaply."""
        ...

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """The example's image (a Pillow image in mode RGB) and label."""
        ...


@dataclass(frozen=True)
class _Request:
    index: int
    position: int
    ends_chunk: bool


class _RequestQueue:
    """Random access over a lazy iterable of chunks, which is what grain's prefetcher reads.

    The prefetcher asks for every number 0, 1, 2, ... once, but from several threads and so not
    quite in order. Chunks are drawn as far as the largest number asked for, never further, so the
    iterable may be endless. Numbers past its end give None.
    """

    def __init__(self, chunks: Iterator[tuple[np.ndarray, np.ndarray]], num_examples: int):
        self._chunks = chunks
        self._num_examples = num_examples
        self._pending: dict[int, _Request] = {}
        self._num_drawn = 0
        self._ended = False
        self._failure: BaseException | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, number: int) -> tuple[_Request | None]:
        with self._lock:
            while number >= self._num_drawn and not self._ended:
                self._draw()
            # A failure is told to every thread: the one that meets it need not be the one whose
            # result the consumer waits for first.
            if number >= self._num_drawn and self._failure is not None:
                raise self._failure
            # In a tuple, because grain drops elements that are None.
            return (self._pending.pop(number, None),)

    def _draw(self) -> None:
        try:
            chunk = next(self._chunks, None)
            requests = [] if chunk is None else _requests(*chunk, self._num_examples)
        except BaseException as error:
            self._failure, self._ended = error, True
            raise
        self._ended = chunk is None
        self._pending.update(enumerate(requests, start=self._num_drawn))
        self._num_drawn += len(requests)


def _requests(indices: np.ndarray, positions: np.ndarray, num_examples: int) -> list[_Request]:
    """One request per example of a chunk, after checking the chunk."""
    indices, positions = np.asarray(indices), np.asarray(positions)
    if indices.ndim != 1 or indices.shape != positions.shape or indices.size == 0:
        raise DataError(
            f"a chunk has indices of shape {indices.shape} and positions of shape "
            f"{positions.shape}; both must be (k,) with the same k of at least 1."
        )
    if indices.min() < PADDING or indices.max() >= num_examples:
        raise DataError(
            f"a chunk asks for indices {indices.min()}..{indices.max()}, but the split has "
            f"examples 0..{num_examples - 1} ({PADDING} stands for padding)."
        )
    if positions.min() < 0:
        raise DataError(f"a chunk holds position {positions.min()}; positions count from 0.")
    last = indices.size - 1
    pairs = zip(indices.tolist(), positions.tolist(), strict=True)
    return [_Request(index, position, i == last) for i, (index, position) in enumerate(pairs)]


def stream_examples(
    source: ExampleSource,
    chunks: Iterable[tuple[np.ndarray, np.ndarray]],
    *,
    image_size: int,
    num_threads: int,
    seed: int,
    train: bool,
    smallest_area: float,
    flip: bool,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The engine of `StreamSplit.stream`, which documents the arguments with its class."""
    grain = require("grain", extra="folder", purpose="streaming images from disk")
    if not 0 <= seed < 2**64:
        raise DataError(f"seed is {seed}; it must lie in 0..2**64 - 1.")
    chunks = iter(chunks)
    first = next(chunks, None)
    if first is None:
        return

    def view(image: Any, position: int) -> np.ndarray:
        if not train:
            return eval_view(image, image_size)
        rng = example_rng(seed, position)
        return train_view(image, image_size, rng, smallest_area=smallest_area, flip=flip)

    def decode(asked: tuple[_Request | None]) -> tuple[Any, ...]:
        (request,) = asked
        if request is None:
            return ()
        image, label = _read(source, request, image_size, view)
        return image, label, request.ends_chunk

    # Two chunks ahead: one being gathered, one being decoded while the device computes.
    ahead = max(2 * num_threads, 2 * len(first[0])) if num_threads else 0
    examples = iter(
        grain.MapDataset.source(_RequestQueue(itertools.chain([first], chunks), len(source)))
        .map(decode)
        .to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=ahead))
    )
    try:
        yield from _gather(examples)
    finally:
        examples.close()


def _gather(examples: Iterator[tuple[Any, ...]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Stacks single examples into the chunks that were asked for; an empty tuple is the end."""
    images: list[np.ndarray] = []
    labels: list[int] = []
    for example in examples:
        if not example:
            return
        image, label, ends_chunk = example
        images.append(image)
        labels.append(label)
        if ends_chunk:
            yield np.stack(images), np.asarray(labels, np.int32)
            images, labels = [], []


def _read(
    source: ExampleSource,
    request: _Request,
    image_size: int,
    view: Callable[[Any, int], np.ndarray],
) -> tuple[np.ndarray, int]:
    if request.index == PADDING:
        return np.zeros((image_size, image_size, 3), np.uint8), 0
    image, label = source[request.index]
    return view(image, request.position), label


def example_rng(seed: int, position: int) -> np.random.Generator:
    """The random numbers of one training example.

    Args:
        seed: the run's data seed, 0 <= seed < 2**64.
        position: the example's number in the endless training stream, >= 0.

    Returns:
        A generator that depends on nothing but the two.
    """
    key = np.array([seed, position], np.uint64)
    # The counter starts far from 0, where the sampler's numbers for (seed, epoch) start.
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, 1]))

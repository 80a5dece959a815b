"""From a data split to the arguments of a compiled call: images, labels and indices."""

import dataclasses
import math
from collections.abc import Generator, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from fda_jax import data
from fda_jax.training import devices
from fda_jax.training.plan import Plan

# Pairs of indices into a split and positions in the stream, both (..., batch) of all devices.
Chunks = Iterator[tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Call:
    """A run of steps inside one epoch.

    Attributes:
      step: number of steps finished before it.
      count: how many steps it runs, at most `Plan.steps_per_call`.
    """

    step: int
    count: int


@dataclasses.dataclass(frozen=True)
class Feed:
    """What one compiled call reads.

    Attributes:
      images: uint8, see `axis`.
      labels: int32, see `axis`.
      indices: int32 (local devices, ..., batch / devices) into images and labels.
    """

    images: jax.Array | np.ndarray
    labels: jax.Array | np.ndarray
    indices: np.ndarray

    def examples_of(self, row: int) -> tuple[jax.Array, jax.Array]:
        """Images and labels of this process in one step of the call."""
        chosen = self.indices[:, row]
        if self.images.ndim == 4:  # resident: no device axis
            chosen = chosen.reshape(-1)
            return jnp.asarray(self.images[chosen]), jnp.asarray(self.labels[chosen])
        images = [part[i] for part, i in zip(self.images, chosen, strict=True)]
        labels = [part[i] for part, i in zip(self.labels, chosen, strict=True)]
        return jnp.concatenate(images), jnp.concatenate(labels)


def axis(split: data.Split) -> int | None:
    """in_axes of images and labels: None where every device holds the whole split, else 0."""
    return None if split.resident else 0


class Feeder:
    """Gives each call its examples: a resident split once, a stream chunk by chunk.

    Args:
      split: where from.
      seed: of the host-side augmentation of streams.
      train: whether streams are augmented.
    """

    def __init__(self, split: data.Split, *, seed: int, train: bool) -> None:
        self._seed = seed
        self._train = train
        self._stream = split if isinstance(split, data.StreamSplit) else None
        self._resident = None
        if isinstance(split, data.ArraySplit):
            self._resident = devices.replicate((split.images, split.labels))

    def feeds(self, chunks: Chunks) -> Generator[Feed, None, None]:
        """Yield a feed for each chunk (indices, positions), both (..., batch) of all devices."""
        if self._stream is not None:
            yield from self._streamed(self._stream, chunks)
        elif self._resident is not None:
            images, labels = self._resident
            for indices, _ in chunks:
                yield Feed(images, labels, devices.split(indices))

    def _streamed(self, stream: data.StreamSplit, chunks: Chunks) -> Generator[Feed, None, None]:
        asked: list[np.ndarray] = []  # of the chunks that are being decoded

        def local() -> Chunks:
            for indices, positions in chunks:
                asked.append(devices.split(indices))
                yield asked[-1].reshape(-1), devices.split(positions).reshape(-1)

        for images, labels in stream.stream(local(), seed=self._seed, train=self._train):
            mine = asked.pop(0)
            places = np.arange(mine[0].size, dtype=np.int32).reshape(mine[0].shape)
            yield Feed(
                images.reshape(len(mine), -1, *images.shape[1:]),
                labels.reshape(len(mine), -1),
                np.where(mine >= 0, places, -1),
            )


def calls(plan: Plan, step: int) -> Iterator[Call]:
    """The calls from `step` to the end of the run.

    None reaches over the end of an epoch, and a step that is looked at is the first of its call.
    """
    while step < plan.total_steps:
        end = plan.end_of_epoch(plan.epoch_of_step(step))
        every = plan.diagnose_every_steps
        if every:
            end = min(end, (step // every + 1) * every)
        count = min(plan.steps_per_call, end - step)
        yield Call(step, count)
        step += count


def train_chunks(plan: Plan, seed: int, step: int) -> Chunks:
    """Indices and stream positions (rows_per_call, batch) of each call from `step` on.

    Rows beyond a call's count are padding (-1), which the call never reads.
    """
    for call in calls(plan, step):
        start = call.step * plan.batch_size
        positions = np.arange(start, start + call.count * plan.batch_size, dtype=np.int64)
        indices = data.stream_indices(plan.num_train, start, start + len(positions), seed)
        shape = (plan.rows_per_call, plan.batch_size)
        missing = math.prod(shape) - len(positions)
        yield (
            np.pad(indices, (0, missing), constant_values=-1).reshape(shape),
            np.pad(positions, (0, missing)).reshape(shape),
        )


def eval_chunks(plan: Plan) -> Chunks:
    """Indices and positions (eval batch,) that cover the test set once; -1 pads the last."""
    for start in range(0, plan.num_test, plan.eval_batch_size):
        indices = np.arange(start, start + plan.eval_batch_size, dtype=np.int32)
        yield np.where(indices < plan.num_test, indices, -1), indices

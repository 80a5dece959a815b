"""A validation split: training examples that are held out, to be judged by in place of the test."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fda_jax.data.errors import DataError
from fda_jax.data.splits import ArraySplit, Dataset, Split
from fda_jax.data.stream import ExampleSource

# Of the choice; the same in every run, whatever its seed, so that runs are judged by the same.
_KEY = 0


@dataclass(frozen=True, eq=False)
class Chosen:
    """Some examples of a source.

    Attributes:
        source: of all.
        indices: (n,), integers, of those that were chosen.
    """

    source: ExampleSource
    indices: np.ndarray

    @property
    def labels(self) -> np.ndarray | None:
        """Their labels, (n,) int32; None where those of the source are not known."""
        labels = self.source.labels
        return None if labels is None else labels[self.indices]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """The decoded example's image and label."""
        return self.source[int(self.indices[index])]


def hold_out(dataset: Dataset, num_examples: int) -> Dataset:
    """Divides the training examples in two: some to train on, the others to be judged by.

    Which are held out depends on nothing but their number, the number of all and their labels: it
    is the same for every seed. Each class gives its share, to within one example, where the labels
    are known without decoding an image; where they are not, all are drawn alike.

    Args:
        dataset: as loaded.
        num_examples: how many to hold out, 1 <= num_examples < number of training examples.

    Returns:
        The data set with the rest as `train`, in its old order, and those held out as `test`;
        `eval_split` says so. The test examples are left out.

    Raises:
        DataError: the number is out of its range, or examples are held out already.

    Examples:
        >>> from fda_jax import data
        >>> digits = data.hold_out(data.load("digits", dir="."), 144)
        >>> len(digits.train), len(digits.test), digits.eval_split
        (1298, 144, 'holdout')
    """
    if dataset.eval_split != "test":
        raise DataError(
            f"{dataset.name} has {len(dataset.test)} examples held out already; hold some out of "
            "the data as they are loaded."
        )
    total = len(dataset.train)
    if not isinstance(num_examples, int) or not 0 < num_examples < total:
        raise DataError(
            f"data.holdout is {num_examples}, but must be a whole number between 0 (none) and "
            f"{total - 1}, which leaves one of the {total} training examples of {dataset.name}: "
            "set --config.data.holdout=0 to be judged by the test set."
        )
    held_out = _choose(dataset.train, num_examples)
    rest = np.setdiff1d(np.arange(total), held_out)
    return replace(
        dataset,
        train=_part(dataset.train, rest),
        test=_part(dataset.train, held_out),
        eval_split="holdout",
    )


def _choose(split: Split, count: int) -> np.ndarray:
    """Evenly spaced places in an order by class, random within each."""
    total = len(split)
    key = np.array([_KEY, total], np.uint64)
    # The raw numbers are those of NumPy's every version.
    random = np.random.Philox(key=key, counter=[0, 0, 0, 2]).random_raw(total)
    labels = np.zeros(total) if split.labels is None else split.labels
    order = np.lexsort((random, labels))
    return np.sort(order[np.arange(count) * total // count])


def _part(split: Split, indices: np.ndarray) -> Split:
    if isinstance(split, ArraySplit):
        return ArraySplit(images=split.images[indices], labels=split.labels[indices])
    return replace(split, source=Chosen(split.source, indices))

"""What a loaded data set is: two splits, each either resident in memory or streamed from disk."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from fda_jax.data.errors import DataError
from fda_jax.data.stream import ExampleSource, stream_examples
from fda_jax.data.views import SMALLEST_AREA


def check_labels(labels: np.ndarray, num_classes: int, name: str) -> None:
    """Checks that every label names a class.

    Without this check a wrong label is silent: a one-hot of it is all zeros, and a gather clips.

    Args:
        labels: (n,), any integer dtype.
        num_classes: number of classes; valid labels are 0 .. num_classes - 1.
        name: what the labels belong to, for the message (such as "cifar10 train").

    Raises:
        DataError: labels are not whole numbers in one row, or one is out of range; the message
            names the worst value and where it stands.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{name}: labels must be a row of whole numbers, (n,) of an integer dtype, but are "
            f"{labels.shape} {labels.dtype}; convert them before building the split."
        )
    values = labels.astype(np.int64)
    excess = np.maximum(-values, values - (num_classes - 1))
    if excess.size == 0 or excess.max() <= 0:
        return
    worst = int(excess.argmax())
    raise DataError(
        f"{name}: label {values[worst]} of example {worst} is outside 0..{num_classes - 1} "
        f"({int((excess > 0).sum())} of {values.size} labels are); correct the labels or the "
        f"number of classes ({num_classes})."
    )


@dataclass(frozen=True, eq=False)
class ArraySplit:
    """A split small enough to live in memory (and on the device) as a whole.

    Attributes:
        images: (n, h, w, c), uint8, 0..255.
        labels: (n,), integers, class indices from 0.
        resident: always True; tells the two kinds of split apart.

    Raises:
        DataError: another dtype or rank, lengths that differ, or no examples.
    """

    images: np.ndarray
    labels: np.ndarray
    resident: ClassVar[Literal[True]] = True

    def __post_init__(self) -> None:
        """Refuse arrays that would train on something else than they seem to hold."""
        images, labels = np.asanyarray(self.images), np.asanyarray(self.labels)
        if images.dtype != np.uint8 or images.ndim != 4:
            raise DataError(
                f"images are {images.shape} {images.dtype}, but must be (n, h, w, c) uint8, pixels "
                "0..255: give np.rint(255 * images).astype(np.uint8) for pixels in [0, 1], and "
                "images[..., None] for grey ones without an axis of channels."
            )
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise DataError(
                f"labels are {labels.shape} {labels.dtype}, but must be (n,) of an integer dtype: "
                "a class's number for each image, from 0."
            )
        if len(images) != len(labels) or len(images) == 0:
            raise DataError(
                f"{len(images)} images and {len(labels)} labels; give one label for each image, "
                "and at least one of both."
            )

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class StreamSplit:
    """A split whose images are decoded on the host, in parallel, ahead of the consumer.

    Attributes:
        source: random access to the decoded examples.
        image_size: height and width of the images it yields, pixels.
        num_threads: decoding threads; 0 decodes in the consumer's own thread.
        smallest_area: of the random part of an image that training sees, as a share of the whole,
            in (0, 1]; 1 for the central crop that tests see.
        flip: whether training sees half of the images flipped.
        resident: always False; tells the two kinds of split apart.
    """

    source: ExampleSource
    image_size: int
    num_threads: int
    smallest_area: float = SMALLEST_AREA
    flip: bool = True
    resident: ClassVar[Literal[False]] = False

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.source)

    @property
    def labels(self) -> np.ndarray | None:
        """All labels, (n,) int32; None where finding them means reading every image."""
        return self.source.labels

    def stream(
        self, chunks: Iterable[tuple[np.ndarray, np.ndarray]], *, seed: int, train: bool
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the examples asked for, chunk by chunk, in exactly the order asked.

        Args:
            chunks: pairs (indices, positions), each (k,) of integers; k may differ between
                chunks, and the iterable may be lazy or endless. Index -1 is padding: an all-zero
                image with label 0. A position is the example's number in the endless training
                stream; with `seed` it alone decides the random crop and flip, so a run restarted
                anywhere sees the same pixels. Positions are ignored where train is False.
            seed: seed of the crops and flips, 0 <= seed < 2**64.
            train: random resized crop and flip, as `smallest_area` and `flip` say, if True; central
                crop if False.

        Yields:
            (images (k, image_size, image_size, 3) uint8 RGB 0..255, labels (k,) int32).

        Raises:
            DataError: an index, position or label out of range, an empty or uneven chunk, or an
                image that cannot be decoded (the message holds its path).
        """
        return stream_examples(
            self.source,
            chunks,
            image_size=self.image_size,
            num_threads=self.num_threads,
            seed=seed,
            train=train,
            smallest_area=self.smallest_area,
            flip=self.flip,
        )


Split = ArraySplit | StreamSplit

# What accuracies are reported on.
EVAL_SPLITS = ("test", "holdout")


@dataclass(frozen=True, eq=False)
class Dataset:
    """A loaded data set.

    Attributes:
        name: as given to `load`.
        num_classes: number of classes.
        image_shape_hwc: height, width (pixels), channels of every image of both splits.
        mean: per-channel mean of pixels in [0, 1], for `normalize`: 0..1 each.
        std: per-channel standard deviation of pixels in [0, 1], for `normalize`: above 0, up to 1.
        classes: class names by label; () where they have none.
        train: the training split.
        test: the split that accuracies are reported on.
        eval_split: what `test` is, one of `EVAL_SPLITS`: the data's test examples, or training
            examples that were held out, see `hold_out`.

    Raises:
        DataError: images of another shape, a label that names no class, or a mean, std, classes or
            eval_split that do not fit.
    """

    name: str
    num_classes: int
    image_shape_hwc: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    train: Split
    test: Split
    eval_split: str = "test"

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        shape, channels = tuple(self.image_shape_hwc), self.image_shape_hwc[-1]
        for key, values, low in (("mean", self.mean, "[0"), ("std", self.std, "(0")):
            fits = (0 <= v <= 1 and (v > 0 or key == "mean") for v in values)
            if len(values) != channels or not all(fits):
                raise DataError(
                    f"{self.name}: {key} is {tuple(values)}, but must be {channels} numbers, one a "
                    f"channel, each in {low}, 1]: of pixels divided by 255."
                )
        if self.eval_split not in EVAL_SPLITS:
            raise DataError(
                f"{self.name}: eval_split is {self.eval_split!r}, but must be "
                f"{' or '.join(map(repr, EVAL_SPLITS))}."
            )
        if len(self.classes) not in (0, self.num_classes):
            raise DataError(
                f"{self.name}: {len(self.classes)} names of classes for {self.num_classes} "
                "classes; give one for each, or ()."
            )
        for part, split in (("train", self.train), (self.eval_split, self.test)):
            if isinstance(split, ArraySplit) and split.images.shape[1:] != shape:
                raise DataError(
                    f"{self.name} {part}: images are {split.images.shape[1:]}, but "
                    f"image_shape_hwc is {shape}; both splits must have the shape named there."
                )
            if split.labels is not None:
                check_labels(split.labels, self.num_classes, f"{self.name} {part}")

    def facts(self) -> dict[str, Any]:
        """What tells these data from others of the name: classes, in order, and numbers of
        examples; JSON values."""
        return {
            "classes": list(self.classes),
            "training_examples": len(self.train),
            f"{self.eval_split}_examples": len(self.test),
        }


def array_split(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    image_shape_hwc: tuple[int, int, int],
    num_classes: int,
    name: str,
) -> ArraySplit:
    """Builds a resident split after checking that its parts agree.

    Args:
        images: (n, h, w, c), uint8, 0..255.
        labels: (n,), any integer dtype.
        image_shape_hwc: the shape that every image must have.
        num_classes: number of classes.
        name: what this is, for messages.

    Returns:
        The split, labels as int32.

    Raises:
        DataError: wrong shape or dtype, counts that differ, no examples, or a label out of range.
    """
    if images.dtype != np.uint8 or images.shape[1:] != image_shape_hwc:
        raise DataError(
            f"{name}: images are {images.shape} {images.dtype}, but must be "
            f"(n, {', '.join(map(str, image_shape_hwc))}) uint8; get the official files again."
        )
    if len(images) != len(labels) or len(images) == 0:
        raise DataError(
            f"{name}: {len(images)} images and {len(labels)} labels; there must be as many of one "
            "as of the other, and at least one. Get the files again."
        )
    check_labels(labels, num_classes, name)
    return ArraySplit(images=np.ascontiguousarray(images), labels=labels.astype(np.int32))

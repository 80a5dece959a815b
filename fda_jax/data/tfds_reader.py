"""Any image classification data set of tensorflow-datasets, read without TensorFlow."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fda_jax.data.errors import DataError, require
from fda_jax.data.specs import statistics
from fda_jax.data.splits import ArraySplit, Dataset, Split, StreamSplit, array_split

MAX_RESIDENT_EXAMPLES = 100_000
MAX_RESIDENT_BYTES = 512 * 2**20
# Their test split carries the label -1 throughout, so accuracies are reported on validation.
_UNLABELLED_TEST = ("imagenet2012", "imagenet2012_subset")


@dataclass(frozen=True, eq=False)
class TfdsExamples:
    """Random access to a tfds data source as RGB images and checked labels.

    Attributes:
        source: the tfds data source.
        image_key: feature that holds the image.
        label_key: feature that holds the label.
        num_classes: number of classes.
        name: for messages.
        labels: always None, for reading them all means decoding every image.
    """

    source: Any
    image_key: str
    label_key: str
    num_classes: int
    name: str
    labels: None = None

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """The decoded Pillow RGB image and its label."""
        pillow = require("PIL.Image", extra="folder", purpose=f"{self.name!r}")
        try:
            example = self.source[index]
        # The decoders below tfds raise nearly anything on broken input.
        except Exception as error:
            raise DataError(
                f"{self.name}: example {index} cannot be decoded ({type(error).__name__}: "
                f"{error}); prepare the data set again."
            ) from error
        label = int(example[self.label_key])
        if not 0 <= label < self.num_classes:
            raise DataError(
                f"{self.name}: label {label} of example {index} is outside "
                f"0..{self.num_classes - 1}; this split cannot be learned from or tested on."
            )
        image = np.asarray(example[self.image_key])
        # Pillow has no picture of shape (h, w, 1).
        return pillow.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).convert(
            "RGB"
        ), label


def load_tfds(name: str, directory: Path, *, image_size: int, num_threads: int) -> Dataset:
    """Loads a data set that tfds has prepared in the array_record format.

    A data set whose images all have one shape, of at most MAX_RESIDENT_EXAMPLES examples and
    MAX_RESIDENT_BYTES, is decoded once and kept in memory at its own size. Any other is streamed,
    cropped to `image_size` in RGB as class folders are.

    Args:
        name: as tfds knows it, such as "cifar10" or "imagenet2012:5.1.0".
        directory: tfds's data_dir.
        image_size: side of streamed images, pixels; unused where the data set becomes resident.
        num_threads: decoding threads.

    Returns:
        The data set; test is tfds's split "test", or "validation" where there is none (or where
        the test labels are secret).

    Raises:
        DataError: unknown name, not prepared, no images with class labels, a label out of range,
            or tensorflow-datasets is not installed.
    """
    tfds = require("tensorflow_datasets", extra="tfds", purpose=f"'tfds:{name}'")
    builder = _builder(tfds, name, directory)
    image_key, label_key = _feature_keys(tfds, name, builder.info)
    shape, label_feature = builder.info.features[image_key].shape, builder.info.features[label_key]
    sources = {
        part: _data_source(builder, name, directory, split)
        for part, split in (("train", "train"), ("test", _eval_split(builder, name)))
    }
    examples = {
        part: TfdsExamples(
            source, image_key, label_key, label_feature.num_classes, f"tfds:{name} {part}"
        )
        for part, source in sources.items()
    }
    resident = _fits_in_memory(shape, sum(map(len, sources.values())))
    shape = shape if resident else (image_size, image_size, 3)
    mean, std = statistics(builder.name, shape[-1])

    def split(part: str) -> Split:
        if resident:
            return _decode_all(examples[part], shape, num_threads)
        require("grain", extra="folder", purpose=f"'tfds:{name}'")
        return StreamSplit(examples[part], image_size=image_size, num_threads=num_threads)

    return Dataset(
        name=f"tfds:{name}",
        num_classes=label_feature.num_classes,
        image_shape_hwc=shape,
        mean=mean,
        std=std,
        classes=tuple(label_feature.names),
        train=split("train"),
        test=split("test"),
    )


def _builder(tfds: Any, name: str, directory: Path) -> Any:
    try:
        return tfds.builder(name, data_dir=str(directory))
    except tfds.core.DatasetNotFoundError as error:
        raise DataError(
            f"tensorflow-datasets knows no data set {name!r}, and {directory} holds none of that "
            "name; tensorflow_datasets.list_builders() lists the names."
        ) from error
    except ImportError as error:
        raise DataError(
            f"'tfds:{name}' cannot even be described without another package ({error}); if it is "
            "TensorFlow, install it with: pip install 'fda_jax[tfds-prepare]'"
        ) from error


def _feature_keys(tfds: Any, name: str, info: Any) -> tuple[str, str]:
    keys = info.supervised_keys or ("image", "label")
    kinds = (tfds.features.Image, tfds.features.ClassLabel)
    features = info.features
    if len(keys) != 2 or not all(
        key in features and isinstance(features[key], kind)
        for key, kind in zip(keys, kinds, strict=True)
    ):
        raise DataError(
            f"'tfds:{name}' has features {sorted(features)} and supervised keys {keys}, which are "
            "not one image and one class label; only such data sets can be classified."
        )
    return keys[0], keys[1]


def _eval_split(builder: Any, name: str) -> str:
    splits = builder.info.splits
    secret = builder.name in _UNLABELLED_TEST
    # A data set that is not prepared has no splits yet; opening one then tells the remedy.
    if not splits or ("test" in splits and not secret):
        return "test"
    if "validation" in splits:
        return "validation"
    raise DataError(
        f"'tfds:{name}' has the splits {sorted(splits)}, but accuracies are reported on a "
        "labelled split 'test' or 'validation'; choose a data set that has one."
    )


def _data_source(builder: Any, name: str, directory: Path, split: str) -> Any:
    try:
        return builder.as_data_source(split=split)
    except (NotImplementedError, AssertionError, OSError, ValueError, KeyError) as error:
        prepare = (
            "import tensorflow_datasets as tfds; "
            f"tfds.builder({name!r}, data_dir={str(directory)!r}, "
            "file_format='array_record').download_and_prepare()"
        )
        reason = str(error).partition(" Possible root causes")[0] or type(error).__name__
        raise DataError(
            f"'tfds:{name}': split {split!r} is not prepared in {directory} in the array_record "
            f"format ({reason}). "
            f'Prepare it once with: python -c "{prepare}" (this step alone needs TensorFlow: '
            "pip install 'fda_jax[tfds-prepare]'). If it was prepared there in another format, "
            "delete that copy first or choose another folder."
        ) from error


def _fits_in_memory(shape: tuple[int | None, ...], num_examples: int) -> bool:
    sizes = [size for size in shape if size is not None]
    fixed = len(sizes) == len(shape)
    num_bytes = num_examples * int(np.prod(sizes, dtype=np.int64))
    return fixed and num_examples <= MAX_RESIDENT_EXAMPLES and num_bytes <= MAX_RESIDENT_BYTES


def _decode_all(
    examples: TfdsExamples, shape: tuple[int, int, int], num_threads: int
) -> ArraySplit:
    images = np.empty((len(examples), *shape), np.uint8)
    labels = np.empty(len(examples), np.int64)

    def decode(index: int) -> None:
        example = examples.source[index]
        images[index] = example[examples.image_key]
        labels[index] = example[examples.label_key]

    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        for _ in pool.map(decode, range(len(examples))):
            pass
    return array_split(
        images,
        labels,
        image_shape_hwc=shape,
        num_classes=examples.num_classes,
        name=examples.name,
    )

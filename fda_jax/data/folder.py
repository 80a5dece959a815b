"""Class folders of images, ImageNet's layout: <path>/train/<class>/* and <path>/val/<class>/*."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fda_jax.data.errors import DataError, require
from fda_jax.data.specs import IMAGENET_MEAN, IMAGENET_STD
from fda_jax.data.splits import Dataset, StreamSplit, check_labels

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
TRAIN_FOLDER = "train"
EVAL_FOLDERS = ("val", "test")


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Random access to labelled image files.

    Attributes:
        paths: one path per example.
        labels: (n,), int32.
    """

    paths: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """The decoded Pillow RGB image and its label."""
        return decode_rgb(self.paths[index]), int(self.labels[index])


def decode_rgb(path: str) -> Any:
    """Reads one image file.

    Args:
        path: of the image.

    Returns:
        Pillow image in mode RGB; grey and palette images are converted, of 16-bit grey the upper 8
        bits are kept, transparency is dropped.

    Raises:
        DataError: the file cannot be read or decoded, or its pixels have no known range (32-bit
            integers, floats); the message holds its path.
    """
    pillow = require("PIL.Image", extra="folder", purpose="decoding image files")
    try:
        with pillow.open(path) as image:
            # Pillow's conversion to RGB would cut everything above 255 off.
            if image.mode.startswith("I;16"):
                image = pillow.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode in ("I", "F"):
                raise ValueError(f"pixels of mode {image.mode} have no range; save it with 8 bits")
            return image.convert("RGB")
    # Pillow's decoders raise nearly anything on broken input.
    except Exception as error:
        raise DataError(
            f"image {path} cannot be decoded ({type(error).__name__}: {error}); replace the file, "
            "or remove it and train from the start in another folder."
        ) from error


def load_folder(name: str, path: Path, *, image_size: int, num_threads: int) -> Dataset:
    """Loads a tree of class folders as two streamed splits.

    Args:
        name: the data set's name, for messages.
        path: folder that holds train/ and val/ (or test/).
        image_size: side of the images the splits yield, pixels.
        num_threads: decoding threads.

    Returns:
        The data set; classes are the sorted folder names, statistics those of ImageNet.

    Raises:
        DataError: a folder is missing or empty, the two sides differ in classes, or Pillow or
            grain is not installed.
    """
    # Asked for here, so that a missing package is told before any compilation starts.
    require("PIL.Image", extra="folder", purpose=f"{name!r}")
    require("grain", extra="folder", purpose=f"{name!r}")
    if not path.is_dir():
        raise DataError(
            f"folder {path} does not exist; images must stand at {path}/train/<class>/<file> and "
            f"{path}/val/<class>/<file>. A relative path counts from data.dir."
        )
    train_path, eval_path = path / TRAIN_FOLDER, _eval_path(path)
    classes = _class_names(train_path)
    _check_same_classes(train_path, classes, eval_path, _class_names(eval_path))

    def split(root: Path) -> StreamSplit:
        files = _image_files(root, classes)
        check_labels(files.labels, len(classes), f"{name} {root.name}")
        return StreamSplit(source=files, image_size=image_size, num_threads=num_threads)

    return Dataset(
        name=name,
        num_classes=len(classes),
        image_shape_hwc=(image_size, image_size, 3),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        classes=classes,
        train=split(train_path),
        test=split(eval_path),
    )


def _eval_path(path: Path) -> Path:
    for folder in EVAL_FOLDERS:
        if (path / folder).is_dir():
            return path / folder
    raise DataError(
        f"{path} holds no folder {' or '.join(EVAL_FOLDERS)}; put the images to test on under "
        f"{path / EVAL_FOLDERS[0]}/<class>/."
    )


def _class_names(root: Path) -> tuple[str, ...]:
    if not root.is_dir():
        raise DataError(
            f"folder {root} does not exist; images must stand at {root}/<class>/<file>."
        )
    with os.scandir(root) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise DataError(f"folder {root} holds no class folders; it needs {root}/<class>/<file>.")
    return tuple(names)


def _check_same_classes(
    train_path: Path, train: tuple[str, ...], eval_path: Path, evaluation: tuple[str, ...]
) -> None:
    if train == evaluation:
        return
    only_train = sorted(set(train) - set(evaluation))
    only_eval = sorted(set(evaluation) - set(train))
    raise DataError(
        f"the class folders differ: only in {train_path}: {only_train or 'none'}; only in "
        f"{eval_path}: {only_eval or 'none'}. Both must hold the same classes, for a class's "
        "label is its place in the sorted names."
    )


def _image_files(root: Path, classes: tuple[str, ...]) -> ImageFiles:
    paths: list[str] = []
    labels: list[int] = []
    for label, class_name in enumerate(classes):
        found = _images_in(root / class_name)
        paths.extend(found)
        labels.extend([label] * len(found))
    return ImageFiles(paths=tuple(paths), labels=np.asarray(labels, np.int32))


def _images_in(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        named = [
            e
            for e in entries
            if e.name.lower().endswith(IMAGE_SUFFIXES) and not e.name.startswith(".")
        ]
        for entry in named:
            if not entry.is_file():
                raise DataError(
                    f"{entry.path} is named like an image, but is a folder or a link that leads "
                    "nowhere; rename or remove it."
                )
        found = sorted(entry.path for entry in named)
    if not found:
        raise DataError(
            f"class folder {folder} holds no image; put files ending in "
            f"{', '.join(IMAGE_SUFFIXES)} there, or remove the class from both sides."
        )
    return found

"""From a data set's name to its two splits."""

import difflib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from fda_jax.data.digits import load_digits
from fda_jax.data.errors import DataError
from fda_jax.data.folder import load_folder
from fda_jax.data.holdout import hold_out
from fda_jax.data.official import load_official
from fda_jax.data.specs import SPECS
from fda_jax.data.splits import ArraySplit, Dataset, Split
from fda_jax.data.tfds_reader import load_tfds

MOST_THREADS = 1024


def load(
    name: str,
    *,
    dir: str | os.PathLike[str],
    holdout: int = 0,
    limit: int = 0,
    image_size: int = 224,
    num_threads: int = 8,
) -> Dataset:
    """Loads a data set.

    Args:
        name: one of `SPECS` ("digits" needs no files); "tfds:NAME" for a data set that
            tensorflow-datasets prepared in `dir`; or "folder:PATH" for class folders of images,
            where a relative PATH starts at `dir`.
        dir: the data directory; "~" is the home folder.
        holdout: how many training examples to report accuracies on in place of the test's, see
            `hold_out`; 0 for the test's.
        limit: how many training examples to keep, evenly spaced, for a quick look, of those that
            are not held out; 0 keeps all.
        image_size: side of streamed images, pixels; small data sets keep their own size.
        num_threads: threads that decode images; 0 decodes in the consumer's own thread.

    Returns:
        The data set: its splits, classes and normalisation statistics.

    Raises:
        DataError: unknown name, bad arguments, files that are missing, altered or inconsistent,
            or an optional package that is not installed.
    """
    if image_size < 1:
        raise DataError(f"data.image_size is {image_size}, but must be at least 1 pixel.")
    if not 0 <= num_threads <= MOST_THREADS:
        raise DataError(f"data.num_threads is {num_threads}, but must lie in 0..{MOST_THREADS}.")
    dataset = _load_whole(name, Path(dir).expanduser(), image_size, num_threads)
    if holdout != 0:
        dataset = hold_out(dataset, holdout)
    return dataset if limit == 0 else replace(dataset, train=_limited(dataset.train, limit))


def folder_of(name: str, dir: str | os.PathLike[str]) -> Path | None:
    """Where the images of "folder:PATH" lie, as `load` finds them; None of other data."""
    kind, _, rest = name.partition(":")
    if kind != "folder" or not rest:
        return None
    return Path(dir).expanduser() / Path(rest).expanduser()


def _load_whole(name: str, directory: Path, image_size: int, num_threads: int) -> Dataset:
    kind, separator, rest = name.partition(":")
    if separator and kind == "tfds" and rest:
        return load_tfds(rest, directory, image_size=image_size, num_threads=num_threads)
    path = folder_of(name, directory)
    if path is not None:
        return load_folder(name, path, image_size=image_size, num_threads=num_threads)
    if name not in SPECS:
        raise _unknown(name)
    return load_digits() if name == "digits" else load_official(SPECS[name], directory)


def _limited(split: Split, limit: int) -> ArraySplit:
    if not isinstance(split, ArraySplit) or not 0 < limit <= len(split):
        raise DataError(
            f"data.limit is {limit}, but must lie between 0 (all) and the {len(split)} training "
            "examples, and only data sets that fit in memory can be limited: set "
            "--config.data.limit=0 for all."
        )
    kept = np.arange(limit) * len(split) // limit
    return ArraySplit(images=split.images[kept], labels=split.labels[kept])


def _unknown(name: str) -> DataError:
    near = difflib.get_close_matches(name.lower().replace("-", "_"), SPECS, n=3)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return DataError(
        f"unknown data set {name!r}.{hint} Known are {', '.join(SPECS)}, tfds:NAME and folder:PATH."
    )

"""The embedded default: 1,797 real handwritten digits inside the package, no download.

They are scikit-learn's digits: the test part of "Optical Recognition of Handwritten Digits"
(E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998, CC BY 4.0). The .npz also holds
the source and the licence; `tools/make_digits.py` makes it.
"""

import importlib.resources
import io

import numpy as np

from fda_jax.data.specs import SPECS
from fda_jax.data.splits import Dataset, array_split

_FILE = "digits.npz"
# The original counts the inked pixels of 4x4 blocks, so its values are 0..16.
_MAX_VALUE = 16
_TEST_EVERY = 5


def load_digits() -> Dataset:
    """Loads the embedded digits.

    Returns:
        Images (n, 8, 8, 1) uint8: the original value v in 0..16 becomes round(255 v / 16). The
        test split is every fifth example of each class in the original order (355 in all, 34 to
        36 a class), the training split the other 1,442.

    Raises:
        DataError: the embedded file was altered.
    """
    spec = SPECS["digits"]
    resource = importlib.resources.files("fda_jax.data").joinpath(_FILE)
    with np.load(io.BytesIO(resource.read_bytes()), allow_pickle=False) as archive:
        values, labels = archive["values"], archive["labels"]
    images = np.rint(values * (255.0 / _MAX_VALUE)).astype(np.uint8)[..., None]
    in_test = _rank_in_class(labels) % _TEST_EVERY == _TEST_EVERY - 1
    train, test = (
        array_split(
            images[part],
            labels[part],
            image_shape_hwc=spec.image_shape_hwc,
            num_classes=spec.num_classes,
            name=f"digits {name}",
        )
        for name, part in (("train", ~in_test), ("test", in_test))
    )
    return Dataset(
        name=spec.name,
        num_classes=spec.num_classes,
        image_shape_hwc=spec.image_shape_hwc,
        mean=spec.mean,
        std=spec.std,
        classes=spec.classes or (),
        train=train,
        test=test,
    )


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    """How many examples of the same class come before each example."""
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = labels == label
        rank[members] = np.arange(members.sum())
    return rank

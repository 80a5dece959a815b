"""Data sets as uint8 arrays or streams, the order of training, and augmentation.

`load` turns a name into a `Dataset`; `stream_indices` says which examples come when;
`crop_and_flip` and `normalize` run inside the compiled step. Needs numpy and jax only:
tensorflow-datasets, grain and Pillow are imported where a data set needs them.
"""

from fda_jax.data.augment import crop_and_flip, normalize
from fda_jax.data.errors import DataError
from fda_jax.data.holdout import hold_out
from fda_jax.data.loader import load
from fda_jax.data.sampler import stream_indices
from fda_jax.data.specs import SPECS, DatasetSpec
from fda_jax.data.splits import (
    EVAL_SPLITS,
    ArraySplit,
    Dataset,
    Split,
    StreamSplit,
    check_labels,
)

__all__ = [
    "EVAL_SPLITS",
    "SPECS",
    "ArraySplit",
    "DataError",
    "Dataset",
    "DatasetSpec",
    "Split",
    "StreamSplit",
    "check_labels",
    "crop_and_flip",
    "hold_out",
    "load",
    "normalize",
    "stream_indices",
]

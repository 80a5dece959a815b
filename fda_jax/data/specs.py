"""The built-in data sets: what each one is, and the published md5 of its official files."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

# The usual ImageNet statistics of RGB pixels in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_TEN_DIGITS = tuple("0123456789")


def _frozen(files: dict[str, str]) -> Mapping[str, str]:
    return MappingProxyType(files)


@dataclass(frozen=True)
class DatasetSpec:
    """A data set with fixed, known files.

    Attributes:
        name: the name `load` knows it by.
        image_shape_hwc: height, width (pixels) and channels of every image.
        num_classes: number of classes; labels are 0 .. num_classes - 1.
        mean: per-channel mean of pixels in [0, 1], subtracted by `normalize`.
        std: per-channel standard deviation of pixels in [0, 1], divided by in `normalize`.
        classes: class names by label; None where the official files carry them (CIFAR).
        folder: sub-folder of the data directory that is looked into first.
        files: file name -> published md5 (hex); empty for data inside the package.
        archive: name of the archive the files come in; None where they come singly.
        url: where to get the files.
    """

    name: str
    image_shape_hwc: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] | None
    folder: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    archive: str | None = None
    url: str = ""


_DIGITS = DatasetSpec(
    name="digits",
    image_shape_hwc=(8, 8, 1),
    num_classes=10,
    # Computed over the 1,442 training images as `load` returns them.
    mean=(0.3052,),
    std=(0.3760,),
    classes=_TEN_DIGITS,
    url="https://archive.ics.uci.edu/dataset/80",
)

# CIFAR is normalised with ImageNet's statistics, not its own, because the released FDA-BNN code
# does so.
_CIFAR10 = DatasetSpec(
    name="cifar10",
    image_shape_hwc=(32, 32, 3),
    num_classes=10,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    classes=None,
    folder="cifar-10-batches-py",
    files=_frozen(
        {
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        }
    ),
    archive="cifar-10-python.tar.gz",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)

_CIFAR100 = DatasetSpec(
    name="cifar100",
    image_shape_hwc=(32, 32, 3),
    num_classes=100,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    classes=None,
    folder="cifar-100-python",
    files=_frozen(
        {
            "meta": "7973b15100ade9c7d40fb424638fde48",
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        }
    ),
    archive="cifar-100-python.tar.gz",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
)

_MNIST = DatasetSpec(
    name="mnist",
    image_shape_hwc=(28, 28, 1),
    num_classes=10,
    mean=(0.1307,),
    std=(0.3081,),
    classes=_TEN_DIGITS,
    folder="mnist",
    files=_frozen(
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        }
    ),
    url="https://ossci-datasets.s3.amazonaws.com/mnist/",
)

_FASHION_MNIST = DatasetSpec(
    name="fashion_mnist",
    image_shape_hwc=(28, 28, 1),
    num_classes=10,
    mean=(0.2860,),
    std=(0.3530,),
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    folder="fashion_mnist",
    files=_frozen(
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        }
    ),
    url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)

SPECS: dict[str, DatasetSpec] = {
    spec.name: spec for spec in (_DIGITS, _CIFAR10, _CIFAR100, _MNIST, _FASHION_MNIST)
}


def title(name: str) -> str:
    """The data set that a name of `load` names, in whatever reader and version: "cifar10" of
    "tfds:cifar10:3.0.2"."""
    kind, _, rest = name.partition(":")
    return re.sub(r"/.*|:[\d*].*", "", rest) if kind == "tfds" else name


def statistics(name: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel by which pixels in [0, 1] are normalised.

    Args:
        name: of `title`.
        channels: of the images.
    """
    spec = SPECS.get(name)
    if spec is not None and len(spec.mean) == channels:
        return spec.mean, spec.std
    if channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    return (0.5,) * channels, (0.5,) * channels

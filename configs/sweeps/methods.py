"""Does every method of the table learn?

One row for each name in configs/methods.py, with its default knobs, on one network with one seed:
ResNet-8, the plain form of ResNet-20 with one pair of convolutions a stage.

Budget: 5,000 evenly spaced training images of CIFAR-10, five epochs of batch 64, 390 steps a run.
That is tiny, and one seed: it shows that every row learns, not which one is best.

    python train.py --sweep=configs/sweeps/methods.py --workdir=runs/methods
    python -m fda_jax.report runs/methods
"""

from ml_collections import ConfigDict

from cifar10_resnet20 import get_config as cifar10_config
from methods import KNOBS

BASELINE = "ste"


def get_config(method: str = "") -> ConfigDict:
    config = cifar10_config(method)
    config.model.name = "resnet8"
    config.data.limit = 5000
    config.train.epochs = 5
    config.train.batch_size = 64
    config.eval.every_epochs = 5  # the 10,000 test images once, after the last epoch
    return config


def get_sweep() -> tuple:
    return get_config, [{"method": name} for name in KNOBS]

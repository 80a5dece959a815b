"""ResNet-8 on a tenth of CIFAR-10: half a minute on a CPU core, to see whether a method learns.

The plain form of ResNet-20 with one pair of convolutions a stage; 5,000 evenly spaced training
images, five epochs of batch 64 (391 steps), tested once on all 10,000 test images; all else is the
recipe of FDA-BNN's section 3.1. Nothing of it is in the paper. Needs the official files in
data/cifar-10-batches-py. Results measured with it: results/README.md.

    python train.py --config=configs/cifar10_resnet8.py --workdir=runs/quick
    python train.py --config=configs/cifar10_resnet8.py:biper --workdir=runs/quick_biper
"""

from ml_collections import ConfigDict

from cifar10_resnet20 import get_config as cifar10_config


def get_config(arg: str = "") -> ConfigDict:
    config = cifar10_config(arg)
    config.model.name = "resnet8"
    config.data.limit = 5000
    config.train.epochs = 5
    config.train.batch_size = 64
    config.eval.every_epochs = 5
    return config

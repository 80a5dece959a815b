"""ResNet-20 (plain form) on CIFAR-10, the network of FDA-BNN's Table 1 and ablations.

Paper: FDA-BNN 86.20 %, sine module alone 85.83 %, baseline 84.44 % (number of runs not given).
Recipe of section 3.1: 400 epochs, batch 128, SGD 0.9, learning rate 0.1, weight decay 1e-4; the
cosine schedule is our choice. Needs the official files in data/cifar-10-batches-py. Results
measured with it: results/README.md.

    python train.py --config=configs/cifar10_resnet20.py --workdir=runs/resnet20_fda
    python train.py --config=configs/cifar10_resnet20.py:ste --workdir=runs/resnet20_ste
    python train.py --config=configs/cifar10_resnet20.py --workdir=runs/resnet20_bireal_form \
        --config.model.name=resnet20_bireal
"""

from ml_collections import ConfigDict

from base import get_config as base_config


def get_config(arg: str = "") -> ConfigDict:
    config = base_config(arg)
    config.model.name = "resnet20"
    config.data.name = "cifar10"
    return config

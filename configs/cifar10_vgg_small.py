"""VGG-Small on CIFAR-10, the second network of FDA-BNN's Table 1.

Paper: FDA-BNN 92.54 %, baseline (DoReFa-Net) 90.20 % (number of runs not given). Recipe of section
3.1: 400 epochs, batch 128, SGD 0.9, learning rate 0.1, weight decay 1e-4; the cosine schedule is
our choice, and the order inside a layer is IR-Net's (see fda_jax/models/vgg.py). Not yet measured
here.

    python train.py --config=configs/cifar10_vgg_small.py --workdir=runs/vgg_fda
"""

from ml_collections import ConfigDict

from base import get_config as base_config


def get_config(arg: str = "") -> ConfigDict:
    config = base_config(arg)
    config.model.name = "vgg_small"
    config.data.name = "cifar10"
    return config

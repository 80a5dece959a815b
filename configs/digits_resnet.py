"""A small ResNet on 1,797 real handwritten digits, which come with the package: the first run.

Half a minute on two CPU cores. Every fifth image is held out for testing.

    python train.py --config=configs/digits_resnet.py --workdir=runs/digits
    python train.py --config=configs/digits_resnet.py:ste --workdir=runs/digits_ste
"""

from ml_collections import ConfigDict

from base import get_config as base_config


def get_config(arg: str = "") -> ConfigDict:
    config = base_config(arg)
    config.model.name = "resnet_digits"
    config.data.name = "digits"
    config.augment.crop_px = 1
    config.augment.flip = False  # a mirrored digit is another digit, or none
    config.train.epochs = 40
    config.train.batch_size = 64
    config.eval.batch_size = 360
    config.checkpoint.every_epochs = 5
    return config

"""A small ResNet on 1,797 real handwritten digits, which come with the package: the first run.

Less than a minute of training on two CPU cores. A fifth of each class is held out for testing.
Evaluation uses moving averages of the latent weights and batch statistics: with 23 steps an epoch
the raw ones are noisy. Some 99 % of the 355 test images are right at the end, by FDA-BNN and by
clipped STE alike (results/digits, five seeds). One image is 0.28 points, and another version of
JAX, which sums in another order, is as good as another seed.

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
    config.train.ema_decay = 0.98
    config.eval.batch_size = 360
    config.checkpoint.every_epochs = 5
    return config

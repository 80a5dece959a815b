"""AlexNet on ImageNet, the second network of FDA-BNN's Table 5.

Paper: FDA-BNN 46.2 % top-1, 69.7 % top-5, baseline (DoReFa-Net) 43.6 % (number of runs not given).
Recipe of section 3.3, as for configs/imagenet_resnet18.py: Adam, learning rate 1e-3, no weight
decay. Epochs, batch size and schedule are not given there: 55 epochs are those of XNOR-Net's
released code, the rest is as for ResNet-18. The network is XNOR-Net's (see
fda_jax/models/alexnet.py). Not yet measured here.

Needs the images and the extra that configs/imagenet_resnet18.py names. `xnor_net_pp` needs
--config.method.scale_shape=channel, for two of its layers are dense.

    python train.py --config=configs/imagenet_alexnet.py --workdir=runs/alexnet_fda
    python train.py --config=configs/imagenet_alexnet.py:dorefa --workdir=runs/alexnet_dorefa
"""

from ml_collections import ConfigDict

from imagenet_resnet18 import get_config as resnet18_config


def get_config(arg: str = "") -> ConfigDict:
    config = resnet18_config(arg)
    config.model.name = "alexnet"
    config.train.epochs = 55  # XNOR-Net's
    return config

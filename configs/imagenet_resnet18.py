"""ResNet-18 (Bi-Real form) on ImageNet, the network of FDA-BNN's Table 5.

Paper: FDA-BNN 60.2 % top-1, baseline (Bi-Real Net + PReLU) 59.0 % (number of runs not given).
Recipe of section 3.3: Adam (its first momentum 0.9), learning rate 1e-3, no weight decay;
cross-entropy; random crops and mirror images. Epochs, batch size and schedule are not given there:
256, 512 and linear to 0 are those of Bi-Real Net's released code, whose label smoothing (0.1) and
change of colours are left out, for the paper names neither. That code starts binary weights between
0 and 0.001, all of one sign; here they start from He's normal initialisation, with both signs and a
mean magnitude of 0.048 where 64 channels come in and 0.017 where 512 do. Not yet measured here.

The paper's row differs from its baseline by the gradient of the sign and the noise module. Here
`fda` has a scale for the layer, which does not multiply the weights' gradient, and `bireal_prelu`
one for each filter, which does. --config.method.scale=filter --config.method.scale_in_gradient=True
gives `fda` that of the baseline.

Needs the images as data/imagenet/train/CLASS/*.JPEG and data/imagenet/val/CLASS/*.JPEG, and the
extra "folder". Any other tree of classes will do.

    python train.py --config=configs/imagenet_resnet18.py --workdir=runs/resnet18_fda
    python train.py --config=configs/imagenet_resnet18.py:bireal_prelu --workdir=runs/resnet18_base
    python train.py --config=configs/imagenet_resnet18.py --workdir=runs/resnet18_fda_bf16 \
        --config.model.dtype=bfloat16 --config.data.num_threads=32
"""

from ml_collections import ConfigDict

from base import get_config as base_config


def get_config(arg: str = "") -> ConfigDict:
    config = base_config(arg)
    config.model.name = "resnet18"
    config.data.name = "folder:imagenet"  # below data.dir
    config.data.image_size = 224
    config.augment.crop_px = 0  # the loader itself cuts random parts out of the photographs
    config.train.epochs = 256  # Bi-Real Net's
    config.train.batch_size = 512  # likewise
    config.train.steps_per_call = 4  # whose 2,048 images, 308 MB, go to the devices together
    config.optimizer.name = "adam"  # section 3.3
    config.optimizer.learning_rate = 1e-3  # section 3.3
    config.optimizer.schedule = "linear"  # Bi-Real Net's
    config.optimizer.weight_decay = 0.0  # section 3.3
    config.eval.batch_size = 512
    return config

"""ReActNet's ResNet-18 on ImageNet, the baseline of the starred rows in FDA-BNN's Table 5.

Paper: 65.5 % top-1, and 66.0 % with FDA-BNN's gradient of the sign in place of its own (number of
runs not given). The recipe is that of ReActNet's released code for ResNet: two steps of 128 epochs,
each with Adam, batch 512 and a learning rate of 2.5e-3, linear to 0. In the first the weights are
real and decay by 1e-5, in the second they are binary, start from the first one's and do not decay.
The loss of both is the distance from a real-valued ResNet-34's class probabilities. Left out is the
change of colours. Beside the convolutions the last layer decays here; the shifts of signs and
PReLUs do not, which in the released code decay in the first step as all parameters of four axes do.
The teacher of that code is torchvision's pretrained ResNet-34; the one below has a shortcut round
each convolution (Bi-Real Net's form). With a method other than `reactnet` this is one step of 256
epochs. Not yet measured here.

Needs the images and the extra that configs/imagenet_resnet18.py names, and the teacher. That may be
any finished run; here it is trained first, into the folder beside the run's:

    python train.py --config=configs/imagenet_resnet18.py:full_precision --workdir=runs/resnet34 \
        --config.model.name=resnet34
    python train.py --config=configs/imagenet_reactnet.py --workdir=runs/reactnet
    python train.py --config=configs/imagenet_reactnet.py --workdir=runs/reactnet_fda \
        --config.method.slope=fourier --config.method.noise=forward
"""

from ml_collections import ConfigDict

from imagenet_resnet18 import get_config as resnet18_config


def get_config(arg: str = "") -> ConfigDict:
    arg = arg or "reactnet"
    config = resnet18_config(arg)
    config.model.name = "resnet18_reactnet"
    config.train.epochs = 256  # 128 a step
    config.train.teacher = "resnet34"
    config.optimizer.learning_rate = 2.5e-3
    config.optimizer.weight_decay = 1e-5
    config.optimizer.decay_groups = ("binary", "real")
    if arg == "reactnet":
        config.stages = ConfigDict(
            {
                "stage1": {"epochs_share": 0.5, "method": {"weights": "real"}},
                "stage2": {"optimizer": {"weight_decay": 0.0}},
            }
        )
    return config

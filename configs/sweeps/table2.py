"""What are the sine module and the noise adaptation module worth (FDA-BNN's Table 2)?

CIFAR-10, ResNet-20 in its plain form, the recipe of section 3.1. The paper's first line is "the
standard Dorefa-Net baseline", which differs from the sine module in nothing but the slopes.

Budget: 3 runs of 400 epochs a seed; --budget=0.02 makes it 8 epochs.

    python train.py --sweep=configs/sweeps/table2.py --workdir=runs/table2 --seeds=5
    python -m fda_jax.report runs/table2
"""

BASELINE = "dorefa"
SOURCE = "FDA-BNN, Table 2"
PAPER = {"dorefa": 84.44, "fda_noise=none": 85.83, "fda": 86.20}


def get_sweep() -> tuple:
    sine_module = {"method": "fda", "method.noise": "none"}
    return "cifar10_resnet20", [
        {"method": "dorefa"},
        sine_module,
        {"method": "fda"},
    ]

"""Which shortcut of the noise adaptation module is best (FDA-BNN's Table 4)?

CIFAR-10, ResNet-20 in its plain form, the recipe of section 3.1; the shortcut's slope is 0.1.

Budget: 3 runs of 400 epochs a seed; --budget=0.02 makes it 8 epochs.

    python train.py --sweep=configs/sweeps/table4.py --workdir=runs/table4 --seeds=5
    python -m fda_jax.report runs/table4
"""

BASELINE = "noise_shortcut=none"
SOURCE = "FDA-BNN, Table 4"
PAPER = {
    "noise_shortcut=none": 85.27,
    "noise_shortcut=linear": 85.93,
    "noise_shortcut=sine": 86.20,
}


def get_sweep() -> tuple:
    kinds = ("none", "linear", "sine")
    return "cifar10_resnet20", [{"method.noise_shortcut": kind} for kind in kinds]

"""Beyond which |t| should the Fourier slope be 0?

The paper names no mask, and its slope is periodic; 1 is BiBench's. CIFAR-10, ResNet-20 in its plain
form, the recipe of section 3.1.

Budget: 5 runs of 400 epochs a seed; --budget=0.02 makes it 8 epochs.

    python train.py --sweep=configs/sweeps/mask.py --workdir=runs/mask --seeds=5
    python -m fda_jax.report runs/mask
"""

BASELINE = "window=1.0"


def get_sweep() -> tuple:
    values = (0.5, 1.0, 1.5, 2.0, float("inf"))
    return "cifar10_resnet20", [{"method.window": value} for value in values]

"""Does every method of the table learn?

One row for each name in configs/methods.py, with its default knobs, on ResNet-8 and a tenth of
CIFAR-10 (configs/cifar10_resnet8.py).

Budget: 32 runs of 391 steps a seed. That is tiny: it shows that every row learns, not which one is
best.

    python train.py --sweep=configs/sweeps/methods.py --workdir=runs/methods --seeds=3
    python -m fda_jax.report runs/methods
"""

from methods import KNOBS

BASELINE = "ste"


def get_sweep() -> tuple:
    return "cifar10_resnet8", [{"method": name} for name in KNOBS]

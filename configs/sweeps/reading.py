"""Should the noise adaptation module be part of the forward pass?

Eq. 14 and Figure 2a add it there ("forward"); Algorithm 1 reads as if it were in the gradients
alone ("backward"). CIFAR-10, ResNet-20 in its plain form, the recipe of section 3.1.

Budget: 3 runs of 400 epochs a seed; --budget=0.02 makes it 8 epochs.

    python train.py --sweep=configs/sweeps/reading.py --workdir=runs/reading --seeds=5
    python -m fda_jax.report runs/reading
"""

BASELINE = "noise=none"


def get_sweep() -> tuple:
    readings = ("none", "forward", "backward")
    return "cifar10_resnet20", [{"method.noise": reading} for reading in readings]

"""Which frequency omega of the Fourier slope trains best?

The paper gives none; 0.1 is BiBench's. The slope's first zero lies at pi / (2 omega N), 1.57 for
omega = 0.1 and N = 10, and its peak grows with omega. CIFAR-10, ResNet-20 in its plain form, the
recipe of section 3.1.

Budget: 6 runs of 400 epochs a seed; --budget=0.02 makes it 8 epochs.

    python train.py --sweep=configs/sweeps/omega.py --workdir=runs/omega --seeds=5
    python -m fda_jax.report runs/omega
"""

VALUES = (0.025, 0.05, 0.075, 0.1, 0.15, 0.2)
BASELINE = "omega=0.1"
AXIS = "omega (radians per unit)"
POINTS = [("fda", value, f"omega={value}") for value in VALUES]


def get_sweep() -> tuple:
    return "cifar10_resnet20", [{"method.omega": value} for value in VALUES]

"""When should the noise adaptation module be gone?

The paper lets its strength alpha decrease to 0 at the end of the training, where the learning rate
is nearly 0 as well, so that the network has only small steps left to learn to do without it. Here
alpha is 0 after a half, three quarters or nine tenths of the training too. CIFAR-10, ResNet-20 in
its plain form, the recipe of section 3.1.

Budget: 5 runs of 400 epochs a seed; --budget=0.02 makes it 8 epochs.

    python train.py --sweep=configs/sweeps/fade.py --workdir=runs/fade --seeds=5
    python -m fda_jax.report runs/fade
"""

BASELINE = "noise_end=1.0"


def get_sweep() -> tuple:
    ends = [{"method.noise_end": value} for value in (0.5, 0.75, 0.9, 1.0)]
    return "cifar10_resnet20", [{"method.noise": "none"}, *ends]

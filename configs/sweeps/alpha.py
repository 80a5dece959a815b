"""How strong should the noise adaptation module be, and how should its strength fall?

The paper says that alpha decreases to 0 and gives neither its start nor its shape; 0.1 and half a
cosine are BiBench's. "constant" keeps alpha until the end, where it drops to 0. CIFAR-10, ResNet-20
in its plain form, the recipe of section 3.1.

Budget: 7 runs of 400 epochs a seed; --budget=0.02 makes it 8 epochs.

    python train.py --sweep=configs/sweeps/alpha.py --workdir=runs/alpha --seeds=5
    python -m fda_jax.report runs/alpha
"""

BASELINE = "noise_scale=0.1"


def get_sweep() -> tuple:
    scales = [{"method.noise_scale": value} for value in (0.03, 0.1, 0.3, 1.0)]
    schedules = [{"method.noise_schedule": name} for name in ("linear", "constant")]
    return "cifar10_resnet20", [{"method.noise": "none"}, *scales, *schedules]

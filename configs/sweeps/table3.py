"""What is the noise adaptation module worth on other estimators (FDA-BNN's Table 3)?

CIFAR-10, ResNet-20 in its plain form, the recipe of section 3.1. Each method with the module is
compared with itself without. The constants of DSQ and BNN+ are fixed here, on both sides.

Budget: 6 runs of 400 epochs a seed; --budget=0.02 makes it 8 epochs.

    python train.py --sweep=configs/sweeps/table3.py --workdir=runs/table3 --seeds=5
    python -m fda_jax.report runs/table3
"""

METHODS = ("dsq", "bnn_plus", "fda")
BASELINE = {f"{name}_noise=forward": f"{name}_noise=none" for name in METHODS}
SOURCE = "FDA-BNN, Table 3"
PAPER = {
    "dsq_noise=none": 84.11,
    "dsq_noise=forward": 84.46,
    "bnn_plus_noise=none": 84.59,
    "bnn_plus_noise=forward": 84.87,
    "fda_noise=none": 85.83,
    "fda_noise=forward": 86.20,
}


def get_sweep() -> tuple:
    readings = ("none", "forward")
    return "cifar10_resnet20", [
        {"method": name, "method.noise": reading} for name in METHODS for reading in readings
    ]

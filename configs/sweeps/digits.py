"""What are the sine module and the noise adaptation module worth where everybody can look?

FDA-BNN's ablation on the 1,797 handwritten digits that come with the package, 40 epochs on a small
ResNet: a first sweep, of minutes. "ste" differs from the sine module in the slope alone. A run
tests on 355 images, so one image is 0.28 points.

Budget: 3 runs of 40 epochs a seed, well below a minute each on two CPU cores.

    python train.py --sweep=configs/sweeps/digits.py --workdir=runs/digits_sweep --seeds=5
    python -m fda_jax.report runs/digits_sweep
"""

BASELINE = "ste"


def get_sweep() -> tuple:
    sine_module = {"method": "fda", "method.noise": "none"}
    return "digits_resnet", [{"method": "ste"}, sine_module, {"method": "fda"}]

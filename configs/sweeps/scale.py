"""What is the weights' scale in their gradient worth, method by method?

All methods that have the knob `scale_in_gradient`, with and without it, on ResNet-8 and a tenth of
CIFAR-10 (configs/cifar10_resnet8.py). configs/sweeps/gradient.py asks the same of FDA-BNN on
ResNet-20 with the whole recipe.

Budget: 16 runs of 391 steps a seed. That is tiny, and a scale in the gradient makes steps smaller,
which costs most where there are few.

    python train.py --sweep=configs/sweeps/scale.py --workdir=runs/scale --seeds=3
    python -m fda_jax.report runs/scale
"""

from methods import KNOBS

KNOB = "scale_in_gradient"
METHODS = [name for name, knobs in KNOBS.items() if KNOB in knobs]
BASELINE = {f"{name}_in": f"{name}_out" for name in METHODS}


def get_sweep() -> tuple:
    return "cifar10_resnet8", {
        f"{name}_{place}": {"method": name, f"method.{KNOB}": place == "in"}
        for name in METHODS
        for place in ("out", "in")
    }

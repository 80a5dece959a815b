"""Over which axis d of weights and activations should the noise adaptation module work?

The paper says "given the input vector t" and no more. Weights: a flattened filter, or the input
channels at one of its positions. Activations: the channels of a pixel, or the pixels of a channel.
CIFAR-10, ResNet-20 in its plain form, the recipe of section 3.1.

Budget: 4 runs of 400 epochs a seed; --budget=0.02 makes it 8 epochs.

    python train.py --sweep=configs/sweeps/axis.py --workdir=runs/axis --seeds=5
    python -m fda_jax.report runs/axis
"""

BASELINE = "weights=filter_activations=channels"


def get_sweep() -> tuple:
    return "cifar10_resnet20", {
        f"weights={weights}_activations={activations}": {
            "method.noise_weight_axis": weights,
            "method.noise_activation_axis": activations,
        }
        for weights in ("filter", "channels")
        for activations in ("channels", "pixels")
    }

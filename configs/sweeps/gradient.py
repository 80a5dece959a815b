"""Should the scale of the weights multiply their gradient?

The forward pass multiplies signs by mean |w|, about 0.03 to 0.1. The chain rule multiplies the
gradient of the latent weights by it as well; DoReFa-Net (Eq. 8), which FDA-BNN starts from, and the
placeholder in its released code leave it out, which is the default here. CIFAR-10, ResNet-20 in its
plain form, the recipe of section 3.1.

Budget: 4 runs of 400 epochs a seed; --budget=0.02 makes it 8 epochs.

    python train.py --sweep=configs/sweeps/gradient.py --workdir=runs/gradient --seeds=5
    python -m fda_jax.report runs/gradient
"""

BASELINE = {
    "fda_scale_in_gradient=True": "fda",
    "fda_noise=none_scale_in_gradient=True": "fda_noise=none",
}


def get_sweep() -> tuple:
    sine_module = {"method": "fda", "method.noise": "none"}
    scaled = {"method.scale_in_gradient": True}
    return "cifar10_resnet20", [
        {"method": "fda"},
        {"method": "fda", **scaled},
        sine_module,
        sine_module | scaled,
    ]

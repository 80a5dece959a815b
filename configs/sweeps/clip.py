"""Does FDA-BNN need a limit on its gradients?

Eq. 2 clips the gradient of a binary operand to [-1, 1]; the Fourier slope that takes its place has
no limit in the paper. "clip_value" limits each parameter's gradient, "clip_norm" the norm of all of
them. CIFAR-10, ResNet-20 in its plain form, the recipe of section 3.1.

Budget: 6 runs of 400 epochs a seed; --budget=0.02 makes it 8 epochs.

    python train.py --sweep=configs/sweeps/clip.py --workdir=runs/clip --seeds=5
    python -m fda_jax.report runs/clip
"""

BASELINE = "none"


def get_sweep() -> tuple:
    values = {f"clip_value={size:g}": {"optimizer.clip_value": size} for size in (0.01, 0.1, 1.0)}
    norms = {f"clip_norm={size:g}": {"optimizer.clip_norm": size} for size in (1.0, 5.0)}
    return "cifar10_resnet20", {"none": {}, **values, **norms}

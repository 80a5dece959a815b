"""How steep may BNN+'s slope be in a deep network, or does a limit on the gradient's norm do?

The slope is beta at 0, and the slopes of layers one behind the other multiply: with beta 5, the
default, and a learning rate of 0.1 ResNet-20 diverges. CIFAR-10, ResNet-20 in its plain form, the
recipe of section 3.1 of FDA-BNN.

Budget: 3 runs of 400 epochs a seed; --budget=0.02 makes it 8 epochs.

    python train.py --sweep=configs/sweeps/beta.py --workdir=runs/beta --seeds=5
    python -m fda_jax.report runs/beta
"""

BASELINE = "beta=1.0"


def get_sweep() -> tuple:
    slopes = {f"beta={beta}": {"method.beta": beta} for beta in (1.0, 2.0)}
    limit = {"beta=5.0_clip_norm=1": {"method.beta": 5.0, "optimizer.clip_norm": 1.0}}
    runs = {**slopes, **limit}
    return "cifar10_resnet20", {name: {"method": "bnn_plus", **runs[name]} for name in runs}

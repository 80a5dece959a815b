"""Does FDA-BNN end above the methods of FDA-BNN's Table 1 on ResNet-20?

CIFAR-10, ResNet-20 in its plain form (one shortcut round two convolutions), the recipe of section
3.1 for all methods alike. FDA-BNN's own value is of that form, too, by its released code; for the
others the paper says "ResNet-20" and no more. Here "dorefa" is what it calls its baseline. TBN has
activations of three values; LNS trains in two stages, both within the epochs of a run, where the
paper gives it 120 more.

Budget: 8 runs of 400 epochs a seed; --budget=0.02 makes it 8 epochs.

    python train.py --sweep=configs/sweeps/table1_resnet20.py --workdir=runs/table1 --seeds=5
    python -m fda_jax.report runs/table1
"""

BASELINE = "dorefa"
SOURCE = "FDA-BNN, Table 1"
PAPER = {
    "full_precision": 92.10,
    "dorefa": 84.44,
    "xnor_net": 85.23,
    "lns": 85.78,
    "tbn": 84.34,
    "dsq_learnable=True": 84.11,
    "irnet": 85.40,
    "fda": 86.20,
}


def get_sweep() -> tuple:
    names = ("full_precision", "dorefa", "xnor_net", "lns", "tbn", "irnet", "fda")
    # Published with a trained window and alpha.
    dsq = {"method": "dsq", "method.learnable": True}
    return "cifar10_resnet20", [*({"method": name} for name in names), dsq]

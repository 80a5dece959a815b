"""Does FDA-BNN end above the methods of FDA-BNN's Table 5 on AlexNet?

ImageNet, the recipe of section 3.3 for all methods alike (configs/imagenet_alexnet.py). "dorefa" is
what the paper calls its baseline here. LNS trains in two stages. Published values are top-1
accuracies; the paper does not say with which recipes the others were trained.

Budget: 6 runs of 55 epochs a seed, for machines with several GPUs.

    python train.py --sweep=configs/sweeps/table5_alexnet.py --workdir=runs/table5_alexnet
    python -m fda_jax.report runs/table5_alexnet
"""

BASELINE = "dorefa"
SOURCE = "FDA-BNN, Table 5"
PAPER = {
    "full_precision": 56.6,
    "dorefa": 43.6,
    "binarynet": 41.2,
    "xnor_net": 44.2,
    "lns": 44.4,
    "fda": 46.2,
}


def get_sweep() -> tuple:
    return "imagenet_alexnet", [{"method": name} for name in PAPER]

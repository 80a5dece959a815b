"""Does FDA-BNN end above the methods of FDA-BNN's Table 1 on VGG-Small?

CIFAR-10, the recipe of section 3.1 for all methods alike. Here "dorefa" is what the paper calls its
baseline.

Budget: 8 runs of 400 epochs a seed, each some ten times as long as ResNet-20's; --budget=0.02 makes
it 8 epochs.

    python train.py --sweep=configs/sweeps/table1_vgg_small.py --workdir=runs/table1_vgg --seeds=5
    python -m fda_jax.report runs/table1_vgg
"""

BASELINE = "dorefa"
SOURCE = "FDA-BNN, Table 1"
PAPER = {
    "full_precision": 94.10,
    "dorefa": 90.20,
    "binarynet": 89.90,
    "xnor_net": 89.80,
    "bnn_plus": 91.31,
    "dsq_learnable=True": 91.72,
    "irnet_t_start=0.1": 90.40,
    "fda": 92.54,
}


def get_sweep() -> tuple:
    names = ("full_precision", "dorefa", "binarynet", "xnor_net", "bnn_plus", "fda")
    # Published with a trained window and alpha; and with the authors' start on this network.
    dsq = {"method": "dsq", "method.learnable": True}
    irnet = {"method": "irnet", "method.t_start": 0.1}
    return "cifar10_vgg_small", [*({"method": name} for name in names), dsq, irnet]

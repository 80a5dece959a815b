"""Does FDA-BNN end above the methods of FDA-BNN's Table 5 on ResNet-18?

ImageNet, ResNet-18 with a shortcut round each convolution, the recipe of section 3.3 for all
methods alike (configs/imagenet_resnet18.py). "bireal_prelu" is what the paper calls its baseline
here; it differs from "fda" by its scale, too (configs/imagenet_resnet18.py). HWGQ has activations
of four values, TBN of three; LNS trains in two stages. Published values are top-1 accuracies; the
paper does not say with which recipes the others were trained.

Two published values are of networks whose down-sampling convolutions are binary, too, by section
3.3: those of ABC-Net and BinaryNet. Here these are real for all methods. Quantization Networks'
released ResNet-18 is the plain one, with a ReLU and activations of 0 and 1; here it has -1 and 1 in
the network of all others.

Not here: BONN and RBCN, which this package does not have. The two rows with ReActNet, which is
another network, are configs/sweeps/table5_reactnet.py.

Budget: 17 runs of 256 epochs a seed, for machines with several GPUs; --only=fda,bireal_prelu trains
the two that the section compares.

    python train.py --sweep=configs/sweeps/table5_resnet18.py --workdir=runs/table5_resnet18
    python -m fda_jax.report runs/table5_resnet18
"""

BASELINE = "bireal_prelu"
SOURCE = "FDA-BNN, Table 5"
PAPER = {
    "full_precision": 69.6,
    "tbn": 55.6,
    "dorefa": 52.5,
    "binarynet": 42.2,
    "xnor_net": 51.2,
    "abc_net": 42.7,
    "bireal": 56.4,
    "bireal_prelu": 59.0,
    "bop": 54.2,
    "lns": 59.4,
    "hwgq": 59.6,
    "pcnn": 57.3,
    "quantization_networks": 53.6,
    "resnete": 58.1,
    "irnet": 58.1,
    "rbnn": 59.9,
    "fda": 60.2,
}


def get_sweep() -> tuple:
    return "imagenet_resnet18", [{"method": name} for name in PAPER]

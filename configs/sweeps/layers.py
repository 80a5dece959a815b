"""What does it cost to make a single hidden layer binary?

FDA-BNN on ResNet-8 and a tenth of CIFAR-10 (configs/cifar10_resnet8.py), with one hidden layer left
real in each run, and with all of them. Not in the paper.

Budget: 8 runs of 391 steps a seed, which is tiny.

    python train.py --sweep=configs/sweeps/layers.py --workdir=runs/layers --seeds=3
    python -m fda_jax.report runs/layers
"""

BASELINE = "all_binary"
LAYERS = [f"stage{stage}_block1/conv{conv}" for stage in (1, 2, 3) for conv in (1, 2)]


def get_sweep() -> tuple:
    kept = {f"{path.replace('/', '_')}_real": {"model.real_layers": (path,)} for path in LAYERS}
    return "cifar10_resnet8", {"all_binary": {}, **kept, "all_real": {"model.real_layers": ("*",)}}

"""Is FDA-BNN's gradient of the sign worth anything in ReActNet (the starred rows of its Table 5)?

ImageNet, ReActNet's ResNet-18 and its released recipe of two steps, which learn from a real-valued
ResNet-34 (configs/imagenet_reactnet.py). In the second row only the gradient of the sign is
replaced: FDA-BNN's slope and noise module, in both steps. ReActNet's own page says 65.9 where
FDA-BNN's table has 65.5 for it.

The teacher is trained first, into the folder beside the sweep's that its runs look for:

    python train.py --config=configs/imagenet_resnet18.py:full_precision --workdir=runs/resnet34 \
        --config.model.name=resnet34

Budget: 2 runs of 256 epochs a seed, for machines with several GPUs.

    python train.py --sweep=configs/sweeps/table5_reactnet.py --workdir=runs/table5_reactnet
    python -m fda_jax.report runs/table5_reactnet
"""

BASELINE = "reactnet"
SOURCE = "FDA-BNN, Table 5"
PAPER = {"reactnet": 65.5, "reactnet_fda": 66.0}


def get_sweep() -> tuple:
    # Counts from the folder that holds a run's: runs/table5_reactnet/NAME.
    taught = {"train.teacher": "../../resnet34"}
    return "imagenet_reactnet", {
        "reactnet": taught,
        "reactnet_fda": {**taught, "method.slope": "fourier", "method.noise": "forward"},
    }

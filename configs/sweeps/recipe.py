"""What lifts the plain network above the paper's recipe?

After 400 epochs ResNet-20 in its plain form underfits: it ends at 88 % of the augmented training
images with the sine module alone (results/table2), and the noise module costs more than it brings.
So this asks for what makes training go further: another weight decay, another optimizer, or the
noise module gone at half time. All runs but two are the sine module alone, in the recipe of section
3.1.

Budget: 6 runs of 400 epochs a seed; --budget=0.02 makes it 8 epochs.

    python train.py --sweep=configs/sweeps/recipe.py --workdir=runs/recipe --seeds=5
    python -m fda_jax.report runs/recipe
"""

SINE = {"method.noise": "none"}
BASELINE = "sine"


def get_sweep() -> tuple:
    return "cifar10_resnet20", {
        "sine": SINE,
        "noise": {},
        "noise_until_half": {"method.noise_end": 0.5},
        "no_decay": {**SINE, "optimizer.weight_decay": 0.0},
        "decay_5e-4": {**SINE, "optimizer.weight_decay": 5e-4},
        # The learning rate is Adam's own default; decay in its gradient would be another method.
        "adam": {
            **SINE,
            "optimizer.name": "adam",
            "optimizer.learning_rate": 1e-3,
            "optimizer.weight_decay": 0.0,
        },
    }

"""What does the number n of Fourier terms cost and bring (FDA-BNN's Figure 3)?

CIFAR-10, ResNet-20 in its plain form, the recipe of section 3.1, the same n from the first step to
the last (setting 1). n is the last index of the paper's sum, so that N = n + 1 terms are kept. The
paper finds that the accuracy saturates at about n = 10 while the time grows with n; its figure
prints no values.

Budget: 8 runs of 400 epochs a seed; --budget=0.02 makes it 8 epochs.

    python train.py --sweep=configs/sweeps/figure3.py --workdir=runs/figure3 --seeds=5
    python -m fda_jax.report runs/figure3
"""

NUMBERS = (1, 3, 5, 7, 9, 12, 15, 18)
BASELINE = "n=9"
AXIS = "n (N = n + 1 terms)"
POINTS = [("setting 1", n, f"n={n}") for n in NUMBERS]


def get_sweep() -> tuple:
    return "cifar10_resnet20", {
        f"n={n}": {"method.num_terms_start": n + 1, "method.num_terms_end": n + 1} for n in NUMBERS
    }

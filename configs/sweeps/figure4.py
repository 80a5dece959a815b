"""Should the number of Fourier terms grow during training (FDA-BNN's Figure 4)?

CIFAR-10, ResNet-20 in its plain form, the recipe of section 3.1. n is the last index of the paper's
sum, N = n + 1 terms. Setting 1 keeps n at n_p, setting 2 lets it grow from 1 to n_p, setting 3 from
9 to n_p; for n_p = 9 settings 1 and 3 are the same run. The paper finds setting 3 the best, and
prints no values.

Budget: 16 runs of 400 epochs a seed; --budget=0.02 makes it 8 epochs.

    python train.py --sweep=configs/sweeps/figure4.py --workdir=runs/figure4 --seeds=5
    python -m fda_jax.report runs/figure4
"""

# First n (None: n_p), and the n_p of each setting.
SETTINGS = {
    "setting 1": (None, (3, 6, 9, 12, 15, 18)),
    "setting 2": (1, (3, 6, 9, 12, 15, 18)),
    "setting 3": (9, (12, 15, 18, 21)),
}
BASELINE = "setting1_n=9"
AXIS = "last n, n_p (N = n + 1 terms)"


def name(setting: str, n: int) -> str:
    return f"{setting.replace(' ', '')}_n={n}"


POINTS = [
    (setting, n, name(setting, n)) for setting, (_, ends) in SETTINGS.items() for n in ends
] + [("setting 3", 9, name("setting 1", 9))]


def get_sweep() -> tuple:
    return "cifar10_resnet20", {
        name(setting, n): {
            "method.num_terms_start": (n if start is None else start) + 1,
            "method.num_terms_end": n + 1,
        }
        for setting, (start, ends) in SETTINGS.items()
        for n in ends
    }

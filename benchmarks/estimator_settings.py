"""Which frequency, window and reading of the noise module train best, by small runs on real images.

Each run is ResNet-20 (plain form) on 2,000 CIFAR-10 training images, evenly spaced, for three
epochs of batch 50, tested on all 10,000 test images. Finished runs are skipped, so a stopped study
goes on where it was. The differences are of one seed and a tiny budget: they tell what is broken,
not what is best by half a point.

    python benchmarks/estimator_settings.py --data=data --out=runs/estimator_settings
    python -m fda_jax.report runs/estimator_settings
"""

import argparse
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
# Name of the run: method, and its overrides.
RUNS = {
    "ste": ("ste", {}),
    "fda": ("fda", {}),
    "fda_sine_alone": ("fda", {"noise": "none"}),
    "fda_omega_0.2": ("fda", {"omega": 0.2}),
    "fda_no_window": ("fda", {"window": "inf"}),
    "fda_omega_0.05": ("fda", {"omega": 0.05}),
    "fda_backward_reading": ("fda", {"noise": "backward"}),
}
BUDGET = {
    "data.limit": 2000,
    "train.epochs": 3,
    "train.batch_size": 50,
    "checkpoint.every_epochs": 3,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of cifar-10-batches-py")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--only", nargs="*", choices=RUNS, default=list(RUNS))
    args = parser.parse_args()
    failed = []
    for name in args.only:
        method, knobs = RUNS[name]
        overrides = BUDGET | {f"method.{key}": value for key, value in knobs.items()}
        command = [
            sys.executable,
            str(REPOSITORY / "train.py"),
            f"--config={REPOSITORY / 'configs' / 'cifar10_resnet20.py'}:{method}",
            f"--workdir={args.out / name}",
            f"--config.data.dir={args.data}",
            *(f"--config.{key}={value}" for key, value in overrides.items()),
        ]
        print(f"== {name}", flush=True)
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

"""What a training step of every method costs, relative to clipped STE: ratios measured in one run.

One compiled step of ResNet-8 (or --model) on random images of CIFAR-10's size, half-way through
training, where annealed methods are neither at their start nor at their end. Steps of the method
and of clipped STE alternate, so that whatever else the machine does falls on both; the ratio is
that of the medians. The losses are recorded too, so that a step that does nothing would show.

    python benchmarks/method_step_time.py --out=runs/benchmarks
    python benchmarks/method_step_time.py --out=runs/benchmarks --only fda irnet --rounds=30
"""

from pathlib import Path
from typing import Any

import record
import sides
import steps

from fda_jax import models
from fda_jax.layers import METHODS

NAME = Path(__file__).stem
REFERENCE = "ste"
HALF_WAY = steps.TOTAL_STEPS // 2
SMALLEST = {"sizes": {"stage_sizes": (1,), "widths": (8,)}, "image_shape_hwc": (8, 8, 3)}


def main() -> None:
    parser = record.parser(__doc__)
    parser.add_argument("--only", nargs="*", choices=METHODS, help="all, if not given")
    parser.add_argument("--model", choices=models.MODELS, default="resnet8")
    parser.add_argument("--batch", type=int, default=64, help="images a step")
    parser.add_argument("--rounds", type=int, default=8, help="steps of each side")
    args = parser.parse_args()
    setting: dict[str, Any] = {"network": args.model, "batch_size": args.batch}
    names = args.only or list(METHODS)
    if args.tiny:
        setting |= {"network": "resnet8", "batch_size": 4, **SMALLEST}
        names = names[:1]
    reference = stepper(REFERENCE, setting)
    made = record.Record(
        NAME, f"What does a training step of each method cost, relative to {REFERENCE}?"
    )
    for name in names:
        method = reference.at(HALF_WAY) if name == REFERENCE else stepper(name, setting)
        first = method()
        reference()
        answers = sides.alternate({REFERENCE: reference, name: method}, args.rounds)
        made.details[name] = {
            "compile_seconds": method.compile_seconds,
            "ratio": sides.ratio(answers[name], answers[REFERENCE]),
            "first": first,
            "turns": answers[name],
            "turns_of_reference": answers[REFERENCE],
        }
        summarize(made, setting)
        made.write(args)
        print(f"{name:24}{made.details[name]['ratio']:6.2f}", flush=True)
    print(made.answer)


def stepper(method: str, setting: dict[str, Any]) -> steps.Stepper:
    """The compiled step of a method, half-way through training."""
    made = steps.make_setting(method=method, **setting)
    return steps.Stepper(made).at(HALF_WAY)


def summarize(made: record.Record, setting: dict[str, Any]) -> None:
    """Table and answer of what has been measured so far."""
    ratios = sorted((found["ratio"], name) for name, found in made.details.items())
    made.tables = [
        record.Table(
            f"Training step of {setting['network']}, batch {setting['batch_size']}",
            [
                "method",
                f"time a step ({REFERENCE} = 1)",
                "seconds to compile",
                "first loss",
                "last",
            ],
            [[name, ratio, *_row(made.details[name])] for ratio, name in ratios],
            f"{REFERENCE} is measured against itself too: what it differs from 1 is noise.",
        )
    ]
    (least, fastest), (most, slowest) = ratios[0], ratios[-1]
    near = sum(ratio <= 1.1 for ratio, _ in ratios)
    made.answer = (
        f"{near} of {len(ratios)} methods take at most 1.1 steps of {REFERENCE}; the fastest is "
        f"{fastest} ({least:.2f}), the slowest {slowest} ({most:.2f})."
    )


def _row(found: dict[str, Any]) -> tuple[float, float, float]:
    return found["compile_seconds"], found["first"]["loss"], found["turns"][-1]["loss"]


if __name__ == "__main__":
    main()

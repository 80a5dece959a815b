"""What it costs to look inside while training, relative to a training step: ratios of one run.

The digits recipe (resnet_digits, batch 64) as train.py runs it: the compiled call, the check of its
health, and with diagnostics the look, its probes and the line in metrics.jsonl. Turns of 100 steps
alternate between the settings.

    python benchmarks/diagnostics_cost.py --out=benchmarks/results
"""

import dataclasses
import importlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import record
import sides

from fda_jax.experiment import diagnose, loop, setup
from fda_jax.experiment.folder import RunFolder
from fda_jax.training import devices, feed
from fda_jax.training.step import make_train_call, make_train_step

NAME = Path(__file__).stem
# Setting: steps between looks (0 for none) and probes in each.
SETTINGS = {
    "off": (0, 0),
    "off, a second time": (0, 0),
    "every 100 steps": (100, 8),
    "every 100 steps, no probes": (100, 0),
    "every step": (1, 8),
    "every step, no probes": (1, 0),
}
LIMIT = 1.1


def main() -> None:
    parser = record.parser(__doc__)
    parser.add_argument("--method", default="fda")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each setting")
    args = parser.parse_args()
    steps, rounds = (2, 1) if args.tiny else (100, args.rounds)
    sys.path.insert(0, str(sides.ROOT / "configs"))
    config = importlib.import_module("digits_resnet").get_config(args.method)
    config.train.steps_per_call = 1
    config.diagnostics.every_steps = 1
    experiment = setup.build(config.to_dict())
    with tempfile.TemporaryDirectory() as folder:
        turns = make_turns(experiment, RunFolder(Path(folder)), steps)
        for turn in turns.values():
            turn()
        answers = sides.alternate(turns, rounds)
    made = record.Record(NAME, "What do diagnostics cost, relative to training without them?")
    ratios = {name: sides.ratio(answers[name], answers["off"]) for name in SETTINGS}
    made.details = {"turns": answers, "steps": steps}
    made.tables = [
        record.Table(
            f"Time of {steps} steps of resnet_digits, {args.method}, batch 64",
            ["diagnostics", "time (off = 1)", "seconds"],
            [[name, ratio, sides.median(answers[name])] for name, ratio in ratios.items()],
            "The second line is noise: the same as the first.",
        )
    ]
    often = ratios["every 100 steps"]
    made.goals = [
        record.Goal(
            f"diagnostics every 100 steps within {LIMIT:g} of the time without",
            f"{often:.2f}",
            often <= LIMIT,
        )
    ]
    made.answer = (
        f"Training with a look every 100 steps takes {often:.2f} of the time without, with one at "
        f"each step {ratios['every step']:.1f} ({ratios['every step, no probes']:.1f} without "
        "probes of the direction)."
    )
    made.write(args)
    print(made.answer)


def make_turns(
    experiment: setup.Experiment, folder: RunFolder, steps: int
) -> dict[str, Callable[[], dict[str, Any]]]:
    """A turn of some steps for each setting; all go on from one another's state."""
    step = make_train_step(
        experiment.model,
        experiment.optimizer,
        experiment.preprocessing,
        total_steps=experiment.plan.total_steps,
        ema_decay=experiment.ema_decay,
        axis_name=devices.AXIS,
    )
    axis = feed.axis(experiment.dataset.train)
    call = devices.parallel(
        make_train_call(step, steps_per_call=1),
        in_axes=(None, None, axis, axis, 0, None, None),
        donate=(0, 1),
    )
    key = jax.random.key(0)
    watches = {
        probes: diagnose.Watch(dataclasses.replace(experiment, probes=probes), key, key)
        for probes in {probes for _, probes in SETTINGS.values()}
    }
    feeder = feed.Feeder(experiment.dataset.train, seed=0, train=True)
    item = next(feeder.feeds(feed.train_chunks(experiment.plan, 0, 0)))
    progress = loop.start(experiment)
    progress.state, progress.totals = devices.replicate((progress.state, progress.totals))

    def turn(every: int, probes: int) -> dict[str, Any]:
        begin = time.perf_counter()
        for number in range(steps):
            if every and number % every == 0:
                folder.append_metrics(watches[probes](progress.state, number, item))
            progress.state, progress.totals, health = call(
                progress.state,
                progress.totals,
                item.images,
                item.labels,
                item.indices,
                np.int32(1),
                key,
            )
            assert bool(health.is_finite())
        return {"seconds": time.perf_counter() - begin}

    return {name: (lambda setting=setting: turn(*setting)) for name, setting in SETTINGS.items()}


if __name__ == "__main__":
    main()

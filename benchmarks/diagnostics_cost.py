"""What it costs to look inside while training, relative to a training step: ratios of one run.

The digits recipe (resnet_digits, batch 64) as train.py runs it: the compiled call, the check of its
health, and with diagnostics the look, its probes and the line in metrics.jsonl. Turns of 100 steps
alternate between the settings; of those that look at each step, turns of 10.

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
# Setting: steps of a turn, steps between looks (0 for none), probes in each.
SETTINGS = {
    "off": (100, 0, 0),
    "off, a second time": (100, 0, 0),
    "every 100 steps": (100, 100, 8),
    "every step": (10, 1, 8),
    "every step, no probes": (10, 1, 0),
}
LIMIT = 1.1


def main() -> None:
    parser = record.parser(__doc__)
    parser.add_argument("--method", help="fda, if not given")
    parser.add_argument("--rounds", type=int, default=12, help="turns of each setting")
    args = parser.parse_args()
    rounds = 1 if args.tiny else args.rounds
    sys.path.insert(0, str(sides.ROOT / "configs"))
    # Noise modules take long to compile.
    args.method = args.method or ("ste" if args.tiny else "fda")
    config = importlib.import_module("digits_resnet").get_config(args.method)
    config.train.steps_per_call = 1
    config.diagnostics.every_steps = 1
    experiment = setup.build(config.to_dict())
    if args.tiny:
        small = experiment.model.clone(stage_sizes=(1,), widths=(8,))
        experiment = dataclasses.replace(experiment, model=small, signs=None)
    with tempfile.TemporaryDirectory() as folder:
        turns = make_turns(experiment, RunFolder(Path(folder)), tiny=args.tiny)
        for turn in turns.values():
            turn()
        answers = sides.alternate(turns, rounds)
    made = record.Record(NAME, "What do diagnostics cost, relative to training without them?")
    summarize(made, answers, args.method)
    made.write(args)
    print(made.answer)


def summarize(made: record.Record, answers: dict[str, Any], method: str) -> None:
    """Table, goal and answer of what was measured."""
    ratios = {name: sides.ratio(answers[name], answers["off"]) for name in SETTINGS}
    made.details = {"turns": answers}
    made.tables = [
        record.Table(
            f"Time of a step of resnet_digits, {method}, batch 64",
            ["diagnostics", "time (off = 1)", "milliseconds"],
            [[name, ratio, 1000 * sides.median(answers[name])] for name, ratio in ratios.items()],
            "The second line is noise: the same as the first.",
        )
    ]
    look, bare = ratios["every step"] - 1, ratios["every step, no probes"] - 1
    seldom = 1 + look / 100
    made.goals = [
        record.Goal(
            f"a look every 100 steps, by the cost of one: training takes at most {LIMIT:g} times",
            f"{seldom:.3f}; measured directly {ratios['every 100 steps']:.3f}, where the same "
            f"again is {ratios['off, a second time']:.3f}",
            seldom <= LIMIT,
        )
    ]
    made.answer = (
        f"A look costs {look:.1f} training steps, {bare:.1f} without its 8 probes of the "
        f"direction: one every 100 steps makes training take {seldom:.2f} of its time, one at each "
        f"step {1 + look:.1f}."
    )


def make_turns(
    experiment: setup.Experiment, folder: RunFolder, *, tiny: bool
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
        for probes in {probes for *_, probes in SETTINGS.values()}
    }
    feeder = feed.Feeder(experiment.dataset.train, seed=0, train=True)
    item = next(feeder.feeds(feed.train_chunks(experiment.plan, 0, 0)))
    progress = loop.start(experiment)
    progress.state, progress.totals = devices.replicate((progress.state, progress.totals))

    def turn(steps: int, every: int, probes: int) -> dict[str, Any]:
        steps = 2 if tiny else steps
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
        return {"seconds": (time.perf_counter() - begin) / steps}

    return {name: (lambda setting=setting: turn(*setting)) for name, setting in SETTINGS.items()}


if __name__ == "__main__":
    main()

"""What a training step of every method costs, relative to clipped STE: ratios measured in one run.

One compiled step of ResNet-8 (or --model) on random images of CIFAR-10's size. Steps of the method
and of clipped STE alternate, so that whatever else the machine does falls on both; the ratio is
that of the medians. The losses are printed too, so that a step that does nothing would show.

    python benchmarks/method_step_time.py --out=runs/method_step_time
    python benchmarks/method_step_time.py --out=runs/method_step_time --only fda irnet --rounds=30
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fda_jax import models
from fda_jax.experiment.environment import environment
from fda_jax.layers import METHODS, make_method
from fda_jax.training.optimizer import make_optimizer, make_schedule
from fda_jax.training.state import init_state
from fda_jax.training.step import Batch, Preprocessing, make_train_step

REFERENCE = "ste"
SHAPE, CLASSES, STEPS = (32, 32, 3), 10, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--only", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--model", choices=models.MODELS, default="resnet8")
    parser.add_argument("--batch", type=int, default=64, help="images a step")
    parser.add_argument("--rounds", type=int, default=8, help="steps of each side")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    step_of_reference, _ = stepper(REFERENCE, args.model, args.batch)
    made_with = {
        **environment(),
        "command": f"python benchmarks/method_step_time.py --out=runs/method_step_time "
        f"--model={args.model} --batch={args.batch} --rounds={args.rounds}",
        "reference": REFERENCE,
    }
    rows = {}
    for name in args.only:
        step, compile_seconds = stepper(name, args.model, args.batch)
        times: dict[str, list[float]] = {REFERENCE: [], name: []}
        losses = []
        for _ in range(args.rounds):
            seconds, _ = step_of_reference()
            times[REFERENCE].append(seconds)
            seconds, loss = step()
            times[name].append(seconds)
            losses.append(loss)
        rows[name] = {
            "ratio": statistics.median(times[name]) / statistics.median(times[REFERENCE]),
            "compile_seconds": compile_seconds,
            "first_loss": losses[0],
            "last_loss": losses[-1],
            "rounds": args.rounds,
        }
        print(f"{name:24}{rows[name]['ratio']:6.2f}  loss {losses[0]:.3f} to {losses[-1]:.3f}")
        write(args, {**made_with, "methods": rows})


def stepper(name: str, model_name: str, batch: int) -> tuple[Callable[[], tuple], float]:
    """A function that takes one step and returns its seconds and loss, and the compile time."""
    method = make_method(name)
    model = models.build(model_name, num_classes=CLASSES, method=method)
    optimizer = make_optimizer(
        name="sgd",
        schedule=make_schedule(
            schedule="cosine", learning_rate=0.1, total_steps=STEPS, warmup_steps=0
        ),
        momentum=0.9,
        nesterov=False,
        weight_decay=1e-4,
        decay_groups=("binary", "real"),
        clip_norm=0.0,
        latent_rule=method.latent_rule,
        total_steps=STEPS,
    )
    preprocessing = Preprocessing((0.5,) * 3, (0.25,) * 3, crop_px=4, flip=True)
    key = jax.random.key(0)
    state = init_state(model, optimizer, key, SHAPE, with_ema=False)
    # Half-way, where annealed methods are neither at their start nor at their end.
    state = state.replace(step=jnp.int32(STEPS // 2))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, *SHAPE), dtype=np.uint8)
    examples = Batch(jnp.asarray(images), jnp.asarray(rng.integers(0, CLASSES, batch), jnp.int32))
    jitted = jax.jit(make_train_step(model, optimizer, preprocessing, total_steps=STEPS))
    start = time.perf_counter()
    compiled = jitted.lower(state, examples, key).compile()
    compile_seconds = time.perf_counter() - start

    def step() -> tuple[float, float]:
        nonlocal state
        begin = time.perf_counter()
        state, _, health = compiled(state, examples, key)
        loss = float(health.loss)
        return time.perf_counter() - begin, loss

    step()
    return step, compile_seconds


def write(args: argparse.Namespace, report: dict[str, Any]) -> None:
    rows = report["methods"]
    (args.out / "method_step_time.json").write_text(json.dumps(report, indent=2) + "\n")
    lines = ["| method | time a step (ste = 1) | seconds to compile |", "| --- | ---: | ---: |"]
    for name, row in sorted(rows.items(), key=lambda item: item[1]["ratio"]):
        lines.append(f"| {name} | {row['ratio']:.2f} | {row['compile_seconds']:.1f} |")
    text = (
        f"# Time of a training step\n\nBy `{report['command']}` on {report['device']} at revision "
        f"{(report['revision'] or 'unknown')[:8]}{'+changes' if report['dirty'] else ''}, jax "
        f"{jax.__version__}; medians of steps that alternate with ste's.\n\n"
    )
    (args.out / "method_step_time.md").write_text(text + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

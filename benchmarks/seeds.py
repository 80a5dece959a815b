"""Are several seeds faster as one vmapped program than one after another?

A training step of K runs that differ in their seed, on the CPU: once as K calls of the step of one
run, once as one call of that step mapped over K states, batches and keys. Both do the same work;
the sides alternate, and the losses of the first step are compared. throughput_gpu.py measures the
same on a GPU.

    python benchmarks/seeds.py --out=runs/seeds
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import record
import sides
import steps

NAME = Path(__file__).stem
APART, MAPPED = "one after another", "one vmapped program"
# How many times as fast the mapped program must be to be worth its memory and its own way of
# checkpointing and stopping.
WORTH = 1.1


@dataclasses.dataclass(frozen=True)
class Network:
    """A network, the images of its data set, and the batch of its recipe."""

    name: str
    image_shape_hwc: tuple[int, int, int]
    batch: int


NETWORKS = (
    Network("resnet_digits", (8, 8, 1), 64),
    Network("resnet8", (32, 32, 3), 128),
)
# 5 is what the sweeps ask for.
COUNTS = (2, 5)


def main() -> None:
    parser = record.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="turns of each side")
    parser.add_argument("--method", help="fda, if not given")
    args = parser.parse_args()
    # Noise modules take long to compile.
    args.method = args.method or ("ste" if args.tiny else "fda")
    networks, counts, rounds = NETWORKS, COUNTS, args.rounds
    if args.tiny:
        networks, counts, rounds = (Network("resnet_digits", (8, 8, 1), 2),), (2,), 1
    made = record.Record(
        NAME, "Are several seeds faster as one vmapped program than one after another?"
    )
    for network in networks:
        sizes = {"stage_sizes": (1,), "widths": (4,)} if args.tiny else None
        setting = steps.make_setting(
            network.name,
            args.method,
            network.batch,
            image_shape_hwc=network.image_shape_hwc,
            sizes=sizes,
        )
        single = compiled(setting.train_step, setting.state, setting.batch, setting.key)
        found = {count: measure(setting, single, count, rounds) for count in counts}
        made.details[network.name] = found
        made.tables.append(table(network, found))
        print(network.name, {count: round(one["ratio"], 3) for count, one in found.items()})
        summarize(made)
        made.write(args)
    print(made.answer)


def measure(setting: steps.Setting, single: "Compiled", count: int, rounds: int) -> dict[str, Any]:
    """Time both sides on `count` runs; the ratio is above 1 where the mapped program is faster."""
    keys = jax.vmap(jax.random.key)(jnp.arange(count))
    states = [jax.tree.map(jnp.copy, setting.state) for _ in range(count)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    batches = jax.tree.map(lambda leaf: jnp.stack([leaf] * count), setting.batch)
    mapped = compiled(jax.vmap(setting.train_step), stacked, batches, keys)

    def apart() -> dict[str, Any]:
        begin = time.perf_counter()
        losses = []
        for i in range(count):
            states[i], _, health = single.call(states[i], setting.batch, keys[i])
            losses.append(float(health.loss))
        return {"seconds": time.perf_counter() - begin, "losses": losses}

    def together() -> dict[str, Any]:
        nonlocal stacked
        begin = time.perf_counter()
        stacked, _, health = mapped.call(stacked, batches, keys)
        losses = np.asarray(health.loss).tolist()
        return {"seconds": time.perf_counter() - begin, "losses": losses}

    first = {APART: apart()["losses"], MAPPED: together()["losses"]}
    answers = sides.alternate({APART: apart, MAPPED: together}, rounds)
    return {
        "ratio": sides.ratio(answers[APART], answers[MAPPED]),
        "seconds": {side: sides.median(turns) for side, turns in answers.items()},
        "compile_seconds": {APART: single.seconds, MAPPED: mapped.seconds},
        "first_losses": first,
        "largest_difference": float(np.max(np.abs(np.subtract(*first.values())))),
        "turns": {side: [turn["seconds"] for turn in turns] for side, turns in answers.items()},
    }


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step, and the seconds that its compilation took."""

    call: Callable[..., Any]
    seconds: float


def compiled(fn: Callable[..., Any], *args: Any) -> Compiled:
    begin = time.perf_counter()
    call = jax.jit(fn, donate_argnums=0).lower(*args).compile()
    return Compiled(call, time.perf_counter() - begin)


def table(network: Network, found: Mapping[int, Mapping[str, Any]]) -> record.Table:
    rows = [
        [
            count,
            one["seconds"][APART] / one["seconds"][MAPPED],
            1000 * one["seconds"][APART] / count,
            1000 * one["seconds"][MAPPED] / count,
            one["compile_seconds"][APART],
            one["compile_seconds"][MAPPED],
            one["largest_difference"],
        ]
        for count, one in found.items()
    ]
    return record.Table(
        f"A step of {network.name} for K seeds, batch {network.batch} each",
        [
            "K",
            "speed of the vmapped program (one after another = 1)",
            "one after another (ms a seed)",
            "vmapped (ms a seed)",
            "compile one (s)",
            "compile vmapped (s)",
            "difference of first losses",
        ],
        rows,
        "Compiling the step of one run serves all K.",
    )


def summarize(made: record.Record) -> None:
    ratios = {
        (name, count): one["ratio"]
        for name, found in made.details.items()
        for count, one in found.items()
    }
    best = max(ratios, key=lambda key: ratios[key])
    words = [f"{name}: {_range(found)}" for name, found in made.details.items()]
    made.answer = (
        f"Speed of {min(k for _, k in ratios)} to {max(k for _, k in ratios)} seeds in one program,"
        f" one after another = 1: {'; '.join(words)}."
    )
    made.goals = [
        record.Goal(
            f"the vmapped program is at least {WORTH} times as fast somewhere",
            f"{ratios[best]:.2f}x ({best[0]}, {best[1]} seeds)",
            ratios[best] >= WORTH,
        )
    ]


def _range(found: Mapping[int, Mapping[str, Any]]) -> str:
    ratios = [one["ratio"] for one in found.values()]
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


if __name__ == "__main__":
    main()

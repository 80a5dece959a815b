"""Training throughput on the CPU: ours against PyTorch, eager and compiled.

Each cell is a network and a method. Three processes take turns with one training step each, from
the same weights on the same batch. PyTorch may live in an environment of its own:

    python benchmarks/throughput_cpu.py --out=results --torch-python=torch-env/bin/python
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import record
import sides
import steps
from flax.traverse_util import flatten_dict

OURS = "fda_jax"
MODES = ("eager", "compile")
LITERAL = "_literal"
NETWORKS, METHODS = ("resnet20", "vgg_small"), ("ste", "fda", "fda" + LITERAL)
FEWEST_ROUNDS, MOST_ROUNDS, CELL_SECONDS = 5, 25, 45.0
LOSSES = 5
# Two programs that round differently now and then binarize an activation near 0 to other signs.
# A step later all weights differ; the first losses have only the forward pass behind them.
FIRST_TOLERANCE, LATER_TOLERANCE = 0.01, 0.05

Cell = dict[str, Any]


def main() -> None:
    args = arguments()
    sides.check_torch(args.torch_python)
    result = record.Record(
        "throughput_cpu",
        "Does a training step on the CPU take less time in fda_jax than in PyTorch?",
    )
    cells = []
    for network in args.networks:
        for method in args.methods:
            cells.append(measure(args, network, method))
            print_cell(cells[-1])
    fill(result, args, cells)
    print(result.answer)
    result.write(args)


def arguments() -> argparse.Namespace:
    parser = record.parser(__doc__)
    sides.add_torch_python(parser)
    parser.add_argument("--rounds", type=int, help="steps of each side; by time if left out")
    parser.add_argument("--batch", type=int, help="images a step; 128 if left out")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS[:2]))
    args = parser.parse_args()
    args.batch = args.batch or (2 if args.tiny else 128)
    args.modes, args.sizes = MODES, {}
    if args.tiny:
        # Compiling one step in PyTorch takes longer than all else together.
        args.networks, args.methods, args.modes, args.rounds = ["vgg_small"], ["fda"], MODES[:1], 2
        args.sizes = {"widths": (8, 16, 32)}
    return args


def measure(args: argparse.Namespace, network: str, method: str) -> Cell:
    """Facts, turns and early losses of the sides of one cell."""
    with started(args, network, method) as workers:
        turns = {name: worker.turn for name, worker in workers.items()}
        answers = sides.alternate(turns, 1)
        rounds = args.rounds or affordable_rounds(answers)
        for name, more in sides.alternate(turns, rounds - 1).items():
            answers[name] += more
        facts = {name: worker.facts for name, worker in workers.items()}
    for mode in args.modes:
        # What a worker of PyTorch tells is the time of its first step.
        facts[mode]["compile_seconds"] -= sides.median(answers[mode])
    losses = {
        name: [facts[name]["first_loss"], *(answer["loss"] for answer in answers[name])][:LOSSES]
        for name in workers
    }
    best = min(args.modes, key=lambda mode: sides.median(answers[mode]))
    return {
        "network": network,
        "method": method,
        "batch": args.batch,
        "best": best,
        "speed": sides.ratio(answers[best], answers[OURS]),
        "losses": losses,
        "first_difference": difference(losses, slice(0, 1)),
        "later_difference": difference(losses, slice(1, None)),
        "facts": facts,
        "turns": answers,
    }


@contextmanager
def started(args: argparse.Namespace, network: str, method: str) -> Iterator[dict[str, sides.Side]]:
    """The three workers of a cell, which end with the context."""
    ours = method.removesuffix(LITERAL)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        start = Path(folder) / "start.npz"
        save_start(start, network, ours, args)

        def worker(*command: str, **environment: str) -> sides.Side:
            side = sides.Side(command, environment)
            stack.callback(side.close)
            return side

        here, batch = Path(__file__).parent / "workers", str(args.batch)
        step = (args.torch_python, str(here / "torch_step.py"), network, method, batch, str(start))
        cache = os.path.join(folder, "inductor")
        yield {
            OURS: worker(
                str(here / "jax_step.py"), network, ours, batch, f"sizes={json.dumps(args.sizes)}"
            ),
            **{mode: worker(*step, mode, TORCHINDUCTOR_CACHE_DIR=cache) for mode in args.modes},
        }


def save_start(path: Path, network: str, method: str, args: argparse.Namespace) -> None:
    """Our initial variables by their paths, and the batch."""
    setting = steps.make_setting(network, method, args.batch, augment=False, sizes=args.sizes)
    variables = {"params": setting.state.params, "batch_stats": setting.state.batch_stats}
    arrays = {name: np.asarray(leaf) for name, leaf in flatten_dict(variables, sep="/").items()}
    np.savez(path, images=setting.batch.images, labels=setting.batch.labels, **arrays)


def affordable_rounds(answers: dict[str, list[dict[str, Any]]]) -> int:
    round_seconds = sum(answer["seconds"] for (answer,) in answers.values())
    return min(max(int(CELL_SECONDS / round_seconds), FEWEST_ROUNDS), MOST_ROUNDS)


def difference(losses: dict[str, list[float]], at: slice) -> float:
    """Largest relative difference of PyTorch's losses from ours."""
    ours = np.array(losses[OURS][at])
    return max(float(np.max(np.abs(np.array(other[at]) / ours - 1.0))) for other in losses.values())


def print_cell(cell: Cell) -> None:
    print(f"{cell['network']} {cell['method']}: {cell['speed']:.2f}x of {cell['best']}")
    for side, losses in cell["losses"].items():
        median = sides.median(cell["turns"][side])
        print(f"  {side:8} {median:7.3f} s  losses {' '.join(f'{loss:.4f}' for loss in losses)}")


def fill(result: record.Record, args: argparse.Namespace, cells: list[Cell]) -> None:
    """Tables, goals and answer from the cells."""
    result.tables = [speed_table(args, cells), cost_table(args, cells), loss_table(cells)]
    for cell in cells:
        name = f"{cell['network']}, {cell['method']}"
        result.goals += [
            record.Goal(
                f"{name}: at least 1.0x the throughput of the best PyTorch",
                f"{cell['speed']:.2f}x",
                cell["speed"] >= 1.0,
            ),
            record.Goal(
                f"{name}: first losses within {FIRST_TOLERANCE:.0%}, those of the next "
                f"{LOSSES - 1} steps within {LATER_TOLERANCE:.0%} of ours",
                f"{cell['first_difference']:.2%} and {cell['later_difference']:.2%}",
                cell["first_difference"] <= FIRST_TOLERANCE
                and cell["later_difference"] <= LATER_TOLERANCE,
            ),
        ]
    kept = sum(cell["speed"] >= 1.0 for cell in cells)
    speeds = ", ".join(f"{c['network']} {c['method']} {c['speed']:.2f}x" for c in cells)
    result.answer = (
        f"fda_jax trains at least as fast as the best PyTorch in {kept} of {len(cells)} cells at "
        f"batch {args.batch}: {speeds}."
    )
    result.details = {"cells": cells}


def speed_table(args: argparse.Namespace, cells: list[Cell]) -> record.Table:
    rows = []
    for cell in cells:
        medians = {side: sides.median(turns) for side, turns in cell["turns"].items()}
        rows.append(
            [
                f"{cell['network']} {cell['method']}",
                round(cell["speed"], 3),
                *(round(medians[mode] / medians[OURS], 3) for mode in args.modes),
                *(round(args.batch / seconds, 1) for seconds in medians.values()),
                len(cell["turns"][OURS]),
            ]
        )
    return record.Table(
        f"Training throughput at batch {args.batch}, float32",
        [
            "network and method",
            "ours / best PyTorch",
            *(f"ours / {mode}" for mode in args.modes),
            *(f"{side} (images/s)" for side in (OURS, *args.modes)),
            "rounds",
        ],
        rows,
        "Above 1: ours is faster. Ratios of medians of steps that alternate; images/s are of this "
        "machine on this day.",
    )


def cost_table(args: argparse.Namespace, cells: list[Cell]) -> record.Table:
    rows = [
        [
            f"{cell['network']} {cell['method']}",
            *(round(max(t["peak_mib"] for t in turns)) for turns in cell["turns"].values()),
            *(round(facts["compile_seconds"], 1) for facts in cell["facts"].values()),
        ]
        for cell in cells
    ]
    return record.Table(
        "Memory and compilation",
        [
            "network and method",
            *(f"{side}: peak (MiB)" for side in (OURS, *args.modes)),
            *(f"{side}: compilation (s)" for side in (OURS, *args.modes)),
        ],
        rows,
        "Peak resident memory of the whole process, compiler included. Compilation in PyTorch is "
        "its first step less a median one.",
    )


def loss_table(cells: list[Cell]) -> record.Table:
    rows = [
        [f"{cell['network']} {cell['method']}", side, *(round(loss, 5) for loss in losses)]
        for cell in cells
        for side, losses in cell["losses"].items()
    ]
    count = max(len(row) for row in rows) - 2
    return record.Table(
        "Losses of the first steps from the same weights on the same batch",
        ["network and method", "side", *(f"step {i + 1}" for i in range(count))],
        rows,
        "Rounding differs between programs, and where an activation is nearly 0 it decides a sign; "
        "in double precision five steps of both sides agree to 1e-5, which "
        "tests/benchmarks/test_torch_peer.py holds.",
    )


if __name__ == "__main__":
    main()

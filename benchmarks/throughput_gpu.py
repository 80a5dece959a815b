"""Training throughput on one GPU, beside PyTorch on the same card in the same run.

ResNet-20 with FDA on 50,000 random images of CIFAR-10's size that lie on the device, at batch 128
and 1024 in bfloat16 and float32 (TF32 on both sides), many steps a compiled call; several seeds
at once, in one program and in programs side by side, in the first part; ResNet-18 of ImageNet at
224 pixels. Each side is a process of its own and they take turns; the peer is compiled with
torch.compile, and where several of its modes are measured the fastest counts. Both sides start from
the same weights, and the loss of their first batch is compared.

Needs jax, flax, optax, orbax-checkpoint, tensorboardX and numpy and, for the peer, torch. It ends
before --seconds whatever happens: what would not fit is left out and named, and the record is
written after each part. --parts runs some of them, e.g. when one was left out. --at-once lets the
sides of several parts compile side by side. With --hold something else may use the card meanwhile:
when all sides of a group are ready, it says so and waits for a file; it removes the file when their
turns are over.

    python benchmarks/throughput_gpu.py --out=runs/throughput_gpu
    python benchmarks/throughput_gpu.py --out=runs/throughput_gpu --parts resnet18 f32_1024
"""

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import record
import sides
import steps
from workers.jax_call import Task

WORKERS = Path(__file__).parent / "workers"
OURS = "fda_jax"
# By default XLA launches each convolution by itself and what lies between two as a CUDA graph. With
# these a whole step is one graph, whose kernels run one after another or, where none needs what
# another makes, side by side; flags by what they make of a step.
GRAPHS = {
    "a graph a step": "--xla_gpu_enable_command_buffer=+CONVOLUTION",
    "a graph a step, kernels side by side": "--xla_gpu_enable_command_buffer=+CONVOLUTION "
    "--xla_gpu_command_buffer_scheduling_mode=CONCURRENT",
}
# Of the recipe: 391 steps of 128 images an epoch.
EPOCHS, STEPS_AN_EPOCH = 400, 391
# Of the first losses' relative difference. Rounding turns signs, more of them with every layer: one
# millionth more in the stem moves ResNet-18's loss by 1 % at batch 256 and 64 pixels, bfloat16 by
# 2 %. That the networks are the same shows in double precision (tests/benchmarks).
CHECK_LIMITS = {"resnet20": 0.02, "resnet18": 0.05}
# Less than this is not enough to start the sides of a part.
LEAST_SECONDS = 45
# Share of a part's time in which its sides must be ready.
READY = 0.75

# Sides on their way, by name; a word instead of one that did not start.
Starts = Mapping[str, "Future[sides.Side | sides.Company | str]"]


@dataclasses.dataclass(frozen=True)
class Part:
    """What is measured together.

    Attributes:
      seconds: that it may take, compilation included.
      sides: tasks of the programs that take turns; those named "torch ..." are the peer's.
    """

    seconds: float
    sides: Mapping[str, Task]


def main() -> None:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # both sides share the card
    parser = record.parser(__doc__)
    parser.add_argument("--parts", nargs="+", help="of the parts; default: all")
    parser.add_argument("--seconds", type=float, default=560, help="for everything")
    parser.add_argument("--rounds", type=int, default=8, help="turns of each side")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[2, 3, 5], help="numbers of seeds trained at once"
    )
    parser.add_argument(
        "--company",
        nargs=2,
        type=int,
        default=[3, 3],
        metavar=("PROCESSES", "SEEDS"),
        help="of several programs side by side; 0 0 for none",
    )
    parser.add_argument(
        "--peak-tflops", type=float, default=989, help="dense bfloat16, of the chip"
    )
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"],
        default=["reduce-overhead"],
        help="of torch.compile; max-autotune-no-cudagraphs takes minutes to be ready",
    )
    sides.add_torch_python(parser)
    parser.add_argument("--serial", action="store_true", help="start the sides one by one")
    parser.add_argument(
        "--at-once",
        type=int,
        default=1,
        help="parts whose sides compile side by side; for several a card of 80 GB",
    )
    parser.add_argument(
        "--hold", type=Path, help="take turns only once this file exists, then remove it"
    )
    args = parser.parse_args()
    deadline = time.monotonic() + args.seconds
    if jax.default_backend() != "gpu" and not args.tiny:
        parser.error(
            f"this needs a GPU, and jax sees only {jax.devices()[0].device_kind}: install "
            "jax[cuda12] or jax[cuda13], or try the script with --tiny"
        )
    with tempfile.TemporaryDirectory() as folder:
        run(make_parts(args, Path(folder)), deadline, args, parser)


def run(
    parts: Mapping[str, Part],
    deadline: float,
    args: argparse.Namespace,
    parser: argparse.ArgumentParser,
) -> None:
    """Run the parts that are asked for and write the record after each."""
    unknown = set(args.parts or ()) - set(parts)
    if unknown:
        parser.error(f"no parts {sorted(unknown)}: there are {', '.join(parts)}")
    names = list(args.parts or parts)
    left = deadline - time.monotonic()
    if left < LEAST_SECONDS and not args.tiny:
        parser.error(
            f"--seconds={args.seconds:g}: {left:.0f} are left; give a part {LEAST_SECONDS} at least"
        )
    if args.at_once < 1:
        parser.error(f"--at-once={args.at_once}: a group has one part at least")
    results: dict[str, Any] = {}
    for first in range(0, len(names), args.at_once):
        group = names[first : first + args.at_once]
        left = deadline - time.monotonic()
        seconds = min(left, sum(parts[name].seconds for name in group))
        for name, result in run_group(
            {name: parts[name] for name in group}, 3600 if args.tiny else seconds, args, results
        ):
            results[name] = result
            print(f"{name}: {describe(result)}", flush=True)
            path = make_record(results, parts, args).write(args)
    print(path)


def make_parts(args: argparse.Namespace, folder: Path) -> dict[str, Part]:
    """The parts, the most telling first; `folder` is where to write the weights to."""
    base = Task(
        "resnet20",
        batch=128,
        dtype="bfloat16",
        side_px=32,
        examples=50_000,
        steps_per_call=100,
        turn_seconds=1.5,
    )
    if args.tiny:
        args.serial = True  # then the company finds what our side has compiled
        base = dataclasses.replace(
            base,
            batch=4,
            side_px=8,
            examples=16,
            steps_per_call=2,
            turn_seconds=0.01,
            method="ste",
            blocks=1,
        )
    save_variables(base, folder)

    def beside_torch(seconds: float, evaluate: bool = False, **changes: Any) -> Part:
        ours = dataclasses.replace(base, **changes)
        start = str(variables_of(ours, folder))
        made = {OURS: dataclasses.replace(ours, evaluate=evaluate)}
        for mode in ("eager",) if args.tiny else args.modes:
            made[f"torch {mode}"] = dataclasses.replace(ours, mode=mode, variables=start)
        return Part(seconds, made)

    numbers, (processes, each) = ((2,), (2, 1)) if args.tiny else (args.seeds, args.company)
    several = {f"{n} seeds": dataclasses.replace(base, seeds=n) for n in numbers}
    if processes:
        company = dataclasses.replace(base, seeds=each, processes=processes)
        several[f"{processes} processes of {each} seeds"] = company
    for words, flags in {} if args.tiny else GRAPHS.items():
        graph = dataclasses.replace(base, xla_flags=flags)
        several[f"{OURS}, {words}"] = graph
        several[f"{max(numbers)} seeds, {words}"] = dataclasses.replace(graph, seeds=max(numbers))
    first = beside_torch(240, evaluate=True)
    parts = {"bf16_128": Part(first.seconds, {**first.sides, **several})}
    if args.tiny:
        return parts
    parts["bf16_1024"] = beside_torch(110, batch=1024, steps_per_call=25)
    parts["f32_128"] = beside_torch(110, dtype="float32")
    parts["resnet18"] = beside_torch(
        120, network="resnet18", batch=256, side_px=224, examples=2048, steps_per_call=10
    )
    if not args.parts or "resnet18" in args.parts:
        save_variables(parts["resnet18"].sides[OURS], folder)
    parts["f32_1024"] = beside_torch(110, batch=1024, steps_per_call=25, dtype="float32")
    return parts


def variables_of(task: Task, folder: Path) -> Path:
    """File of the first weights of a task's network."""
    return folder / f"{task.network}.npz"


def save_variables(task: Task, folder: Path) -> None:
    """The first weights of our side, by their paths, for the peer to start from."""
    sizes = {"stage_sizes": (task.blocks,) * 3} if task.network == "resnet20" else None
    side = min(task.side_px, 32)  # on which weights do not depend, but the time to make them
    shape = (side, side, 3)
    with jax.default_device(jax.devices("cpu")[0]):  # which compiles it in a fraction of the time
        setting = steps.make_setting(
            task.network, task.method, 1, image_shape_hwc=shape, sizes=sizes
        )
    tree = {"params": setting.state.params, "batch_stats": setting.state.batch_stats}
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = {"/".join(key.key for key in keys): np.asarray(leaf) for keys, leaf in leaves}
    np.savez(variables_of(task, folder), **named)


def matmul_tflops(size: int) -> float:
    """TFLOP/s of a square bfloat16 matrix product, the practical peak."""
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    multiply = jax.jit(lambda a, b: a @ b)
    jax.block_until_ready(multiply(a, a))
    count = 20
    begin = time.perf_counter()
    products = [multiply(a, a) for _ in range(count)]
    jax.block_until_ready(products)
    return 2 * size**3 * count / (time.perf_counter() - begin) / 1e12


def run_group(
    parts: Mapping[str, Part], seconds: float, args: argparse.Namespace, results: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Start the sides of some parts, then let those of one part after the other take turns; what
    came out, by part. The first group measures the chip's practical peak, into `results`."""
    if seconds < LEAST_SECONDS:
        said = f"{max(seconds, 0):.0f} of the {args.seconds:.0f} seconds were left"
        yield from ((name, {"skipped": said}) for name in parts)
        return
    end = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        starts = {name: start_sides(part, end, args, stack) for name, part in parts.items()}
        wait([side for sides_of in starts.values() for side in sides_of.values()])
        if args.hold:
            print(f"{', '.join(parts)}: no side is compiling, waiting for {args.hold}", flush=True)
            while not args.hold.exists() and time.monotonic() < end:
                time.sleep(0.2)
            stack.callback(args.hold.unlink, missing_ok=True)
        if "matmul_tflops" not in results:
            results["matmul_tflops"] = matmul_tflops(128 if args.tiny else 8192)
        for name, sides_of in starts.items():
            started = {key: side.result() for key, side in sides_of.items()}
            yield name, take_turns(started, end, args)


def take_turns(
    started: Mapping[str, sides.Side | sides.Company | str], end: float, args: argparse.Namespace
) -> dict[str, Any]:
    """Let the sides of a part take turns until `end`; what came out, by side."""
    with contextlib.ExitStack() as stack:
        results: dict[str, Any] = {}
        turns: dict[str, Callable[[], Mapping[str, Any]]] = {}
        for name, side in started.items():
            if isinstance(side, str):
                results[name] = {"failed": side}
                continue
            stack.callback(side.close)
            results[name] = {"facts": side.facts, "turns": []}
            turns[name] = side.turn
        last = 0.0
        for _ in range(1 if args.tiny else args.rounds):
            begin = time.monotonic()
            if not turns or end - begin < 2 * last:
                break
            try:
                answers = sides.alternate(turns, 1)
            except sides.SideError as error:
                results["stopped"] = str(error)
                break
            last = time.monotonic() - begin
            for name, answer in answers.items():
                results[name]["turns"] += answer
    return results


def start_sides(
    part: Part, end: float, args: argparse.Namespace, stack: contextlib.ExitStack
) -> Starts:
    """Start the sides of a part in threads of their own, which `stack` ends."""
    pool = stack.enter_context(ThreadPoolExecutor(1 if args.serial else len(part.sides)))
    return {name: pool.submit(start, name, task, end, args) for name, task in part.sides.items()}


def start(
    name: str, task: Task, end: float, args: argparse.Namespace
) -> sides.Side | sides.Company | str:
    """Start a side that is killed at `end`; or why it did not start."""
    ours = not name.startswith("torch")
    program = sys.executable if ours else args.torch_python
    worker = WORKERS / ("jax_call.py" if ours else "torch_gpu.py")
    limit = max(1, int(end - time.monotonic()))
    # A side that is slow to start must leave the others time for their turns.
    text = json.dumps({**dataclasses.asdict(task), "ready_seconds": int(READY * limit)})
    command = ["timeout", "--signal=KILL", str(limit), program, str(worker), text]
    environment = None
    if ours:
        flags = f"{os.environ.get('XLA_FLAGS', '')} {task.xla_flags}".strip()
        environment = {"XLA_FLAGS": flags}
        if args.at_once > 1:
            environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = str(memory_share(task))
    members = [sides.Side(command, environment, wait=False) for _ in range(task.processes)]
    try:
        for member in members:
            member.wait()
    except sides.SideError as error:
        for member in members:
            member.close()
        reason = str(error).partition(" ended with ")[2]
        return f"was not ready for its first turn, {reason[:300]}"
    seconds = max(member.facts["start_seconds"] for member in members)
    of = f"{task.network}, batch {task.batch}, {task.dtype}"
    print(f"{name} ({of}) is ready after {seconds:.0f} s", flush=True)
    return members[0] if task.processes == 1 else sides.Company(members)


def memory_share(task: Task) -> float:
    """Share of the card's memory that a process of ours may take where the card has to hold the
    sides of several parts: of 80 GB several times what its program needs. It would keep what XLA's
    search for the fastest convolutions once took."""
    if task.side_px > 32:
        return 0.2
    return 0.1 if task.batch > 128 else 0.06


def measured(result: Mapping[str, Any]) -> dict[str, float]:
    """Images a second of the sides that had a turn."""
    return {
        name: statistics.median(turn["images_per_second"] for turn in side["turns"])
        for name, side in result.items()
        if isinstance(side, Mapping) and side.get("turns")
    }


def failures(result: Mapping[str, Any]) -> dict[str, str]:
    """Why sides of a part have no turn, or the whole part stopped."""
    if "stopped" in result:
        return {"stopped": result["stopped"]}
    return {name: side["failed"] for name, side in result.items() if "failed" in side}


def fastest_torch(speeds: Mapping[str, float]) -> str | None:
    return max((name for name in speeds if name.startswith("torch")), key=speeds.get, default=None)


def describe(result: Mapping[str, Any]) -> str:
    if "skipped" in result:
        return f"left out: {result['skipped']}"
    speeds = measured(result)
    shown = [f"{name} {speed:,.0f} images/s" for name, speed in speeds.items()]
    failed = [f"{name}: {word}" for name, word in failures(result).items()]
    return ", ".join(shown + failed)


def ratio_to_torch(result: Mapping[str, Any]) -> float | None:
    speeds = measured(result)
    peer = fastest_torch(speeds)
    return speeds[OURS] / speeds[peer] if OURS in speeds and peer else None


def run_seconds(result: Mapping[str, Any]) -> float | None:
    """A run of the recipe's length from measured steps and evaluations, one each epoch."""
    speed = measured(result).get(OURS)
    if speed is None:
        return None
    side = result[OURS]
    evaluation = statistics.median(turn["evaluation_seconds"] for turn in side["turns"])
    step = statistics.median(turn["seconds"] / turn["steps"] for turn in side["turns"])
    return EPOCHS * (STEPS_AN_EPOCH * step + evaluation)


def make_record(
    results: Mapping[str, Any], parts: Mapping[str, Part], args: argparse.Namespace
) -> record.Record:
    beside = {name: part for name, part in parts.items() if OURS in part.sides and name in results}
    made = record.Record(
        name="throughput_gpu",
        question="How fast does training run on one GPU, beside PyTorch and beside the chip's "
        "peak?",
        tables=[
            speed_table(results, beside, args),
            *([seeds_table(results["bf16_128"])] if "bf16_128" in results else []),
        ],
        goals=goals(results),
        details={
            **results,
            "peak_tflops": args.peak_tflops,
            "left_out": {
                name: result["skipped"]
                for name, result in results.items()
                if isinstance(result, Mapping) and "skipped" in result
            },
        },
    )
    reached = [f"{goal.what}: {goal.measured}" for goal in made.goals if goal.measured]
    made.answer = "; ".join(reached) + "."
    return made


def speed_table(
    results: Mapping[str, Any], beside: Mapping[str, Part], args: argparse.Namespace
) -> record.Table:
    rows = []
    for name, part in beside.items():
        task, result = part.sides[OURS], results[name]
        speeds = measured(result)
        peer, ratio = fastest_torch(speeds), ratio_to_torch(result)
        row: list[Any] = [f"{task.network}, batch {task.batch}, {task.dtype}"]
        row += [rounded(speeds.get(OURS)), rounded(speeds.get(peer or "")), peer, rounded(ratio, 2)]
        tflops = None
        if OURS in speeds:
            flops = result[OURS]["facts"]["flops_per_step"] / task.batch
            tflops = flops * speeds[OURS] / 1e12
        row.append(rounded(tflops, 1))
        for peak in (args.peak_tflops, results["matmul_tflops"]):
            row.append(None if tflops is None else f"{tflops / peak:.1%}")
        rows.append(row)
    return record.Table(
        "Throughput of training",
        [
            "network",
            "ours, images/s",
            "PyTorch, images/s",
            "its mode",
            "ratio",
            "ours, TFLOP/s",
            "of the chip's peak",
            f"of a matrix product ({results['matmul_tflops']:.0f} TFLOP/s)",
        ],
        rows,
        f"Medians of turns that alternated; FLOPs as XLA counts them in the step; the peak is "
        f"{args.peak_tflops:g} TFLOP/s, dense bfloat16, also for float32.",
    )


def seeds_table(result: Mapping[str, Any]) -> record.Table:
    speeds = measured(result)
    names = {OURS: "1"}
    names |= {
        name: name.replace(OURS, "1").replace(" seeds", "")
        for name in speeds
        if not name.startswith("torch")
    }
    rows = [
        [shown, rounded(speeds.get(name)), rounded(quotient(speeds.get(name), speeds.get(OURS)), 2)]
        for name, shown in names.items()
    ]
    return record.Table(
        "Several seeds at once: ResNet-20, batch 128 each, bfloat16",
        ["seeds", "images/s of all", "to one seed"],
        rows,
        "One compiled call trains all of a process, each with its own weights, order and "
        "augmentation. "
        + " ".join(f'{words.capitalize()}: `XLA_FLAGS="{of}"`.' for words, of in GRAPHS.items()),
    )


def quotient(of: float | None, to: float | None) -> float | None:
    return of / to if of and to else None


def rounded(value: float | None, digits: int | None = None) -> float | None:
    return None if value is None else round(value, digits)


def goals(results: Mapping[str, Any]) -> list[record.Goal]:
    made = []
    limits = {"bf16_128": 2.0, "f32_128": 2.0, "resnet18": 1.0}
    words = {
        "bf16_128": "ResNet-20, batch 128, bfloat16",
        "f32_128": "ResNet-20, batch 128, float32",
        "resnet18": "ResNet-18, 224 pixels, batch 256, bfloat16",
    }
    for name, limit in limits.items():
        ratio = ratio_to_torch(results.get(name, {}))
        made.append(
            record.Goal(
                f"{words[name]}: at least {limit:g} times PyTorch's images a second",
                None if ratio is None else f"{ratio:.2f} times",
                None if ratio is None else ratio >= limit,
            )
        )
    seconds = run_seconds(results.get("bf16_128", {}))
    made.append(
        record.Goal(
            f"{EPOCHS} epochs of ResNet-20 at batch 128 with an evaluation each, from measured "
            "steps, in under 7 minutes",
            None if seconds is None else f"{seconds / 60:.1f} min",
            None if seconds is None else seconds < 7 * 60,
        )
    )
    speeds = measured(results.get("bf16_128", {}))
    several = {name: speed for name, speed in speeds.items() if " seeds" in name}
    best = max(several, key=several.__getitem__, default="")
    # The fastest form of each: one seed may gain by another one than several do.
    gain = quotient(
        several.get(best),
        max((speed for name, speed in speeds.items() if name.startswith(OURS)), default=None),
    )
    made.append(
        record.Goal(
            "several seeds at once: at least 3 times the images a second of one",
            f"{gain:.2f} times with {best}" if gain else None,
            gain >= 3 if gain else None,
        )
    )
    for network, limit in CHECK_LIMITS.items():
        differences = check_differences(results, network)
        made.append(
            record.Goal(
                f"both sides compute the same: first losses of {network} within {limit:.0%}",
                f"largest difference {max(differences):.2%}" if differences else None,
                max(differences) < limit if differences else None,
            )
        )
    return made


def check_differences(results: Mapping[str, Any], network: str) -> Sequence[float]:
    """Relative differences of a network's first losses, which start from the same weights."""
    found = []
    for name, result in results.items():
        if not isinstance(result, Mapping) or not measured(result).get(OURS):
            continue
        if (name == "resnet18") != (network == "resnet18"):
            continue
        ours = result[OURS]["facts"]["check_loss"]
        found += [
            abs(side["facts"]["check_loss"] / ours - 1)
            for key, side in result.items()
            if key.startswith("torch") and isinstance(side, Mapping) and "facts" in side
        ]
    return found


if __name__ == "__main__":
    main()

"""Where does the time of a training step go on a GPU?

ResNet-20 with FDA, at batch 128 of one seed and of several, at batch 1024, and in float32: what the
card does in a step, by kind of kernel, and how much of the step it waits. First a call is timed as
it is, then one is recorded by JAX's profiler, which slows the host down; so the share of waiting
is of the first, and the kernels are of the second. Start it on a free card: XLA chooses kernels by
timing them.

    python benchmarks/gpu_profile.py --out=runs/gpu_profile
"""

import collections
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "workers"))

import jax
import record
from jax_call import Runner, Task

BASE = Task(
    "resnet20",
    batch=128,
    dtype="bfloat16",
    side_px=32,
    examples=50_000,
    steps_per_call=50,
    turn_seconds=0.0,
)
TASKS = {
    "batch 128": BASE,
    "3 seeds of batch 128": dataclasses.replace(BASE, seeds=3),
    "batch 1024": dataclasses.replace(BASE, batch=1024, steps_per_call=20),
    "batch 128, float32": dataclasses.replace(BASE, dtype="float32"),
}
# Parts of a kernel's name, the most telling first: convolutions are cuDNN's or CUTLASS's.
KINDS = {
    "convolutions": ("conv", "cudnn", "xmma", "fprop", "dgrad", "wgrad", "cutlass"),
    "matrix products": ("gemm", "dot", "cublas", "nvjet"),
    "reductions": ("reduce",),
    "transposes and copies": ("transpose", "copy", "memcpy", "memset"),
    "other loops": ("",),
}
TURNS, LONGEST = 5, 12


def main() -> None:
    parser = record.parser(__doc__)
    parser.add_argument("--rows", nargs="+", choices=list(TASKS), default=list(TASKS))
    args = parser.parse_args()
    if jax.default_backend() != "gpu" and not args.tiny:
        parser.error(
            f"this needs a GPU, and jax sees only {jax.devices()[0].device_kind}: try the script "
            "with --tiny"
        )
    found: dict[str, dict[str, Any]] = {}
    for name in args.rows[:1] if args.tiny else args.rows:
        found[name] = profile(shrunk(TASKS[name]) if args.tiny else TASKS[name])
        print(name, {key: found[name][key] for key in ("step_ms", "busy_ms")}, flush=True)
        made = record.Record("gpu_profile", __doc__.splitlines()[0])
        made.tables = [times_table(found), *(longest_table(name, found[name]) for name in found)]
        made.details = dict(found)
        made.answer = "; ".join(map(answer, found, found.values())) + "."
        path = made.write(args)
    print(path)


def shrunk(task: Task) -> Task:
    sizes = {"batch": 4, "side_px": 8, "examples": 16, "steps_per_call": 2, "blocks": 1}
    return dataclasses.replace(task, method="ste", **sizes)


def profile(task: Task) -> dict[str, Any]:
    """Milliseconds of a step, as it is and of its kernels in a call that is recorded."""
    runner = Runner(task)
    runner.call()
    seconds = []
    for _ in range(TURNS):
        begin = time.perf_counter()
        runner.call()
        seconds.append(time.perf_counter() - begin)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            runner.call()
        (path,) = Path(folder).rglob("*.xplane.pb")
        spans = list(kernels(jax.profiler.ProfileData.from_file(str(path))))
    totals: collections.Counter[str] = collections.Counter()
    counts: collections.Counter[str] = collections.Counter()
    for name, start, end in spans:
        totals[name] += end - start
        counts[name] += 1
    steps = task.steps_per_call
    return {
        "step_ms": statistics.median(seconds) / steps * 1e3,
        "busy_ms": busy([(start, end) for _, start, end in spans]) / steps / 1e6,
        "kernels": sum(counts.values()) / steps,
        "names": {
            name: {"ms": total / steps / 1e6, "count": counts[name] / steps}
            for name, total in totals.most_common()
        },
    }


def kernels(data: Any) -> Iterable[tuple[str, float, float]]:
    """Name, start and end (ns) of what ran on the device, from what the profiler wrote."""
    for plane in data.planes:
        if "/device:GPU" not in plane.name:
            continue
        for line in plane.lines:
            if line.name.startswith("Stream"):
                for event in line.events:
                    yield event.name, event.start_ns, event.start_ns + event.duration_ns


def busy(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of some spans."""
    total, last = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, last))
        last = max(last, end)
    return total


def kind_of(name: str) -> str:
    """Of a kernel, one of `KINDS`."""
    lowered = name.lower()
    return next(kind for kind, parts in KINDS.items() if any(part in lowered for part in parts))


def by_kind(result: Mapping[str, Any]) -> collections.Counter[str]:
    """Milliseconds of a step by kind."""
    sums: collections.Counter[str] = collections.Counter()
    for name, each in result["names"].items():
        sums[kind_of(name)] += each["ms"]
    return sums


def times_table(found: Mapping[str, Mapping[str, Any]]) -> record.Table:
    rows = []
    for name, result in found.items():
        sums = by_kind(result)
        known = bool(result["names"])
        rows.append(
            [name, round(result["step_ms"], 3)]
            + [round(result["busy_ms"], 3) if known else None]
            + [round(result["kernels"]) if known else None]
            + [round(sums[kind], 3) if known else None for kind in KINDS]
        )
    return record.Table(
        "Time of a step, ms",
        ["ResNet-20, FDA", "a step", "the card at work", "kernels", *KINDS],
        rows,
        "A step as it is, the median of several calls; the rest is of one call in the profiler. "
        "Times by kind add up to more than the card's where kernels run side by side.",
    )


def longest_table(name: str, result: Mapping[str, Any]) -> record.Table:
    longest = list(result["names"].items())[:LONGEST] or [("none was recorded", None)]
    rows = [
        [f"`{kernel}`", round(each["ms"], 3), round(each["count"], 1)]
        if each
        else [kernel, None, None]
        for kernel, each in longest
    ]
    return record.Table(
        f"What takes longest: {name}", ["kernel", "ms of a step", "times a step"], rows
    )


def answer(name: str, result: Mapping[str, Any]) -> str:
    if not result["names"]:
        return f"{name}: the profiler recorded no kernel"
    sums = by_kind(result)
    kind, most = max(sums.items(), key=lambda item: item[1])
    return (
        f"{name}: the card is at work for {result['busy_ms'] / result['step_ms']:.0%} of a step of "
        f"{result['step_ms']:.2f} ms, longest with {kind} ({most:.2f} ms)"
    )


if __name__ == "__main__":
    main()

"""Seconds from the command to the first step of train.py, with and without kept programs.

Each start is a process of its own that runs train.py, cold (an empty cache folder) and warm (one
that an earlier start has filled) in turns. The phases come from JAX's own events and from hooks
round the functions of the library; the rest is what no hook covers: flags, building the experiment,
the run's folder, checkpoints. One run goes on to its end, to count what a whole run compiles.

    python benchmarks/startup.py --out=results/startup --cifar=data
"""

import collections
import functools
import json
import os
import runpy
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import record
import sides

PREFIX = "/jax/core/compile/"
EVENTS = {
    PREFIX + "jaxpr_trace_duration": "trace",
    PREFIX + "jaxpr_to_mlir_module_duration": "lower",
    PREFIX + "backend_compile_duration": "compile",  # or read: what JAX calls compiling
}
HIT = "/jax/compilation_cache/cache_hits"
PHASES = ("imports", "data", "init", "trace", "lower", "compile", "first step", "rest")
LIMIT_RATIO = 0.5
# The same of every run, for the number of steps is part of the step's program.
EPOCHS = "--config.train.epochs=2"


def main() -> None:
    parser = record.parser(__doc__)
    parser.add_argument("--cifar", help="folder of CIFAR-10's files; without it digits alone")
    parser.add_argument("--rounds", type=int, default=3, help="starts of each kind")
    args = parser.parse_args()
    report = record.Record(
        "startup", "How long does train.py take to its first step, the first time and later?"
    )
    runs = {"digits": ["--config=configs/digits_resnet.py"]}
    if args.cifar:
        runs["CIFAR-10, ResNet-20"] = [
            "--config=configs/cifar10_resnet20.py",
            f"--config.data.dir={Path(args.cifar).resolve()}",
        ]
    if args.tiny:
        runs = {"digits, ste": ["--config=configs/digits_resnet.py:ste"]}
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # what is measured is what nobody has set
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, flags) in enumerate(runs.items()):
            measure(report, name, flags, Path(folder, str(number)), args.rounds, args.tiny)
    report.answer = " ".join(map(answer, report.details["starts"].items()))
    print(report.answer)
    report.write(args)


def measure(
    report: record.Record,
    name: str,
    flags: list[str],
    folder: Path,
    rounds: int,
    is_tiny: bool,
) -> None:
    """A run that fills the cache, then cold and warm starts in turns."""
    folder.mkdir()
    numbers = iter(range(1000))
    # A cold start builds them, which takes longer than all the rest of a tiny run.
    without_kernels = {"FDA_JAX_NATIVE": "0"} if is_tiny else {}

    def start(cache: str | None, *more: str) -> dict[str, Any]:
        number = next(numbers)
        home = folder / (cache or f"cold{number}")
        side = sides.Side(
            [__file__, "--worker", f"--workdir={folder}/run{number}", *flags, EPOCHS, *more],
            {"XDG_CACHE_HOME": str(home), "STARTED": repr(time.time()), **without_kernels},
        )
        side.close()
        kept = [path.stat().st_size for path in home.rglob("*") if path.is_file()]
        return {**side.facts, "files": len(kept), "mib": sum(kept) / 2**20}

    # Only digits end soon enough to be run to the end, and every run compiles the same functions.
    is_short = "digits" in name
    whole = start("warm", *(["--whole"] if is_short else []))
    starts = {"cold": [whole], "warm": [start("warm")]}
    if not is_tiny:
        turns = {"cold": lambda: start(None), "warm": lambda: start("warm")}
        starts = sides.alternate(turns, rounds)
    report.details.setdefault("starts", {})[name] = starts
    report.tables.append(phases(name, starts))
    print_table(report.tables[-1])
    if is_short:
        report.details["whole run"] = whole
        report.tables.append(programs(name, whole))
        print_table(report.tables[-1])
        twice = whole["hits"]
        report.goals.append(
            record.Goal(
                f"{name}: no program is compiled twice in a run (two epochs, cold)",
                f"{len(whole['programs'])} programs, {twice} of them asked for again",
                twice == 0,
            )
        )
    compiled = sum(len(one["programs"]) - one["hits"] for one in starts["warm"])
    report.goals.append(
        record.Goal(
            f"{name}: a warm start compiles nothing",
            f"{compiled} programs compiled in {len(starts['warm'])} starts",
            compiled == 0,
        )
    )
    ratio = sides.ratio(starts["warm"], starts["cold"])
    report.goals.append(
        record.Goal(
            f"{name}: a warm start takes at most {LIMIT_RATIO:g} of a cold one",
            f"{ratio:.2f}",
            ratio <= LIMIT_RATIO,
        )
    )


def phases(name: str, starts: dict[str, list[dict[str, Any]]]) -> record.Table:
    rows: list[list[Any]] = []
    for phase in PHASES:
        cells = [sides.median([one["phases"] for one in side], phase) for side in starts.values()]
        rows.append([phase, *(round(cell, 2) for cell in cells)])
    for what, key, digits in (
        ("all, to the end of the first step", "seconds", 2),
        ("programs asked for", "asked", 0),
        ("of them found on disk", "hits", 0),
        ("files in the cache", "files", 0),
        ("MiB in the cache", "mib", 1),
        ("peak memory, MiB", "peak_mib", 0),
    ):
        rows.append([what, *(round(sides.median(side, key), digits) for side in starts.values())])
    return record.Table(
        f"Start of train.py: {name}",
        ["phase, seconds", *starts],
        rows,
        "Medians. init: the first state, its compilation included. trace, lower, compile: of the "
        "training step; where a program is found on disk, compile is the reading of it.",
    )


def programs(name: str, whole: dict[str, Any]) -> record.Table:
    by_place = collections.defaultdict(list)
    for program in whole["programs"]:
        by_place[program["name"], program["place"]].append(program["seconds"])
    rows = [
        [function, place, len(seconds), round(sum(seconds), 2)]
        for (function, place), seconds in by_place.items()
    ]
    return record.Table(
        f"What a whole run compiles: {name}",
        ["program", "asked for by", "shapes", "seconds"],
        sorted(rows, key=lambda row: -row[-1]),
        "A cold run of two epochs with evaluation and checkpoints. Each shape is a program.",
    )


def answer(item: tuple[str, dict[str, list[dict[str, Any]]]]) -> str:
    name, starts = item
    cold, warm = (sides.median(starts[side]) for side in ("cold", "warm"))
    return (
        f"{name}: {cold:.1f} s from the command to the end of the first step the first time, "
        f"{warm:.1f} s ({warm / cold:.2f} of it) from the second time on."
    )


def print_table(table: record.Table) -> None:
    print(table.title)
    for row in [table.columns, *table.rows]:
        print("  ", *(f"{cell!s:>22}" for cell in row))


class Watch:
    """What happens in this process from its start on.

    Args:
      started: time.time() at which the command was given.
    """

    def __init__(self, started: float) -> None:
        self.started = started
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.programs: list[dict[str, Any]] = []
        self.hits = 0
        self.end = 0.0
        self._in_step = False

    def listen(self, event: str, seconds: float, **what: Any) -> None:
        """A listener of jax.monitoring."""
        phase = EVENTS.get(event)
        if phase == "trace" and self._in_step:  # of functions inside one another, the last is all
            self.seconds[phase] = max(seconds, self.seconds[phase])
        elif phase and self._in_step:
            self.seconds[phase] += seconds
        if phase == "compile":
            self.programs.append(
                {"name": what.get("fun_name", "?"), "place": place(), "seconds": seconds}
            )

    def count(self, event: str, **_: Any) -> None:
        """A listener of jax.monitoring."""
        self.hits += event == HIT

    def timed(self, phase: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose seconds are added to a phase."""

        @functools.wraps(fn)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            import jax

            begin = time.perf_counter()
            result = jax.block_until_ready(fn(*args, **kwargs))
            self.seconds[phase] += time.perf_counter() - begin
            return result

        return wrapped

    def first(self, step: Callable[..., Any], *, then_stop: bool) -> Callable[..., Any]:
        """The function that runs a compiled call, whose first time is a phase."""

        @functools.wraps(step)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self.end:
                return step(*args, **kwargs)
            self._in_step = True
            begin = time.perf_counter()
            result = step(*args, **kwargs)
            self._in_step = False
            inside = sum(self.seconds[phase] for phase in EVENTS.values())
            self.seconds["first step"] = time.perf_counter() - begin - inside
            self.end = time.time()
            if then_stop:
                raise SystemExit
            return result

        return wrapped

    def facts(self) -> dict[str, Any]:
        """All that was seen."""
        total = self.end - self.started
        self.seconds["rest"] = total - sum(self.seconds.values())
        return {
            "seconds": total,
            "phases": {phase: self.seconds[phase] for phase in PHASES},
            "programs": self.programs,
            "asked": len(self.programs),
            "hits": self.hits,
            "peak_mib": peak_mib(),
        }


def place() -> str:
    """The function of the library that is being run, the wrapper of pmap left out."""
    frames = [
        frame
        for frame in traceback.extract_stack()
        if "fda_jax" in Path(frame.filename).parts and not frame.filename.endswith("devices.py")
    ]
    return f"{Path(frames[-1].filename).stem}.{frames[-1].name}" if frames else "-"


def peak_mib() -> float:
    """Largest resident memory of this process so far."""
    # Not ru_maxrss, which starts at the size of the process that started this one.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return float("nan")


def work(words: list[str]) -> None:
    """Run train.py with hooks in it; print the facts."""
    watch = Watch(float(os.environ["STARTED"]))
    is_whole = "--whole" in words
    sys.argv = ["train.py", *(word for word in words if word != "--whole")]
    import jax.monitoring

    from fda_jax.experiment import loop, setup, sweep  # noqa: F401  # as train.py does

    watch.seconds["imports"] = time.time() - watch.started
    jax.monitoring.register_event_duration_secs_listener(watch.listen)
    jax.monitoring.register_event_listener(watch.count)
    setup.load_data = watch.timed("data", setup.load_data)
    loop.init_state = watch.timed("init", loop.init_state)
    trainer: Any = loop.Trainer
    trainer._advance = watch.first(trainer._advance, then_stop=not is_whole)
    code: Any = 0
    try:
        runpy.run_path("train.py", run_name="__main__")
    except SystemExit as end:
        code = end.code
    if code:
        raise SystemExit(code)
    print(json.dumps(watch.facts()), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2:])
    else:
        main()

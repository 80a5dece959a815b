"""Sweeps: many runs that answer one question, one after another or side by side."""

import dataclasses
import difflib
import functools
import importlib
import importlib.util
import json
import operator
import re
import traceback
from ast import literal_eval
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, get_origin

import jax
import numpy as np

from fda_jax import data
from fda_jax.experiment import USER_ERRORS, run, side_by_side, stages
from fda_jax.experiment.folder import FREE_KEYS, RunFolder, WorkdirError, differences, leaves
from fda_jax.experiment.logs import Terminal
from fda_jax.experiment.loop import Stop
from fda_jax.experiment.setup import TYPES, ConfigError, as_type
from fda_jax.experiment.side_by_side import Job
from fda_jax.experiment.together import CHOICES, obstacle, pays
from fda_jax.experiment.together import train as train_together
from fda_jax.layers import lookup
from fda_jax.training import devices


def _tuple(text: str) -> Any:
    """(4, 8), 4, or words with commas between them, as on the command line of a run."""
    try:
        value = literal_eval(text)
    except (ValueError, SyntaxError):
        return tuple(text.split(","))
    return value if isinstance(value, tuple | list) else (value,)


# How the text of an override becomes a value of the type that its key has.
_PARSERS: Mapping[type, Callable[[str], Any]] = {
    bool: lambda text: {"true": True, "1": True, "false": False, "0": False}[text.lower()],
    int: int,
    float: float,
    tuple: _tuple,
}
_UNSAFE = re.compile(r"[^\w.=+-]")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep file asks for.

    Attributes:
      name: of the file, without its ending.
      question: that the runs answer: the first paragraph of the file's docstring.
      overrides: values by dotted key, of every run.
      runs: values by dotted key of each run, by its name.
      configs: the whole configuration of each run, by its name; its seed is set when it starts.
      baselines: the run that a run is compared with, by its name.
      source: of the published values, e.g. "FDA-BNN, Table 2"; "" where there are none.
      paper: published test accuracy of a run in %, by its name.
      axis: what a figure has on its horizontal axis; "" for no such figure.
      points: (line, place on the axis, name of a run) of that figure.
    """

    name: str
    question: str
    overrides: Mapping[str, Any]
    runs: Mapping[str, Mapping[str, Any]]
    configs: Mapping[str, Mapping[str, Any]]
    baselines: Mapping[str, str] = dataclasses.field(default_factory=dict)
    source: str = ""
    paper: Mapping[str, float] = dataclasses.field(default_factory=dict)
    axis: str = ""
    points: Sequence[tuple[str, float, str]] = ()


def read(path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep file and make the configuration of each of its runs.

    The file is Python with a docstring, whose first paragraph is the question, and a function
    `get_sweep()` that returns (base, runs). base is a function from a method's name to a
    ConfigDict, as `get_config` of every configuration, or FILE[:METHOD], where FILE is the name of
    one of configs/, or the path of another with its .py, from the folder of the sweep file or the
    current one. runs is a list of overrides, {dotted key: value}, or a mapping from names to
    them. The key "method" takes another row with its knobs and stages. A list's runs are named
    by their overrides. What the report shows beside the results are constants of the file, all
    optional: BASELINE (the run that all others are compared with, or {run: its baseline}), PAPER
    ({run: published test accuracy in %}) with SOURCE (where they stand), and POINTS (a list of
    (line, number, run)) with AXIS (what the numbers are) for a figure.

    Args:
      path: of the file.
      overrides: KEY=VALUE of every run, as on the command line.

    Returns:
      A `Sweep`.

    Raises:
      ConfigError: the file is none, a run's name, key or value cannot be (the message names the
        run), or a constant names no run.
    """
    path = Path(path)
    module = _import(path)
    base, runs = _asked(module)
    shared = dict(_split(word) for word in overrides)
    named = runs if isinstance(runs, dict) else _named(runs)
    for name in named:
        if _UNSAFE.search(name) or not name.strip("."):
            raise ConfigError(f"{name!r} cannot be a run's name: use letters, digits and _.=+-")
    configs = {}
    for name, own in named.items():
        with _naming(name):
            configs[name] = _configure(base, shared, own, path.parent)
    question = " ".join((module.__doc__ or "").strip().split("\n\n")[0].split())
    constants = _constants(module, named)
    if {"model.name", "data.name"} & shared.keys():
        # What was published is of the file's own network and data.
        constants |= {"paper": {}, "source": ""}
    return Sweep(path.stem, question, shared, named, configs, **constants)


def train(
    sweep: Sweep,
    workdir: str | Path,
    *,
    seeds: int = 1,
    shard: str = "0/1",
    only: Sequence[str] = (),
    environments: Sequence[Mapping[str, str]] = (),
    together: str = "auto",
) -> dict[str, str]:
    """Train every run of a sweep in its own folder WORKDIR/NAME/seedK, or go on with the rest.

    All configurations to train are built before the first run starts. A finished run is skipped,
    one that was stopped goes on, and one that fails does not keep the others from running.

    Args:
      sweep: of `read`.
      workdir: the sweep's folder; made if it is missing.
      seeds: each run is trained with the seeds 0, 1, ..., seeds - 1.
      shard: "I/N" takes every N-th run from the I-th on, I counting from 0, so that N processes
        share a sweep.
      only: names of runs; empty for all.
      environments: of processes that train runs side by side, see `side_by_side.pins`; empty to
        train one after another in this process, each run on all devices.
      together: whether the seeds of a run are trained as one program, see `together.train`: "auto"
        for where that is possible and pays, "always", or "never".

    Returns:
      Why each failed run failed, by name; empty also where SIGTERM stopped the sweep.

    Raises:
      ValueError: a configuration or an argument cannot be; the message names the run.
      WorkdirError: the folder cannot be used, or holds another sweep.
    """
    jobs = _jobs(sweep, seeds, shard, only)
    if together not in CHOICES:
        raise ConfigError(
            f"together is {together!r}, but must be one of {', '.join(CHOICES)}: set --together"
        )
    if environments and together == "always":
        raise ConfigError(
            f"together is 'always', but {len(environments)} devices train a run each, in processes "
            "of their own: set --together=auto, or --noside_by_side to train on all of them"
        )
    folders: dict[str, list[Path]] = {}
    for name, seed in jobs:
        folders.setdefault(name, []).append(Path(workdir, name, f"seed{seed}"))
    companies = _check(
        sweep,
        folders,
        "never" if environments else together,
        to_come=[Path(workdir, name, f"seed{k}") for name in sweep.runs for k in range(seeds)],
    )
    _claim(sweep, Path(workdir), seeds)
    runs: dict[str, list[Job]] = {}
    for name, seed in jobs:
        folder = f"{name}/seed{seed}"
        group = name if name in companies else folder
        job = Job(folder, {**sweep.configs[name], "seed": seed}, Path(workdir, folder))
        runs.setdefault(group, []).append(job)
    terminal = Terminal(0, is_writer=jax.process_index() == 0)
    with Stop() as stop:
        if environments:
            alone = [job for group in runs.values() for job in group]
            return side_by_side.train(alone, environments, stop=stop, say=terminal.line)
        return _one_after_another(list(runs.values()), stop, terminal)


def _one_after_another(
    groups: Sequence[Sequence[Job]], stop: Stop, terminal: Terminal
) -> dict[str, str]:
    failures: dict[str, str] = {}
    total, before = sum(map(len, groups)), 0
    for group in groups:
        if devices.any_process(stop.asked):
            break
        names = ", ".join(job.name for job in group)
        first, last = before + 1, before + len(group)
        numbers = f"run {last}" if first == last else f"runs {first} to {last}"
        terminal.line(f"{numbers}/{total}: {names}")
        errors = train_together(group, stop=stop, say=terminal.line)
        before = last
        for name, error in errors.items():
            if not isinstance(error, USER_ERRORS):
                with suppress(OSError):  # nobody may read on
                    traceback.print_exception(error)
            words = side_by_side.as_override(str(error))
            failures[name] = f"{type(error).__name__}: {words}"
            terminal.line(f"run {name} failed: {failures[name]}")
    return failures


def _import(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"there is no sweep file {path}: see configs/sweeps")
    # Under a name of its own, for a sweep may be called as one of the configurations.
    module = _run_file(path, f"sweep_{path.stem}")
    if not module.__doc__ or not hasattr(module, "get_sweep"):
        raise ConfigError(
            f"the sweep file {path} needs a docstring whose first paragraph is its question, and "
            "a function get_sweep()"
        )
    return module


def _run_file(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"the sweep file {path} is not Python: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ConfigError(
            f"{path} is not Python ({error.msg} in {error.filename}, line {error.lineno})"
        ) from error
    return module


def _asked(module: ModuleType) -> tuple[str | Callable[[str], Any], Any]:
    """What get_sweep() returns, its runs as a dictionary or a list of overrides."""
    asked = module.get_sweep()
    wanted = "get_sweep() of the sweep file must return (configuration, runs)"
    if not isinstance(asked, tuple) or len(asked) != 2:
        raise ConfigError(f"{wanted}, e.g. ('cifar10_resnet20', [{{'method': 'ste'}}]): {asked!r}")
    base, runs = asked
    if not runs or not isinstance(runs, Mapping | Sequence):
        raise ConfigError(f"{wanted}, at least one run: {runs!r}")
    named = isinstance(runs, Mapping)
    for name, own in runs.items() if named else enumerate(runs):
        if not isinstance(own, Mapping) or (named and not isinstance(name, str)):
            raise ConfigError(
                f"{wanted}, each run {{dotted key: value}}, by a name or in a list; of {name!r} it "
                f"is {own!r}"
            )
    if named:
        return base, {name: _plain(own) for name, own in runs.items()}
    return base, [_plain(own) for own in runs]


def _plain(own: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides with NumPy's numbers, of a linspace say, as Python's."""
    return {
        key: value.item() if isinstance(value, np.generic) else value for key, value in own.items()
    }


def _constants(module: ModuleType, runs: Mapping[str, Any]) -> dict[str, Any]:
    """The optional constants of a sweep file as fields of a `Sweep`."""
    found = vars(module)
    baseline = found.get("BASELINE", {})
    paper, points = found.get("PAPER", {}), found.get("POINTS", ())
    if isinstance(baseline, str):
        _check_names("BASELINE", [baseline], runs)
        baseline = {name: baseline for name in runs if name != baseline}
    _check_names("BASELINE", [*baseline, *baseline.values()], runs)
    _check_names("PAPER", paper, runs)
    for name, value in paper.items():
        if not isinstance(value, int | float):
            raise ConfigError(f"in PAPER of the sweep file {name!r} is {value!r}: use a number")
    _check_names("POINTS", [name for _, _, name in points], runs)
    for values, words in (("PAPER", "SOURCE"), ("POINTS", "AXIS")):
        if bool(found.get(values)) != bool(found.get(words)):
            raise ConfigError(f"the sweep file has {values} or {words}, but needs both or neither")
    return {
        "baselines": baseline,
        "source": found.get("SOURCE", ""),
        "paper": paper,
        "axis": found.get("AXIS", ""),
        "points": points,
    }


def _check_names(constant: str, names: Iterable[str], runs: Mapping[str, Any]) -> None:
    try:
        for name in names:
            lookup(runs, name, "run")
    except ValueError as error:
        raise ConfigError(f"in {constant} of the sweep file: {error}") from error


def _named(runs: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    named: dict[str, Mapping[str, Any]] = {}
    for own in runs:
        name = _name(own)
        if name in named:
            raise ConfigError(
                f"two runs of the sweep are called {name!r}, {dict(named[name])} and {dict(own)}: "
                "leave one out, or give names, {NAME: overrides}"
            )
        named[name] = own
    return named


def _name(own: Mapping[str, Any]) -> str:
    words = [
        str(value) if key == "method" else f"{key.removeprefix('method.')}={value}"
        for key, value in sorted(own.items(), key=lambda item: item[0] != "method")
    ]
    return _UNSAFE.sub("-", "_".join(words)) or "base"


def _split(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals:
        raise ConfigError(f"the override {word!r} has no value: write KEY=VALUE")
    return key, value


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Let an error say which run it is of, and how a sweep sets a key."""
    try:
        yield
    except ValueError as error:
        words = side_by_side.as_override(str(error))
        raise ConfigError(f"run {name!r}: {words}") from error


def _configure(
    base: str | Callable[[str], Any],
    shared: Mapping[str, str],
    own: Mapping[str, Any],
    beside: Path,
) -> dict[str, Any]:
    twice = sorted(shared.keys() & own.keys())
    if twice:
        raise ConfigError(
            f"{', '.join(twice)} is this run's own override: an override of all runs would undo "
            "what it is there for"
        )
    get_config, method = _base(base, beside) if isinstance(base, str) else (base, "")
    values = {**shared, **own}
    config = get_config(values.pop("method", method))
    defaults = leaves(config.to_dict())
    for key, value in values.items():
        new = _typed(key, value, defaults)
        *groups, leaf = key.split(".")
        functools.reduce(operator.getitem, groups, config)[leaf] = new
    return config.to_dict()


def _base(name: str, beside: Path) -> tuple[Callable[[str], Any], str]:
    """The function and the method that FILE[:METHOD] names."""
    file, _, method = name.partition(":")
    module = _configuration(file, beside)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"the configuration {file!r} has no get_config(): see configs/base.py")
    return module.get_config, method


def _configuration(file: str, beside: Path) -> ModuleType:
    if file.endswith(".py"):
        path = Path(file).expanduser()
        places = (beside / path, path)
        for place in places:
            if place.is_file():
                return _run_file(place, f"configuration_{place.stem}")
        raise ConfigError(f"there is no configuration {places[0]}, nor {places[1].absolute()}")
    try:
        return importlib.import_module(file)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"there is no configuration {file!r}: use one of configs/, or the path of another, "
            f"{file + '.py'!r}"
        ) from error


def _typed(key: str, value: Any, defaults: Mapping[str, Any]) -> Any:
    """An override's value in the type of the default that it replaces."""
    if key == "seed":
        raise ConfigError("seed is no override: --seeds=N trains every run with the seeds below N")
    if key not in defaults:
        nearest = difflib.get_close_matches(key, defaults, n=1)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        raise ConfigError(f"there is no key {key!r}{hint}: see configs/base.py")
    kind = TYPES.get(key, type(defaults[key]))
    parse = _PARSERS.get(get_origin(kind) or kind)
    try:
        if isinstance(value, str) and parse is not None:
            value = parse(value)
    except (KeyError, ValueError, SyntaxError):
        pass  # said below
    return as_type(key, value, kind)


def _jobs(sweep: Sweep, seeds: int, shard: str, only: Sequence[str]) -> list[tuple[str, int]]:
    """Names and seeds of the runs to do: all runs of a seed before the next seed."""
    if seeds < 1:
        raise ConfigError(f"seeds is {seeds}, but must be at least 1: set --seeds")
    chosen = [name for name in sweep.runs if not only or name in only]
    for name in only:
        lookup(sweep.runs, name, "run")
    part, slash, parts = shard.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise ConfigError(f"shard is {shard!r}, but must be I/N with I in 0, ..., N - 1, e.g. 0/2")
    return [(name, seed) for seed in range(seeds) for name in chosen][int(part) :: int(parts)]


def _check(
    sweep: Sweep,
    wanted: Mapping[str, Sequence[Path]],
    together: str = "never",
    to_come: Sequence[Path] = (),
) -> set[str]:
    """Build every run to do, so that none is refused hours after the first one started.

    Args:
      sweep: of `read`.
      wanted: the runs to do: the folders of their seeds, by name.
      together: see `train`.
      to_come: the folders of all the sweep's runs, from which others may start.

    Returns:
      The names of those whose seeds are trained together.
    """
    loaded: dict[str, data.Dataset] = {}
    companies = set()
    for name, folders in wanted.items():
        config = sweep.configs[name]
        with _naming(name):
            experiments = run.build_stages(stages.split(config) or [config], loaded)
            for folder in folders:
                run.check_sources(config, experiments[0], folder, to_come)
            why = obstacle(experiments)
            if together == "always" and why:
                raise ConfigError(
                    f"together is 'always', but {why}: set --together=auto, which trains the seeds "
                    "of such runs one after another"
                )
            if not why and (together == "always" or (together == "auto" and pays())):
                companies.add(name)
    return companies


def _claim(sweep: Sweep, workdir: Path, seeds: int) -> None:
    """Make the folder this sweep's, or refuse it."""
    folder = RunFolder(workdir, is_writer=jax.process_index() == 0)
    folder.make()
    if folder.read("config.json") is not None:
        raise WorkdirError(
            f"the folder {workdir} holds a single run, not a sweep: choose another --workdir"
        )
    overrides = {key: text for key, text in sweep.overrides.items() if key not in FREE_KEYS}
    runs = json.loads(json.dumps({name: dict(own) for name, own in sweep.runs.items()}))
    recorded = folder.read("sweep.json")
    if recorded is not None:
        _compare(workdir, recorded, {"sweep": sweep.name, "overrides": overrides, "runs": runs})
        runs = recorded["runs"] | runs
        seeds = max(seeds, recorded.get("seeds", 1))
    wanted = {
        "sweep": sweep.name,
        "question": sweep.question,
        "overrides": overrides,
        "runs": runs,
        "seeds": seeds,
        "baselines": dict(sweep.baselines),
        "source": sweep.source,
        "paper": dict(sweep.paper),
        "axis": sweep.axis,
        "points": [list(point) for point in sweep.points],
    }
    if wanted != recorded:
        folder.write("sweep.json", wanted)


def _compare(workdir: Path, recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    # A sweep may grow by runs, such as those of a new method, and by seeds; and what the report
    # says beside the results may be put in other words.
    both = recorded["runs"].keys() & wanted["runs"].keys()
    before, now = (
        {
            "sweep": record["sweep"],
            "overrides": record["overrides"],
            "runs": {name: record["runs"][name] for name in both},
        }
        for record in (recorded, wanted)
    )
    different = differences(before, now)
    if different:
        raise WorkdirError(
            f"the folder {workdir} holds another sweep: {'; '.join(different[:5])}. Choose "
            "another --workdir, or the old sweep to go on with it"
        )

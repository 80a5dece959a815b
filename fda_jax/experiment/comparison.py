"""A sweep's runs side by side: one row each, sorted by what came out."""

import dataclasses
import itertools
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fda_jax.data import SPECS
from fda_jax.experiment import tables
from fda_jax.experiment.budget import WHOLE
from fda_jax.experiment.folder import WorkdirError, differences
from fda_jax.experiment.pairs import Difference, paired_difference
from fda_jax.experiment.tables import Run, read_runs

# What the runs of a sweep that names no baseline are compared with, if there is one.
REFERENCE = "ste"
# What a sweep.json of an older version lacks.
_DEFAULTS = {"seeds": 1, "baselines": {}, "source": "", "paper": {}, "axis": "", "points": []}

# The longest of the seeds' times a step by the shortest, up to which their mean is a measurement.
STEADY = 1.1


@dataclasses.dataclass(frozen=True)
class Entry:
    """One run of a sweep, with all its seeds.

    Attributes:
      name: in the sweep.
      runs: by seed; the finished ones, if none is those that have not failed, else all.
      left_out: the other runs.
      baseline: name of the run that it is compared with; "" for none.
      difference: of the last accuracies to the baseline's, paired by seed; None where unknown.
      relative_seconds: time a step divided by the baseline's; None where one is not known or the
        seeds differ by more than `STEADY`.
      paper: published accuracy in %; None where there is none.
    """

    name: str
    runs: Sequence[Run]
    left_out: Sequence[Run] = ()
    baseline: str = ""
    difference: Difference | None = None
    relative_seconds: float | None = None
    paper: float | None = None

    @property
    def last_accuracy(self) -> float | None:
        """Mean over the seeds, in [0, 1]."""
        return mean(run.last_accuracy for run in self.runs)

    @property
    def seconds_per_step(self) -> float | None:
        """Mean over the seeds."""
        return mean(run.seconds_per_step for run in self.runs)


@dataclasses.dataclass(frozen=True)
class Field:
    """Entries of one network on one dataset: the only ones whose accuracies can be compared.

    Attributes:
      dataset: its name.
      network: its name.
      mark: see `tables.Run`; "" for whole runs that are judged by the test set.
      num_classes: of the dataset; None where its name does not tell.
      entries: the most accurate first.
    """

    dataset: str
    network: str
    mark: str
    num_classes: int | None
    entries: Sequence[Entry]

    @property
    def title(self) -> str:
        """What stands above its table and its picture."""
        return tables.title(self.network, self.dataset, self.mark)

    @property
    def is_part(self) -> bool:
        """Whether a budget leaves out a part of the recipe."""
        return any(run.budget < WHOLE for entry in self.entries for run in entry.runs)

    @property
    def eval_split(self) -> str:
        """What its accuracies are of, see `tables.Run`."""
        return self.entries[0].runs[0].eval_split


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a sweep's folder says.

    Attributes:
      name: of the sweep.
      question: that it answers.
      overrides: of all runs, as on the command line.
      fields: by name of dataset and network.
      asked: number of runs that the sweep consists of, seeds counted.
      missing: the runs that are not finished, how far they are, and why one failed.
      failed: number of runs that failed.
      source: of the published values.
      axis: of the figure that the sweep asks for; "" for none.
      points: (line, place on the axis, name of a run) of it.
    """

    name: str
    question: str
    overrides: Mapping[str, str]
    fields: Sequence[Field]
    asked: int
    missing: Sequence[str]
    failed: int = 0
    source: str = ""
    axis: str = ""
    points: Sequence[tuple[str, float, str]] = ()

    @property
    def eval_split(self) -> str:
        """What all accuracies are of, see `tables.Run`."""
        return self.fields[0].eval_split


def is_sweep(folder: Path) -> bool:
    """Whether a folder is the --workdir of a sweep."""
    return (folder / "sweep.json").is_file()


def read(folder: Path, *, mixed_revisions: bool = False) -> Comparison:
    """Read a sweep's folder.

    Args:
      folder: the sweep's --workdir.
      mixed_revisions: take runs of different code, too.

    Returns:
      A `Comparison`.

    Raises:
      WorkdirError: the folder is damaged, holds no run yet, or holds runs that do not belong into
        one table: of several budgets, holdouts or revisions, seeds of different configurations, or
        one seed twice.
    """
    record = _record(folder)
    found = {name: _runs(folder, name) for name in record["runs"]}
    runs = [run for members in found.values() for run in members]
    if not runs:
        raise WorkdirError(f"no run of the sweep in {folder} has started: start it first")
    _check(runs, mixed_revisions=mixed_revisions)
    entries = [_entry(name, members, record) for name, members in found.items() if members]
    parts: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        parts.setdefault((entry.runs[0].dataset, entry.runs[0].network), []).append(entry)
    return Comparison(
        name=record["sweep"],
        question=record["question"],
        overrides=record["overrides"],
        fields=[_field(*key, part) for key, part in sorted(parts.items())],
        asked=len(found) * record["seeds"],
        missing=_missing(found, record["seeds"]),
        failed=sum(bool(run.failure) for run in runs),
        source=record["source"],
        axis=record["axis"],
        points=[(line, place, name) for line, place, name in record["points"]],
    )


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def _record(folder: Path) -> dict[str, Any]:
    path = folder / "sweep.json"
    try:
        record = json.loads(path.read_text())
        needed = {key: record[key] for key in ("sweep", "question", "overrides", "runs")}
        return {**_DEFAULTS, **record, **needed}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkdirError(
            f"{path} cannot be read ({type(error).__name__}: {error}): restore the file, or remove "
            "it to report the runs one by one"
        ) from error


def _runs(folder: Path, name: str) -> list[Run]:
    """All seeds of one run of the sweep, which must be of one configuration."""
    if not any((folder / name).glob("seed*/config.json")):
        return []
    runs = sorted(read_runs([folder / name]), key=lambda run: run.seed)
    runs = [dataclasses.replace(run, name=f"{name}/{run.name}") for run in runs]
    for run in runs[1:]:
        different = differences(runs[0].settings, run.settings)
        if different:
            raise WorkdirError(
                f"{runs[0].name} and {run.name} in {folder} are of different configurations: "
                f"{'; '.join(different[:5])}. Move the one that does not belong there away"
            )
    for one, other in itertools.pairwise(runs):
        if one.seed == other.seed:
            raise WorkdirError(
                f"{one.name} and {other.name} in {folder} are both of seed {one.seed}, which "
                "counts once: move one of them away"
            )
    return runs


def _check(runs: Sequence[Run], *, mixed_revisions: bool) -> None:
    """Refuse runs that do not belong into one table."""
    for key, found in (
        ("train.budget", {run.budget: run for run in runs}),
        ("data.holdout", {run.holdout: run for run in runs}),
    ):
        if len(found) > 1:
            words = [f"{value:,} ({run.name})" for value, run in sorted(found.items())]
            raise WorkdirError(
                f"the sweep holds runs of several {key}, {', '.join(words)}: their accuracies "
                "cannot be compared. Move those of one to a folder of their own"
            )
    if not mixed_revisions:
        tables.check_revisions(runs)


def _missing(found: Mapping[str, Sequence[Run]], seeds: int) -> list[str]:
    missing = []
    for seed in range(seeds):
        for name, runs in found.items():
            run = next((run for run in runs if run.seed == seed), None)
            if run is None:
                missing.append(f"{name}/seed{seed}")
            elif not run.is_finished:
                missing.append(f"{run.name} ({_reached(run)})")
    return missing


def _reached(run: Run) -> str:
    reached = f"{run.epochs} of {run.planned_epochs} epochs"
    return f"failed after {reached}: {run.failure}" if run.failure else reached


def _entry(name: str, runs: Sequence[Run], record: Mapping[str, Any]) -> Entry:
    finished = [run for run in runs if run.is_finished]
    shown = finished or [run for run in runs if not run.failure] or runs
    return Entry(
        name,
        shown,
        left_out=[run for run in runs if run not in shown],
        baseline=record["baselines"].get(name, ""),
        paper=record["paper"].get(name),
    )


def _field(dataset: str, network: str, entries: Sequence[Entry]) -> Field:
    """The entries compared with their baselines and sorted by accuracy."""
    by_name = {entry.name: entry for entry in entries}
    named = {entry.baseline for entry in entries} - {""}
    known = [entry.name for entry in entries if _finals(entry)]
    if named and known and named.isdisjoint(known):  # none has results: the first that has is it
        entries = [dataclasses.replace(entry, baseline=known[0]) for entry in entries]
        named = {known[0]}
    reference = "" if named else _reference(entries)
    compared = []
    for entry in entries:
        # A baseline is its own, for the time a step.
        own = entry.name if entry.name in named else reference
        compared.append(_compared(entry, by_name.get(entry.baseline or own)))
    if not any(entry.baseline and entry.relative_seconds for entry in compared):
        compared = [dataclasses.replace(entry, relative_seconds=None) for entry in compared]
    marks = sorted({run.mark for entry in entries for run in entry.runs})
    return Field(
        dataset,
        network,
        "; ".join(marks),
        SPECS[dataset].num_classes if dataset in SPECS else None,
        sorted(
            compared,
            key=lambda entry: -1 if entry.last_accuracy is None else entry.last_accuracy,
            reverse=True,
        ),
    )


def _reference(entries: Sequence[Entry]) -> str:
    """The reference method with default knobs, or the first one; "" if there is none."""
    names = [entry.name for entry in entries if entry.runs[0].method == REFERENCE]
    return min(names, key=lambda name: name != REFERENCE, default="")


def _compared(entry: Entry, baseline: Entry | None) -> Entry:
    if baseline is None:
        return dataclasses.replace(entry, baseline="")
    is_other = entry.name != baseline.name
    return dataclasses.replace(
        entry,
        baseline=baseline.name if is_other else "",
        difference=paired_difference(_finals(entry), _finals(baseline)) if is_other else None,
        relative_seconds=_relative(entry, baseline),
    )


def _finals(entry: Entry) -> dict[int, float]:
    """Last accuracies of the finished runs, by seed."""
    return {
        run.seed: run.last_accuracy
        for run in entry.runs
        if run.is_finished and run.last_accuracy is not None
    }


def _is_steady(entry: Entry) -> bool:
    """Whether a step took about as long with each seed; it does not where other work comes by."""
    times = [run.seconds_per_step for run in entry.runs if run.seconds_per_step is not None]
    return max(times) <= STEADY * min(times)


def _relative(entry: Entry, baseline: Entry) -> float | None:
    if entry.seconds_per_step is None or baseline.seconds_per_step is None:
        return None
    # Another revision may be faster, and was hardly measured beside this one.
    circumstances = [{(run.device, run.revision) for run in e.runs} for e in (entry, baseline)]
    if circumstances[0] != circumstances[1] or not (_is_steady(entry) and _is_steady(baseline)):
        return None
    return entry.seconds_per_step / baseline.seconds_per_step

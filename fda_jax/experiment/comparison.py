"""A sweep's runs side by side: one row each, sorted by what came out."""

import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fda_jax.data import SPECS
from fda_jax.experiment.folder import WorkdirError
from fda_jax.experiment.tables import LEGEND, Run, number, read_runs, spread, table

# The method whose time a step is 1.
REFERENCE = "ste"
COLUMNS = (
    "run",
    "last test accuracy (%)",
    "best test accuracy (%)",
    "last train loss",
    "flips in the last epoch (%)",
    f"time a step ({REFERENCE} = 1)",
    "epochs",
    "seeds",
)
_NUMBERS = {1, 2, 3, 4, 5, 6, 7}
_EXPLANATION = (
    "Flips is the share of binary weights, as inference sees them, that have another sign than an "
    f"epoch before. Time a step is that of training without compilation, divided by {REFERENCE}'s "
    "on the same kind of device; the runs follow one another, so it holds only where nothing else "
    "used the machine."
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One run of a sweep, with all its seeds.

    Attributes:
      name: in the sweep.
      runs: by seed; the finished ones, or all if none is finished.
      unfinished: number of runs left out.
      relative_seconds: time a step divided by the reference's; None where one is not known.
    """

    name: str
    runs: Sequence[Run]
    unfinished: int = 0
    relative_seconds: float | None = None

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
      num_classes: of the dataset; None where its name does not tell.
      entries: the most accurate first.
    """

    dataset: str
    network: str
    num_classes: int | None
    entries: Sequence[Entry]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a sweep's folder says.

    Attributes:
      name: of the sweep.
      question: that it answers.
      overrides: of all runs, as on the command line.
      fields: by name of dataset and network.
      missing: names of runs that have not started.
    """

    name: str
    question: str
    overrides: Mapping[str, str]
    fields: Sequence[Field]
    missing: Sequence[str]


def is_sweep(folder: Path) -> bool:
    """Whether a folder is the --workdir of a sweep."""
    return (folder / "sweep.json").is_file()


def read(folder: Path) -> Comparison:
    """Read a sweep's folder.

    Args:
      folder: the sweep's --workdir.

    Returns:
      A `Comparison`.

    Raises:
      WorkdirError: the folder is damaged, or holds no run yet.
    """
    record = _record(folder)
    entries, missing = [], []
    for name in record["runs"]:
        if any((folder / name).glob("seed*/config.json")):
            entries.append(_entry(name, read_runs([folder / name])))
        else:
            missing.append(name)
    if not entries:
        raise WorkdirError(f"no run of the sweep in {folder} has started: start it first")
    parts: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        parts.setdefault((entry.runs[0].dataset, entry.runs[0].network), []).append(entry)
    fields = [
        Field(*key, SPECS[key[0]].num_classes if key[0] in SPECS else None, _sorted(part))
        for key, part in sorted(parts.items())
    ]
    return Comparison(record["sweep"], record["question"], record["overrides"], fields, missing)


def markdown(comparison: Comparison) -> str:
    """The question, a Markdown table for each network and dataset, and how they were made.

    Args:
      comparison: of `read`.

    Returns:
      The text, from its first heading to its last line.
    """
    parts = [f"# {comparison.question}", f"{LEGEND} {_EXPLANATION}"]
    if comparison.overrides:
        shared = ", ".join(f"`{key}={value}`" for key, value in comparison.overrides.items())
        parts.append(f"Overrides of all runs: {shared}.")
    for field in comparison.fields:
        parts += [
            f"## {field.network} on {field.dataset}",
            table(COLUMNS, [_row(entry) for entry in field.entries], _NUMBERS),
        ]
    if comparison.missing:
        parts.append(f"Not started: {', '.join(comparison.missing)}.")
    return "\n\n".join([*parts, _origin(comparison)]) + "\n"


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def _record(folder: Path) -> dict[str, Any]:
    path = folder / "sweep.json"
    try:
        record = json.loads(path.read_text())
        return {key: record[key] for key in ("sweep", "question", "overrides", "runs")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkdirError(
            f"{path} cannot be read ({type(error).__name__}: {error}): restore the file, or remove "
            "it to report the runs one by one"
        ) from error


def _entry(name: str, runs: Sequence[Run]) -> Entry:
    finished = [run for run in runs if run.is_finished]
    shown = sorted(finished or runs, key=lambda run: run.seed)
    return Entry(name, shown, unfinished=len(runs) - len(finished))


def _sorted(entries: Sequence[Entry]) -> list[Entry]:
    """Sorted by accuracy, with the time relative to the reference's."""
    references = [entry for entry in entries if entry.runs[0].method == REFERENCE]
    # The one with default knobs, if there are several.
    reference = min(references, key=lambda entry: entry.name != REFERENCE, default=None)
    timed = [
        dataclasses.replace(entry, relative_seconds=_relative(entry, reference))
        for entry in entries
    ]
    return sorted(
        timed,
        key=lambda entry: -1 if entry.last_accuracy is None else entry.last_accuracy,
        reverse=True,
    )


def _relative(entry: Entry, reference: Entry | None) -> float | None:
    if reference is None or entry.seconds_per_step is None or reference.seconds_per_step is None:
        return None
    if {run.device for run in entry.runs} != {run.device for run in reference.runs}:
        return None
    return entry.seconds_per_step / reference.seconds_per_step


def _row(entry: Entry) -> list[str]:
    runs = entry.runs
    flips = mean(run.flips_curve[-1][1] if run.flips_curve else None for run in runs)
    epochs = f"{min(run.epochs for run in runs)}/{runs[0].planned_epochs}"
    seeds = str(len({run.seed for run in runs}))
    if not runs[0].is_finished:
        epochs += ", unfinished"
    elif entry.unfinished:
        seeds += f" ({entry.unfinished} unfinished left out)"
    return [
        entry.name,
        _spread(run.last_accuracy for run in runs),
        _spread(run.best_accuracy for run in runs),
        number(mean(run.train_loss for run in runs), 1, ".4f"),
        number(flips, 100, ".3f"),
        number(entry.relative_seconds, 1, ".2f"),
        epochs,
        seeds,
    ]


def _spread(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return spread(known) if known else "-"


def _origin(comparison: Comparison) -> str:
    """Commands, devices and revisions of all runs, each named once."""
    runs = [run for field in comparison.fields for entry in field.entries for run in entry.runs]
    commands = sorted({run.command for run in runs if run.command})
    devices = sorted({run.device for run in runs if run.device})
    revisions = sorted({run.revision for run in runs if run.revision})
    return "\n".join(
        [
            f"Made on {', '.join(devices) or 'an unknown device'} at revision "
            f"{', '.join(revisions) or 'unknown'} by:",
            "",
            "```sh",
            *commands,
            "```",
        ]
    )

"""A comparison as Markdown: what was asked, a table for each network, and how it was made."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from fda_jax.experiment.comparison import STEADY, Comparison, Entry, Field, mean
from fda_jax.experiment.logs import duration
from fda_jax.experiment.pairs import standard_error
from fda_jax.experiment.tables import FAILED, LEGENDS, left_out, loss, number, spread
from fda_jax.models.markdown import table

_UNKNOWN = "-"


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
      title: with the unit.
      cell: text of an entry.
      is_number: set flush right.
      is_optional: left out where no entry says anything.
      is_detail: left out of a summary.
    """

    title: str
    cell: Callable[[Entry], str]
    is_number: bool = True
    is_optional: bool = True
    is_detail: bool = False


def markdown(comparison: Comparison, *, mixed_revisions: bool = False) -> str:
    """The question, a Markdown table for each network and dataset, and how they were made.

    Args:
      comparison: of `comparison.read`.
      mixed_revisions: give a table of several revisions a column of them.

    Returns:
      The text, from its first heading to its last line.
    """
    marks = sorted({field.mark for field in comparison.fields} - {""})
    parts = [f"# {comparison.question}" + (f" ({'; '.join(marks)})" if marks else "")]
    if any(field.is_part for field in comparison.fields):
        parts.append(
            "**A part of the recipe alone: what holds for so few epochs need not hold at its end.**"
        )
    if comparison.missing:
        count = f"{len(comparison.missing)} of {comparison.asked} runs"
        parts.append(f"**Missing:** {count}: {', '.join(comparison.missing)}.")
    if comparison.failed:
        parts.append(FAILED)
    parts.append(f"{LEGENDS[comparison.eval_split]} {_explanation(comparison)}")
    if comparison.overrides:
        shared = ", ".join(f"`{key}={value}`" for key, value in comparison.overrides.items())
        parts.append(f"Overrides of all runs: {shared}.")
    shown = columns(comparison, mixed_revisions=mixed_revisions)
    parts += _tables(comparison, shown, "##")
    return "\n\n".join([*parts, _origin(comparison)]) + "\n"


def summary(comparison: Comparison, *, mixed_revisions: bool = False) -> str:
    """What was asked and what came out, without details: a section of a page of several sweeps.

    Args:
      comparison: of `comparison.read`.
      mixed_revisions: give a table of several revisions a column of them.

    Returns:
      The text, whose headings are of the third level.
    """
    parts = [comparison.question]
    if comparison.missing:
        failed = f", of which {comparison.failed} failed" if comparison.failed else ""
        parts.append(f"**Missing:** {len(comparison.missing)} of {comparison.asked} runs{failed}.")
    made = columns(comparison, mixed_revisions=mixed_revisions)
    parts += _tables(comparison, [column for column in made if not column.is_detail], "###")
    return "\n\n".join([*parts, _origin(comparison)])


def columns(comparison: Comparison, *, mixed_revisions: bool = False) -> list[Column]:
    """The columns that a table of this comparison can have."""
    entries = [entry for field in comparison.fields for entry in field.entries]
    baselines = {entry.baseline for entry in entries if entry.baseline}
    other = min(baselines) if len(baselines) == 1 else "baseline"
    split = comparison.eval_split
    revisions = {run.revision for entry in entries for run in entry.runs}
    revision = Column("revision", _revision, is_number=False, is_optional=False)
    return [
        Column("run", lambda entry: entry.name, is_number=False, is_optional=False),
        Column("n", _seeds, is_optional=False),
        Column(
            f"last {split} accuracy (%)",
            lambda entry: _spread(run.last_accuracy for run in entry.runs),
            is_optional=False,
        ),
        Column(
            f"last top-5 {split} accuracy (%)",
            lambda entry: _spread(run.last_top5_accuracy for run in entry.runs),
        ),
        Column(
            f"best {split} accuracy (%)",
            lambda entry: _spread(run.best_accuracy for run in entry.runs),
        ),
        Column(f"{comparison.source} (%)", lambda entry: number(entry.paper, 1, ".2f")),
        Column(f"last - {other} (points, 95 % interval)", _difference),
        Column(
            "last train loss",
            lambda entry: loss(mean(run.train_loss for run in entry.runs)),
            is_detail=True,
        ),
        Column("flips in the last epoch (%)", _flips, is_detail=True),
        Column(
            f"time a step ({other} = 1)",
            lambda entry: number(entry.relative_seconds, 1, ".2f"),
            is_detail=True,
        ),
        Column("images/s", _images_per_second, is_detail=True),
        Column("time a run", _seconds, is_detail=True),
        Column("epochs", _epochs, is_optional=False),
        *([revision] if mixed_revisions and len(revisions) > 1 else []),
    ]


def _tables(comparison: Comparison, made: Sequence[Column], level: str) -> list[str]:
    """A heading and a table for each network and dataset, and what stands below it."""
    parts = []
    for field in comparison.fields:
        shown = [
            column
            for column in made
            if not column.is_optional or {*map(column.cell, field.entries)} != {_UNKNOWN}
        ]
        rows = [[column.cell(entry) for column in shown] for entry in field.entries]
        numbers = {i for i, column in enumerate(shown) if column.is_number}
        parts += [f"{level} {field.title}", table([c.title for c in shown], rows, numbers)]
        parts += _single_seeds(field)
    return parts


def _explanation(comparison: Comparison) -> str:
    words = [
        "Given are mean ± standard deviation over n seeds. Flips is the share of binary weights, "
        "as inference sees them, that have another sign than an epoch before."
    ]
    entries = [entry for field in comparison.fields for entry in field.entries]
    pairs = sorted({(entry.baseline, entry.name) for entry in entries if entry.baseline})
    baselines = {baseline for baseline, _ in pairs}
    if len(baselines) > 1:
        listed = ", ".join(f"{name} with {baseline}" for baseline, name in pairs)
        words.append(f"A baseline is the same run without what is asked for: {listed}.")
    if baselines:
        words.append(
            "A difference is the mean over seeds that both have, seed by seed, with Student's 95 % "
            f"interval of that mean. It is of the seeds: what other {comparison.eval_split} images "
            "would change is not in it. Each interval stands for itself, and among many one in "
            "twenty misses. Time a step is that of training without compilation, divided by the "
            "baseline's where device and revision are the same and the seeds of either differ by "
            f"{STEADY - 1:.0%} at most, as they do where nothing else uses the machine."
        )
    if comparison.source:
        words.append(
            f"{comparison.source} gives one number each, and says neither of how many seeds nor "
            "whether it is of the last or the best epoch."
        )
    return " ".join(words)


def _single_seeds(field: Field) -> list[str]:
    """What one seed leaves uncertain, where there is no other."""
    known = [
        (entry.runs[0].last_accuracy, entry.runs[0].eval_examples)
        for entry in field.entries
        if len(entry.runs) == 1
    ]
    errors = [
        (100 * standard_error(accuracy, examples), examples)
        for accuracy, examples in known
        if accuracy is not None and examples
    ]
    if not errors:
        return []
    least, most = min(errors)[0], max(errors)[0]
    size = f"{most:.2f}" if f"{least:.2f}" == f"{most:.2f}" else f"{least:.2f} to {most:.2f}"
    return [
        f"Where n = 1 nothing is known of the spread over seeds; the {errors[0][1]:,} "
        f"{field.eval_split} images alone leave a standard error of {size} points."
    ]


def _seeds(entry: Entry) -> str:
    seeds = str(len({run.seed for run in entry.runs}))
    return seeds + left_out(entry.left_out)


def _spread(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return spread(known) if known else _UNKNOWN


def _difference(entry: Entry) -> str:
    found = entry.difference
    if found is None:
        return _UNKNOWN
    if found.half_width is None:
        return f"{100 * found.mean:+.2f}"
    low, high = found.mean - found.half_width, found.mean + found.half_width
    few = "" if found.pairs == len(entry.runs) else f", n = {found.pairs}"
    return f"{100 * found.mean:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]{few}"


def _flips(entry: Entry) -> str:
    flips = mean(run.flips_curve[-1][1] if run.flips_curve else None for run in entry.runs)
    return number(flips, 100, ".3f")


def _images_per_second(entry: Entry) -> str:
    return number(mean(run.images_per_second or None for run in entry.runs), 1, ",.0f")


def _seconds(entry: Entry) -> str:
    seconds = mean(run.seconds for run in entry.runs)
    return _UNKNOWN if seconds is None else duration(seconds)


def _epochs(entry: Entry) -> str:
    epochs = f"{min(run.epochs for run in entry.runs)}/{entry.runs[0].planned_epochs}"
    if entry.runs[0].is_finished:
        return epochs
    return f"{epochs}, {'failed' if entry.runs[0].failure else 'unfinished'}"


def _revision(entry: Entry) -> str:
    return ", ".join(sorted({run.revision or "unknown" for run in entry.runs}))


def _origin(comparison: Comparison) -> str:
    """Commands, devices and revisions of all runs, each named once."""
    runs = [run for field in comparison.fields for entry in field.entries for run in entry.runs]
    commands, devices, revisions = (
        sorted({value for value in values if value})
        for values in zip(*((run.command, run.device, run.revision) for run in runs), strict=True)
    )
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

"""Run folders as tables: what was trained, what came out, and the command that did it."""

import dataclasses
import json
import os
import re
import shlex
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from fda_jax.experiment import budget, environment, judged, stages
from fda_jax.experiment.folder import (
    FREE_KEYS,
    RunFolder,
    WorkdirError,
    completed,
    read_metrics,
)
from fda_jax.models.markdown import table

# Columns of numbers, set flush right.
_NUMBERS = {2, 3, 4, 5, 6, 7}
# Settings that the heading or another column shows already.
_SHOWN_ELSEWHERE = ("method.name", "model.name", "data.name", "data.holdout", "train.budget")
_UNKNOWN = "-"
# What last and best are, by what a run is judged by.
LEGENDS = {
    "test": "Last is the test accuracy after the last epoch. Best is the highest of all epochs; it "
    "is picked on the test set itself and so is optimistic: compare methods by last.",
    "holdout": "Last is the holdout accuracy after the last epoch: of training images that were "
    "held out, and of no test image. Best is the highest of all epochs; it is picked on these "
    "images and so is optimistic. Choose by last, and train the choice again on all training "
    "images for its test accuracy.",
}
# That is written out: guessing among a million classes costs 14 nats.
LARGEST_LOSS = 1000.0
# Stands beside the legend where a run failed.
FAILED = (
    "**Runs failed: means, deviations and intervals are of those that did not fail, wherever there "
    "are such.**"
)


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run's folder says; None is what it does not say (yet).

    Attributes:
      name: short and unique among the runs read together.
      dataset: data.name of the configuration.
      network: model.name of the configuration.
      method: method.name of the configuration.
      seed: of everything random.
      settings: the configuration as text, flat; without the seed and what changes no result.
      budget: share of the recipe's epochs that the run is meant to train, in (0, 1].
      eval_split: what its accuracies are of, of `data.EVAL_SPLITS`.
      holdout: number of training examples that were held out for it.
      mark: how its outputs are marked, see `budget.mark` and `judged.mark`; "" for a whole run
        that is judged by the test set.
      planned_epochs: what the budget leaves of the configuration's.
      epochs: finished so far.
      is_finished: whether there is a result.
      failure: why its last attempt ended before that, in words; "" unless it met a number that is
        not finite.
      last_accuracy: after the last evaluated epoch, in [0, 1].
      last_top5_accuracy: likewise, of the five likeliest classes; None where nobody counted.
      best_accuracy: the highest, in [0, 1].
      best_epoch: the first with that accuracy.
      train_loss: mean over the last epoch.
      images_per_second: of training.
      seconds: of training without compilation; known of a finished run.
      seconds_per_step: of training; known of a finished run.
      eval_examples: number that the accuracies are of; known of a finished run.
      device: kind, how many if more than one, and how many runs shared it as one program, if so.
      revision: of the code; several, joined by " then ", where a run went on at another.
      command: that started it, without the places of a machine.
      accuracy_curve: (epoch, accuracy in [0, 1]) pairs.
      loss_curve: (epoch, mean training loss) pairs.
      flips_curve: (epoch, share of binary weights that changed their sign) pairs, where counted.
    """

    name: str
    dataset: str
    network: str
    method: str
    seed: int
    settings: Mapping[str, str]
    budget: float
    eval_split: str
    holdout: int
    mark: str
    planned_epochs: int
    epochs: int
    is_finished: bool
    failure: str
    last_accuracy: float | None
    last_top5_accuracy: float | None
    best_accuracy: float | None
    best_epoch: int | None
    train_loss: float | None
    images_per_second: float | None
    seconds: float | None
    eval_examples: int | None
    seconds_per_step: float | None
    device: str | None
    revision: str | None
    command: str | None
    accuracy_curve: Sequence[tuple[int, float]]
    loss_curve: Sequence[tuple[int, float]]
    flips_curve: Sequence[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class Configuration:
    """Runs that differ in nothing but the seed.

    Attributes:
      label: the method, and the settings that set it apart from others of its group.
      runs: by seed.
    """

    label: str
    runs: Sequence[Run]


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one network, dataset, budget and holdout: only their accuracies can be compared.

    Attributes:
      dataset: its name.
      network: its name.
      mark: see `Run`.
      configurations: in the order of their runs' names.
    """

    dataset: str
    network: str
    mark: str
    configurations: Sequence[Configuration]

    @property
    def title(self) -> str:
        """What stands above its table and its picture."""
        return title(self.network, self.dataset, self.mark)

    @property
    def eval_split(self) -> str:
        """What the accuracies are of, see `Run`."""
        return self.configurations[0].runs[0].eval_split


def columns(eval_split: str) -> tuple[str, ...]:
    """The columns of a table of runs that are judged so."""
    return (
        "run",
        "method",
        "seed",
        "epochs",
        f"last {eval_split} accuracy (%)",
        f"best {eval_split} accuracy (%)",
        "last train loss",
        "images/s",
        "device",
        "revision",
    )


def legends(eval_splits: Iterable[str]) -> str:
    """What last and best are of runs that are judged in these ways."""
    found = set(eval_splits)
    return " ".join(legend for split, legend in LEGENDS.items() if split in found)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders, and those that lie at any depth in a folder of them; links are followed.

    Args:
      folders: each a run folder or a folder that holds some.

    Returns:
      The runs, sorted by name, which is a link's own; one that is named twice is read once.

    Raises:
      WorkdirError: a folder is missing, holds no run, or holds a damaged one.
    """
    found: dict[Path, Path] = {}  # what a run's folder is called, by where it lies
    for path in (path for folder in folders for path in _find(folder)):
        found.setdefault(path.resolve(), Path(os.path.abspath(path)))
    common = os.path.commonpath([path.parent for path in found.values()])
    named = sorted((path.relative_to(common).as_posix(), place) for place, path in found.items())
    return [_read_run(place, name) for name, place in named]


def holds_runs(folder: Path) -> bool:
    """Whether a run lies in a folder, at any depth."""
    return any(True for _ in _walk(folder))


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Sort runs into one group for each dataset, network, budget and holdout, and by configuration.

    Args:
      runs: any.

    Returns:
      The groups by name of dataset, network and mark; every run is in exactly one of them.
    """
    parts: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        parts.setdefault((run.dataset, run.network, run.mark), []).append(run)
    return [Group(*key, _configurations(members)) for key, members in sorted(parts.items())]


def check_revisions(runs: Iterable[Run]) -> None:
    """Refuse runs of different code for one table.

    Raises:
      WorkdirError: they were not all made at one revision; names a run of each.
    """
    found: dict[str, list[str]] = {}
    for run in runs:
        found.setdefault(run.revision or "unknown", []).append(run.name)
    if len(found) > 1:
        words = [
            f"{revision} ({names[0]}" + (f" and {len(names) - 1} more)" if names[1:] else ")")
            for revision, names in sorted(found.items())
        ]
        raise WorkdirError(
            f"the runs were made at several revisions of the code: {', '.join(words)}. Train them "
            "at one, or say --mixed-revisions to have them in one table that names each run's"
        )


def title(network: str, dataset: str, mark: str) -> str:
    """What stands above a table or a picture of runs."""
    return f"{network} on {dataset}" + (f", {mark}" if mark else "")


def markdown(groups: Iterable[Group]) -> str:
    """A Markdown table for each group, with the commands that made its rows below it.

    Args:
      groups: of `group_runs`.

    Returns:
      The text, from its first heading to its last line.
    """
    groups = list(groups)
    runs = [run for group in groups for part in group.configurations for run in part.runs]
    failed = [FAILED] if any(run.failure for run in runs) else []
    legend = legends(group.eval_split for group in groups)
    return "\n\n".join(["# Runs", legend, *failed, summary(groups, "##")]) + "\n"


def summary(groups: Iterable[Group], level: str = "###") -> str:
    """The tables alone, each below a heading of this level."""
    parts = []
    for group in groups:
        parts += [
            f"{level} {group.title}",
            table(
                columns(group.eval_split),
                [row for part in group.configurations for row in _rows(part)],
                _NUMBERS,
            ),
            "Made by:",
            _commands(group),
        ]
    return "\n\n".join(parts)


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation of accuracies as text in %; one value has none.

    Args:
      values: in [0, 1], at least one.

    Returns:
      e.g. "91.20 ± 0.15", or "91.20" for one value.
    """
    mean = f"{100 * statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.2f}"


def _find(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise WorkdirError(
            f"there is no folder {folder}: give the --workdir of a run, or a folder that holds some"
        )
    found = list(_walk(folder))
    if not found:
        raise WorkdirError(
            f"the folder {folder} holds no run (no config.json or metrics.jsonl at any depth): "
            "give the --workdir of a run, or a folder that holds some"
        )
    return found


def _walk(folder: Path) -> Iterator[Path]:
    seen = set()
    for path, folders, files in os.walk(folder, followlinks=True):
        place = os.path.realpath(path)
        is_run = "config.json" in files or "metrics.jsonl" in files
        if is_run and place not in seen:
            yield Path(path)
        if is_run or place in seen:  # what lies inside a run belongs to it
            folders.clear()
        seen.add(place)
        inside = [Path(path, name) for name in folders if not name.startswith(".")]
        # Links last: what lies here, too, is not called by them.
        folders[:] = [each.name for each in sorted(inside, key=lambda one: (one.is_symlink(), one))]


def _read_run(path: Path, name: str) -> Run:
    config = _read(path, "config.json")
    if config is None:
        raise WorkdirError(
            f"the folder {path} has metrics.jsonl but no config.json, so what was run is unknown: "
            "restore the file, or leave this folder out of the report"
        )
    surroundings = _read(path, "environment.json") or {}
    try:
        # Runs that are older than diagnostics made none.
        config = {"diagnostics": {}, **completed(config)}
        rows, epochs_before = _metrics(path, config)
        result = _read(path, "result.json")
        reached = _reached(rows, result, epochs_before, judged.eval_split(config))
        return Run(
            name=name,
            failure=_failure(path, config),
            **_wanted(config),
            **reached,
            **_made_with(surroundings),
        )
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise WorkdirError(
            f"the run in {path} is damaged ({type(error).__name__}: {error}): restore its files, "
            "or leave this folder out of the report"
        ) from error


def _read(path: Path, name: str) -> Any:
    try:
        return RunFolder(path, is_writer=False).read(name)
    except WorkdirError as error:
        raise WorkdirError(
            f"{path / name} cannot be read ({error.__cause__}): restore the file, or leave this "
            "folder out of the report"
        ) from error


def _wanted(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Run that its configuration gives."""
    train = config["train"]
    return {
        "dataset": config["data"]["name"],
        "network": config["model"]["name"],
        "method": config["method"]["name"],
        "seed": config["seed"],
        "settings": dict(_settings(config)),
        "budget": train["budget"],
        "eval_split": judged.eval_split(config),
        "holdout": judged.holdout(config),
        "mark": "; ".join(filter(None, (budget.mark(train), judged.mark(config)))),
        "planned_epochs": budget.epochs_of(train),
    }


def _failure(path: Path, config: Mapping[str, Any]) -> str:
    for place in stages.folders(path, config):
        failure = RunFolder(place, is_writer=False).failure()
        if failure is not None:
            where = "" if place == path else f" of {place.name}"
            return f"not finite at step {failure['step'] + 1}{where}"
    return ""


def _metrics(path: Path, config: Mapping[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """The rows of a run, its stages' joined with their epochs counted through; and the number of
    epochs before the last stage, whose accuracies alone are the run's."""
    places = stages.folders(path, config)
    if places == [path]:
        return read_metrics(path), 0
    rows, before, lengths = [], 0, [part["train"]["epochs"] for part in stages.split(config)]
    for place, epochs in zip(places, lengths, strict=True):
        rows += [{**row, "epoch": row["epoch"] + before} for row in read_metrics(place)]
        before += epochs
    return rows, before - lengths[-1]


def _reached(
    rows: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any] | None,
    epochs_before: int,
    split: str,
) -> dict[str, Any]:
    """The fields of a Run that its metrics and its result give."""
    last_key, best_key = judged.result_keys(split)
    trains = [row for row in rows if row["split"] == "train"]
    last = trains[-1] if trains else {"epoch": 0, "loss": None, "images_per_second": None}
    accuracies = [(row["epoch"], row["accuracy"]) for row in rows if row["split"] == split]
    # The result was written at the end, once; the metrics may have lost their last line since.
    outcome = result
    if outcome is None:
        outcome = _outcome(last, [pair for pair in accuracies if pair[0] > epochs_before], split)
    return {
        "epochs": outcome["epochs"],
        "is_finished": result is not None,
        "last_accuracy": outcome[last_key],
        "last_top5_accuracy": outcome.get(f"last_{split}_top5_accuracy"),
        "best_accuracy": outcome[best_key],
        "best_epoch": outcome["best_epoch"],
        "train_loss": last["loss"],
        "images_per_second": outcome["images_per_second"],
        # A run of a single call has no time without compilation, and says 0.
        "seconds": result and (result["seconds"] or None),
        "eval_examples": result and result.get(f"{split}_examples"),
        "seconds_per_step": result and _seconds_per_step(result),
        "accuracy_curve": accuracies,
        "loss_curve": [(row["epoch"], row["loss"]) for row in trains],
        "flips_curve": [(row["epoch"], row["flips"]) for row in trains if "flips" in row],
    }


def _seconds_per_step(result: Mapping[str, Any]) -> float | None:
    steps = result.get("timed_steps", result["steps"])  # which older results lack
    return (steps and result["seconds"] / steps) or None


def _made_with(surroundings: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Run that its environment gives."""
    return {
        "device": _device(surroundings),
        "revision": _revision(surroundings),
        "command": _command(surroundings),
    }


def _outcome(
    last_train: Mapping[str, Any], accuracies: Sequence[tuple[int, float]], split: str
) -> dict[str, Any]:
    """What result.json will say, as far as it is known before the end."""
    best_epoch, best = max(accuracies, key=lambda pair: pair[1], default=(None, None))
    last_key, best_key = judged.result_keys(split)
    return {
        last_key: accuracies[-1][1] if accuracies else None,
        best_key: best,
        "best_epoch": best_epoch,
        "epochs": last_train["epoch"],
        "images_per_second": last_train["images_per_second"],
    }


def _settings(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        name = prefix + key
        if isinstance(value, Mapping):
            yield from _settings(value, f"{name}.")
        elif name != "seed" and name not in FREE_KEYS:
            yield name, value if isinstance(value, str) else json.dumps(value)


def _device(surroundings: Mapping[str, Any]) -> str | None:
    kind, count = surroundings.get("device"), surroundings.get("devices")
    together = surroundings.get("together", 1)  # older files are of runs that were trained alone
    name = f"{count} x {kind}" if kind and count and count > 1 else kind
    return f"{name} ({together} runs together)" if name and together > 1 else name


def _revision(surroundings: Mapping[str, Any]) -> str | None:
    known = [name for name in environment.revisions(surroundings) if name]
    return " then ".join(known) or None


def _command(surroundings: Mapping[str, Any]) -> str | None:
    words = surroundings.get("command")
    if not words:
        return None
    return shlex.join(["python", PurePath(words[0]).name, *map(_portable, words[1:])])


def _portable(word: str) -> str:
    """A word of a command, an absolute path in it cut to its name: it means nothing elsewhere."""
    found = re.fullmatch(r"([^/]*=)?(/.*)", word)
    return (found[1] or "") + PurePath(found[2]).name if found else word


def _configurations(runs: Sequence[Run]) -> list[Configuration]:
    parts: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.name):
        parts.setdefault(tuple(sorted(run.settings.items())), []).append(run)
    varying = _varying(runs)
    return [
        Configuration(_label(members[0], varying), sorted(members, key=lambda run: run.seed))
        for members in parts.values()
    ]


def _varying(runs: Sequence[Run]) -> list[str]:
    """Settings with more than one value among these runs, those of the method first."""
    values: dict[str, set[str]] = {}
    for run in runs:
        for key, value in run.settings.items():
            values.setdefault(key, set()).add(value)
    keys = [key for key in values if len(values[key]) > 1 and key not in _SHOWN_ELSEWHERE]
    return sorted(keys, key=lambda key: (not key.startswith("method."), key))


def _label(run: Run, varying: Sequence[str]) -> str:
    knobs = [
        f"{key.removeprefix('method.')}={run.settings[key]}"
        for key in varying
        if key in run.settings
    ]
    return ", ".join([run.method, *knobs])


def _rows(configuration: Configuration) -> list[list[str]]:
    rows = [_row(run, configuration.label) for run in configuration.runs]
    finished = [run for run in configuration.runs if run.is_finished]
    if finished and len({run.seed for run in configuration.runs}) > 1:
        others = [run for run in configuration.runs if not run.is_finished]
        rows.append(_mean_row(finished, others, configuration.label))
    return rows


def _ending(run: Run) -> str:
    if run.is_finished:
        return ""
    return f", failed: {run.failure}" if run.failure else ", unfinished"


def left_out(runs: Sequence[Run]) -> str:
    """How many runs a mean does not hold, as words to put behind its number; "" for none."""
    failed = sum(bool(run.failure) for run in runs)
    counts = {"failed": failed, "unfinished": len(runs) - failed}
    words = " and ".join(f"{count} {what}" for what, count in counts.items() if count)
    return f" ({words} left out)" if words else ""


def _row(run: Run, label: str) -> list[str]:
    best = number(run.best_accuracy, 100, ".2f")
    return [
        run.name,
        label,
        str(run.seed),
        f"{run.epochs}/{run.planned_epochs}{_ending(run)}",
        _last([run]),
        best if run.best_epoch is None else f"{best} (epoch {run.best_epoch})",
        loss(run.train_loss),
        # A run of a single call has no time without compilation, and says 0.
        number(run.images_per_second or None, 1, ",.0f"),
        run.device or _UNKNOWN,
        run.revision or _UNKNOWN,
    ]


def _mean_row(finished: Sequence[Run], others: Sequence[Run], label: str) -> list[str]:
    """Over the finished runs alone, for an unfinished one is not of the same configuration yet."""
    seeds, n = sorted({run.seed for run in finished}), len(finished)
    over = f"{n} seed{'s' * (n > 1)}" if n == len(seeds) else f"{n} runs of {len(seeds)} seeds"
    return [
        f"{'mean ± std' if n > 1 else 'mean'} over {over}{left_out(others)}",
        label,
        ", ".join(map(str, seeds)),
        f"{finished[0].epochs}/{finished[0].planned_epochs}",
        _last(finished),
        spread([run.best_accuracy for run in finished if run.best_accuracy is not None]),
        *[""] * 4,
    ]


def _last(runs: Sequence[Run]) -> str:
    """The last accuracies, and the top-5 ones where they were counted in all of these runs."""
    known = [run.last_accuracy for run in runs if run.last_accuracy is not None]
    top5 = [run.last_top5_accuracy for run in runs if run.last_top5_accuracy is not None]
    text = spread(known) if known else _UNKNOWN
    return f"{text} (top 5: {spread(top5)})" if top5 and len(top5) == len(known) else text


def number(value: float | None, factor: float, form: str) -> str:
    """A value times a factor as text of this format; "-" where it is not known."""
    return _UNKNOWN if value is None else format(factor * value, form)


def loss(value: float | None) -> str:
    """A loss as text: four decimals, or the first digits of one that has left every scale."""
    return number(value, 1, ".4f" if value is None or abs(value) < LARGEST_LOSS else ".2e")


def _commands(group: Group) -> str:
    runs = [run for part in group.configurations for run in part.runs]
    lines = [f"# {run.name}\n{run.command or '# not recorded'}" for run in runs]
    return "\n".join(["```sh", *lines, "```"])

"""What has been measured of a method, read from the records in results/."""

import functools
import inspect
import json
from collections.abc import Mapping, Sequence

from fda_jax.experiment.tables import Group, Run, group_runs, read_runs, spread
from fda_jax.layers import METHODS
from fda_jax.models.markdown import table
from tools.pages.repository import ROOT

RESULTS = ROOT / "results"
NOTHING = "Not measured yet."
COLUMNS = (
    "records",
    "network",
    "training images",
    "budget",
    "setting",
    "seeds",
    "last test accuracy (%)",
    "device, revision",
)
_NUMBERS = {5, 6}
# What a knob was before there was one, where that is not its default today.
_SCALED = ("identity", "ste", "fda", "tbn", "hwgq")
_BEFORE = {(name, "scale_in_gradient"): "true" for name in _SCALED} | {
    ("bop", "gamma_decay"): "1.0"
}
# Settings that have a column.
_SHOWN = ("data.limit", "train.batch_size", "train.budget", "train.epochs")


def results(method: str) -> str:
    """A table of a method's measured accuracies.

    Args:
      method: a name of `METHODS`.

    Returns:
      Markdown with links as of a page in docs/methods, a row for each configuration, the longest
      trainings first: mean and sample standard deviation where there are several seeds.
    """
    found = [
        (folder, configuration.runs, group)
        for folder, runs in _records().items()
        for group in group_runs(run for run in runs if run.method == method)
        for configuration in group.configurations
    ]
    found.sort(key=lambda row: -row[1][0].planned_epochs)
    return table(COLUMNS, [_row(*each) for each in found], _NUMBERS) if found else NOTHING


def _row(folder: str, runs: Sequence[Run], group: Group) -> list[str]:
    """Runs that differ in nothing but the seed, among those of this folder and network."""
    run = runs[0]
    limit = int(run.settings.get("data.limit", 0))  # older records took all images
    return [
        f"[{folder}](../../results/{folder}/report.md)",
        run.network,
        f"{run.dataset}, {f'{limit:,}' if limit else 'all'}",
        f"{run.mark or f'{run.planned_epochs} epochs'}, batch {run.settings['train.batch_size']}",
        ", ".join(f"`{setting}`" for setting in [*_knobs(run), *_others(run, group)]) or "defaults",
        str(len(runs)),
        spread([run.last_accuracy for run in runs if run.last_accuracy is not None]),
        ", ".join(sorted({f"{run.device}, `{run.revision}`" for run in runs})),
    ]


def _knobs(run: Run) -> list[str]:
    """The knobs that are not the row's defaults."""
    found = []
    for name, parameter in inspect.signature(METHODS[run.method]).parameters.items():
        default = parameter.default
        text = default if isinstance(default, str) else json.dumps(default)
        # Older records lack newer knobs.
        value = run.settings.get(f"method.{name}", _BEFORE.get((run.method, name), text))
        found += [f"{name}={value}"] if value != text else []
    return found


def _others(run: Run, group: Group) -> list[str]:
    """The other settings in which the group's configurations differ."""
    settings = [configuration.runs[0].settings for configuration in group.configurations]
    return [
        f"{key}={value}"
        for key, value in run.settings.items()
        if not key.startswith("method.")
        and key not in _SHOWN
        and len({other.get(key) for other in settings}) > 1
    ]


@functools.cache
def _records() -> Mapping[str, list[Run]]:
    """The finished runs by their folder of results/."""
    folders = sorted(path for path in RESULTS.iterdir() if any(path.rglob("result.json")))
    return {
        folder.name: [run for run in read_runs([folder]) if run.is_finished] for folder in folders
    }

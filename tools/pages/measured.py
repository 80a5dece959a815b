"""What has been measured of a method, read from the records in results/."""

import dataclasses
import functools
import inspect
import json
from collections.abc import Sequence
from pathlib import Path

from fda_jax.experiment.tables import Run, read_runs, spread, table
from fda_jax.layers import METHODS
from tools.pages.repository import ROOT

RESULTS = ROOT / "results"
NOTHING = "Not measured yet."
COLUMNS = (
    "records",
    "network",
    "training images",
    "epochs",
    "batch",
    "setting",
    "seeds",
    "last test accuracy (%)",
    "best (%)",
    "device",
    "revision",
)
_NUMBERS = {3, 4, 6, 7, 8}


@dataclasses.dataclass(frozen=True)
class Record:
    """A finished run, and the folder of results/ that it belongs to."""

    folder: Path
    run: Run

    @property
    def cells(self) -> tuple[str, ...]:
        """The columns that runs share which differ in nothing but the seed."""
        settings = self.run.settings
        limit = int(settings.get("data.limit", 0))  # older records took all images
        images = f"{self.run.dataset}, {f'{limit:,}' if limit else 'all'}"
        link = f"[{self.folder.name}](../../results/{self.folder.name}/report.md)"
        batch = settings["train.batch_size"]
        epochs = str(self.run.planned_epochs)
        return (link, self.run.network, images, epochs, batch, _setting(self.run))


def results(method: str) -> str:
    """A table of a method's measured accuracies.

    Args:
      method: a name of `METHODS`.

    Returns:
      Markdown with links as of a page in docs/methods; mean and sample standard deviation where
      there are several seeds.
    """
    parts: dict[tuple[str, ...], list[Run]] = {}
    for record in _records():
        if record.run.method == method:
            parts.setdefault(record.cells, []).append(record.run)
    if not parts:
        return NOTHING
    return table(COLUMNS, [[*cells, *_outcome(runs)] for cells, runs in parts.items()], _NUMBERS)


def _outcome(runs: Sequence[Run]) -> list[str]:
    """Number of seeds, accuracies and circumstances of runs that differ in the seed alone."""
    return [
        str(len({run.seed for run in runs})),
        spread([run.last_accuracy for run in runs if run.last_accuracy is not None]),
        spread([run.best_accuracy for run in runs if run.best_accuracy is not None]),
        ", ".join(sorted({run.device or "-" for run in runs})),
        ", ".join(f"`{name}`" for name in sorted({run.revision or "-" for run in runs})),
    ]


def _setting(run: Run) -> str:
    """The knobs that are not the row's defaults."""
    defaults = {
        f"method.{name}": value if isinstance(value, str) else json.dumps(value)
        for name, parameter in inspect.signature(METHODS[run.method]).parameters.items()
        for value in [parameter.default]
    }
    changed = [
        f"`{key.removeprefix('method.')}={run.settings[key]}`"
        for key, value in defaults.items()
        if run.settings.get(key, value) != value
    ]
    return ", ".join(changed) or "defaults"


@functools.cache
def _records() -> list[Record]:
    return [
        Record(folder, run)
        for folder in sorted(path for path in RESULTS.iterdir() if any(path.rglob("result.json")))
        for run in read_runs([folder])
        if run.is_finished
    ]

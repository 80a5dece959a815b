"""A trained run, opened to be read: its experiment and its checkpoints; nothing is written."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from fda_jax import data
from fda_jax.data.loader import folder_of
from fda_jax.experiment import setup, stages
from fda_jax.experiment.folder import RunFolder, WorkdirError
from fda_jax.experiment.loop import start
from fda_jax.experiment.setup import Experiment
from fda_jax.ops.checks import check_choice
from fda_jax.training.checkpoints import Checkpoints, ReplacedError
from fda_jax.training.state import TrainState

CHECKPOINTS = ("last", "best")
# How often a checkpoint that was replaced while it was read is looked for anew.
_TRIES = 5


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """A run that has been trained, or a part of it.

    Attributes:
      settings: its configuration, of a run in stages the last stage's.
      experiment: its objects, for the devices that there are.
      checkpoints: what it saved.
    """

    settings: Mapping[str, Any]
    experiment: Experiment
    checkpoints: Checkpoints

    def step(self, name: str) -> int | None:
        """The step of the checkpoint "last" or "best" by now; None where there is none.

        Raises:
          ValueError: another name.
          CheckpointError: as `state`.
        """
        check_choice("checkpoint", name, CHECKPOINTS)
        self.checkpoints.reload()
        last = name == "last"
        return self.checkpoints.latest_step() if last else self.checkpoints.best_step()

    def state(self, step: int) -> TrainState:
        """The state after a step that was saved.

        Raises:
          CheckpointError: the checkpoint is damaged, of another network, or gone, for the run
            trains on.
        """
        (state, *_), _ = self.checkpoints.restore(self._start, step)
        return state

    def found(self, name: str) -> tuple[int, TrainState] | None:
        """Step and state of the checkpoint "last" or "best", also of a run that trains on.

        Returns:
          None where there is none of this name.

        Raises:
          ValueError: as `step`.
          CheckpointError: as `state`.
        """
        for _ in range(_TRIES - 1):
            with contextlib.suppress(ReplacedError):
                return self._found(name)
        return self._found(name)

    def last(self) -> TrainState:
        """The state of the last checkpoint.

        Raises:
          CheckpointError: as `state`.
        """
        found = self.found("last")
        assert found is not None  # `opened` refuses a folder without
        return found[1]

    def _found(self, name: str) -> tuple[int, TrainState] | None:
        step = self.step(name)
        return None if step is None else (step, self.state(step))

    @functools.cached_property
    def _start(self) -> Any:
        return start(self.experiment).arrays()


@contextlib.contextmanager
def opened(
    workdir: str | Path,
    config: Mapping[str, Any] | None = None,
    *,
    data_dir: str | None = None,
    dataset: data.Dataset | None = None,
) -> Iterator[SavedRun]:
    """Open a run's folder, of a run in stages the last stage's, to read what was trained.

    `with opened("runs/digits") as run:` gives the run, whose `last()` is a state: its `params` hold
    the latent weights, `inference_variables()` what the network is evaluated with. The experiment's
    data are whole: of a run that held examples out they have the test set, too.

    Args:
      workdir: the run's folder.
      config: of the run, or None to take the one in the folder.
      data_dir: where the data lie now, in place of the configuration's data.dir; of data with an
        absolute path, folder:/PATH/NAME, the folder that holds NAME.
      dataset: in place of the configuration's own.

    Returns:
      A context whose value is a `SavedRun`, to be read inside.

    Raises:
      WorkdirError: there is no run of this configuration, or no checkpoint, in the folder, or the
        data have other classes.
      ValueError: the configuration or the data cannot run.
    """
    folder = RunFolder(Path(workdir), is_writer=False)
    recorded = folder.config()
    if recorded is None:
        raise WorkdirError(
            f"the folder {folder.path} holds no run (no config.json): give the --workdir of one, "
            "or train it first"
        )
    settings = recorded if config is None else config
    if config is not None:
        folder.claim(settings)
    parts = stages.split(settings)
    if parts:
        place = stages.folders(folder.path, settings)[-1]
        with opened(place, parts[-1], data_dir=data_dir, dataset=dataset) as last:
            yield last
        return
    if folder.latest_checkpoint() is None:
        raise WorkdirError(f"the folder {folder.path} has no checkpoint yet: train it first")
    experiment = setup.build(_here(settings, data_dir, dataset), dataset=dataset)
    folder.claim_data(experiment.dataset.facts(), ("classes",))
    with contextlib.closing(Checkpoints(folder.checkpoints)) as checkpoints:
        yield SavedRun(settings, experiment, checkpoints)


def _here(
    settings: Mapping[str, Any], data_dir: str | None, dataset: data.Dataset | None
) -> dict[str, Any]:
    """A configuration for evaluation on the devices and data that there are: batches that these
    divide and fill, the data where they lie, and the test set, whatever the run was judged by."""
    count = jax.device_count()
    here: dict[str, Any] = dict(settings)
    for group in ("train", "eval"):
        size = here[group]["batch_size"]
        if dataset is not None:
            size = min(size, len(dataset.train))
        here[group] = {**here[group], "batch_size": max(count, size - size % count)}
    here["data"] = {**here["data"], "holdout": 0}
    if data_dir is not None:
        path = folder_of(here["data"]["name"], "")
        if path is not None and path.is_absolute():  # which data.dir does not move
            here["data"]["name"] = f"folder:{path.name}"
        here["data"]["dir"] = data_dir
    return here

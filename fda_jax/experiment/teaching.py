"""Where a run finds its teacher: a finished run whose answers it learns, too."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from fda_jax.data.specs import statistics, title
from fda_jax.experiment import saved
from fda_jax.experiment.folder import RunFolder
from fda_jax.experiment.inherit import FinishedRun
from fda_jax.experiment.setup import ConfigError, Experiment
from fda_jax.training.teacher import Teacher


def engage(experiment: Experiment, config: Mapping[str, Any], workdir: Path) -> Experiment:
    """The experiment with the teacher that train.teacher names; as it is without one.

    The teacher is the network of a run's last checkpoint, averaged where it was evaluated so, of
    any method and size. It sees the very images that the run trains on, and answers by inference.

    Args:
      experiment: of `setup.build`.
      config: of the run.
      workdir: its folder, beside which a relative path counts.

    Raises:
      ConfigError: as `find`.
      ValueError, CheckpointError: the run there cannot be read.
    """
    path = find(experiment, config, workdir)
    if path is None:
        return experiment
    with saved.opened(path, dataset=experiment.dataset) as trained:
        variables = trained.last().inference_variables()
        model = trained.experiment.model.clone(axis_name=None)
    train = config["train"]
    return dataclasses.replace(
        experiment,
        teacher=Teacher(model, train["teacher_weight"], train["teacher_temperature"]),
        knowledge=jax.device_get(variables),
    )


def find(experiment: Experiment, config: Mapping[str, Any], workdir: Path) -> Path | None:
    """The folder of a run's teacher, before anything is compiled; None without one.

    Args: as of `engage`.

    Raises:
      ConfigError: no finished run lies there, or one on data of other classes or normalised
        otherwise.
    """
    given = config["train"]["teacher"]
    if not given:
        return None
    run = FinishedRun("train.teacher", given, workdir)
    recorded = RunFolder(run.place(), is_writer=False).read("dataset.json") or {}
    ours = experiment.dataset.facts()["classes"]
    theirs = recorded.get("classes", ours)
    if theirs != ours:
        pairs = ((theirs, ours), (ours, theirs))
        only = [sorted({*one} - {*other})[:5] or f"{len(one)} in all" for one, other in pairs]
        raise ConfigError(
            f"train.teacher is {given!r}, but {run.path} was trained on other classes ({only[0]}) "
            f"than this run's data have ({only[1]}): set --config.train.teacher to a run on the "
            "same classes"
        )
    name = (RunFolder(run.path, is_writer=False).config() or config)["data"]["name"]
    data = experiment.dataset
    normalised = statistics(title(name), len(data.mean))
    if normalised != (tuple(data.mean), tuple(data.std)):
        raise ConfigError(
            f"train.teacher is {given!r}, but {run.path} was trained on {name}, whose pixels are "
            f"normalised by mean and deviation {normalised}, and this run's are by "
            f"{data.mean, data.std}: set --config.train.teacher to a run on data normalised alike"
        )
    return run.path

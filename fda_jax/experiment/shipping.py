"""From a run's folder to the file that is shipped, compared with the run on all test images."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import jax
import numpy as np

from fda_jax import __version__, deploy
from fda_jax.experiment import saved
from fda_jax.experiment.environment import label
from fda_jax.experiment.folder import RunFolder, WorkdirError
from fda_jax.experiment.saved import SavedRun
from fda_jax.experiment.setup import Experiment
from fda_jax.training import feed


@dataclasses.dataclass(frozen=True)
class Release:
    """A network in a file, and how it answers beside the run that it is of.

    Attributes:
      network: as it is read from the file.
      file_bytes: size of the file.
      examples: number of test images.
      accuracy: of the file's network on them, in [0, 1].
      run_accuracy: of the run's own network, likewise.
      same: number of test images to which both give the same class.
      largest_difference: between a logit of one and of the other.
    """

    network: deploy.PackedNetwork
    file_bytes: int
    examples: int
    accuracy: float
    run_accuracy: float
    same: int
    largest_difference: float


def release(
    workdir: str | Path,
    out: str | Path,
    *,
    checkpoint: str = "last",
    data_dir: str | None = None,
) -> Release:
    """Write the network of a run into one file, and compare its answers with the run's.

    Args:
      workdir: the run's folder; of a run in stages the last stage's network is taken.
      out: the file, which must not exist.
      checkpoint: "last", or "best", which is picked on the test set itself.
      data_dir: where the data lie now, in place of the configuration's data.dir.

    Returns:
      A `Release`.

    Raises:
      WorkdirError: there is no run or no such checkpoint in the folder, or the file exists or
        cannot be written.
      ValueError, CheckpointError: as `experiment.evaluate`; or a weight is not finite.
    """
    out = Path(out)
    if checkpoint not in saved.CHECKPOINTS:
        choices = " or ".join(saved.CHECKPOINTS)
        raise ValueError(f"checkpoint is {checkpoint!r}: use {choices}")
    if out.exists():
        raise WorkdirError(f"{out} exists already: choose another name, or remove it")
    if not out.parent.is_dir():
        raise WorkdirError(f"there is no folder {out.parent}: make it, or choose another")
    with saved.opened(None, workdir, data_dir=data_dir) as trained:
        step = trained.step(checkpoint)
        if step is None:
            raise WorkdirError(
                f"the folder {workdir} has no checkpoint {checkpoint!r}: use 'last', or train on"
            )
        variables = jax.device_get(trained.state(step).inference_variables())
        experiment, facts = trained.experiment, _facts(trained, Path(workdir), step)
    network = deploy.freeze(
        experiment.model,
        variables,
        experiment.dataset.image_shape_hwc,
        mean=experiment.preprocessing.mean,
        std=experiment.preprocessing.std,
        facts=facts,
    )
    try:
        network.save(out)
    except OSError as error:
        raise WorkdirError(f"{out} could not be written ({error.strerror or error})") from error
    return _compared(experiment, variables, deploy.load(out), out.stat().st_size)


def _facts(trained: SavedRun, workdir: Path, step: int) -> dict[str, object]:
    """What the file says of where it comes from."""
    settings = trained.settings
    surroundings = RunFolder(workdir, is_writer=False).read("environment.json")
    return {
        "network": settings["model"]["name"],
        "method": settings["method"]["name"],
        "dataset": settings["data"]["name"],
        "classes": list(trained.experiment.dataset.classes),
        "seed": settings["seed"],
        "step": step,
        "revision": label(surroundings or {}),
        "fda_jax": __version__,
        "jax": jax.__version__,
    }


def _compared(
    experiment: Experiment, variables: dict, network: deploy.PackedNetwork, file_bytes: int
) -> Release:
    @jax.jit
    def of_run(variables: dict, images: jax.Array) -> jax.Array:
        inputs = experiment.preprocessing.evaluate(images)
        return cast(jax.Array, experiment.model.apply(variables, inputs))

    examples = correct = run_correct = same = 0
    largest = 0.0
    for images, labels in _test_batches(experiment):
        shipped, own = np.asarray(network(images)), np.asarray(of_run(variables, images))
        known = labels >= 0  # the last batch is filled up
        answer, own_answer = shipped.argmax(axis=1), own.argmax(axis=1)
        examples += int(known.sum())
        correct += int((answer == labels)[known].sum())
        run_correct += int((own_answer == labels)[known].sum())
        same += int((answer == own_answer)[known].sum())
        largest = max(largest, float(np.abs(shipped - own)[known].max()))
    return Release(
        network, file_bytes, examples, correct / examples, run_correct / examples, same, largest
    )


def _test_batches(experiment: Experiment) -> Iterator[tuple[jax.Array, np.ndarray]]:
    """Images and labels of every batch of the test set; -1 is the label of what fills the last."""
    feeder = feed.Feeder(experiment.dataset.test, seed=experiment.seed, train=False)
    for item in feeder.feeds(feed.eval_chunks(experiment.plan)):
        rows = dataclasses.replace(item, indices=item.indices[:, None])
        images, labels = rows.examples_of(0)
        yield images, np.where(item.indices.reshape(-1) >= 0, np.asarray(labels), -1)

"""One experiment, from configuration to result; reads like a paragraph."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from fda_jax.experiment import setup
from fda_jax.experiment.environment import environment
from fda_jax.experiment.folder import RunFolder, WorkdirError
from fda_jax.experiment.logs import duration
from fda_jax.experiment.loop import Evaluator, Stop, Trainer, best_row, make_terminal, start
from fda_jax.training import devices
from fda_jax.training.checkpoints import Checkpoints


def train(config: Mapping[str, Any], workdir: str | Path) -> dict[str, Any] | None:
    """Train as a configuration says, or go on where a stopped run of it stands.

    A run that was killed at any moment and started again ends with the same parameters and
    metrics, bit for bit, as one that was never stopped, on the same kind of device.

    Args:
      config: nested mapping, see configs/base.py.
      workdir: the run's folder; made if it is missing.

    Returns:
      The content of result.json, or None if SIGTERM stopped the run before its end.

    Raises:
      ValueError: the configuration or the data cannot run.
      WorkdirError: the folder cannot be used.
      CheckpointError: a checkpoint cannot be written or read.
      NonFiniteError: a loss or a gradient is not finite.
    """
    experiment = setup.build(config)
    folder = RunFolder(Path(workdir), is_writer=jax.process_index() == 0)
    folder.claim(config)
    finished = folder.read("result.json")
    if finished is not None:
        make_terminal(experiment).line(f"{folder.path} is finished already: {_summary(finished)}")
        return finished
    folder.write("environment.json", environment())
    checkpoints = Checkpoints(folder.checkpoints)
    try:
        with Stop() as stop:
            done = Trainer(experiment, folder, checkpoints).run(stop)
    finally:
        checkpoints.close()
    if not done:
        return None
    devices.wait_for_all("the metrics are written")
    result = _result(config, folder)
    folder.write("result.json", result)
    make_terminal(experiment).line(_summary(result))
    return result


def evaluate(config: Mapping[str, Any] | None, workdir: str | Path) -> dict[str, dict[str, float]]:
    """Evaluate the last and the best checkpoint of a run with pure 1-bit inference.

    Args:
      config: of the run, or None to take the one in the folder.
      workdir: the run's folder.

    Returns:
      {"last": {"step", "loss", "accuracy"}, "best": {...}}

    Raises:
      WorkdirError: there is no run, or no checkpoint, in the folder.
      ValueError, CheckpointError: as `train`.
    """
    folder = RunFolder(Path(workdir), is_writer=jax.process_index() == 0)
    recorded = folder.read("config.json")
    if recorded is None:
        raise WorkdirError(
            f"the folder {folder.path} holds no run (no config.json): give the --workdir of one"
        )
    if config is not None:
        folder.claim(config)
    experiment = setup.build(recorded if config is None else config)
    checkpoints = Checkpoints(folder.checkpoints)
    evaluator = Evaluator(experiment)
    progress = start(experiment)
    answers = {}
    for name, step in (("last", checkpoints.latest_step()), ("best", checkpoints.best_step())):
        if step is None:
            continue
        (state, _), _ = checkpoints.restore((progress.state, progress.totals), step)
        means = evaluator(devices.replicate(state)).means()
        answers[name] = {"step": step, **means}
        make_terminal(experiment).line(
            f"{name} checkpoint (step {step}): test loss {means['loss']:.4f} "
            f"accuracy {means['accuracy']:.2%}"
        )
    checkpoints.close()
    if not answers:
        raise WorkdirError(f"the folder {folder.path} has no checkpoint yet: train it first")
    return answers


def _result(config: Mapping[str, Any], folder: RunFolder) -> dict[str, Any]:
    rows = folder.metrics()
    last_train = [row for row in rows if row["split"] == "train"][-1]
    last_test = [row for row in rows if row["split"] == "test"][-1]
    best = best_row(rows)
    surroundings = folder.read("environment.json") or {}
    return {
        "method": config["method"]["name"],
        "model": config["model"]["name"],
        "dataset": config["data"]["name"],
        "config": dict(config),
        "seed": config["seed"],
        "last_test_accuracy": last_test["accuracy"],
        "last_test_loss": last_test["loss"],
        "best_test_accuracy": best["accuracy"],
        "best_epoch": best["epoch"],
        "epochs": last_train["epoch"],
        "steps": last_train["step"],
        "seconds": last_train["seconds"],
        "images_per_second": last_train["images_per_second"],
        "device": surroundings.get("device"),
        "devices": surroundings.get("devices"),
        "revision": surroundings.get("revision"),
        "dirty": surroundings.get("dirty"),
    }


def _summary(result: Mapping[str, Any]) -> str:
    return (
        f"test accuracy {result['last_test_accuracy']:.2%} after epoch {result['epochs']}, "
        f"best {result['best_test_accuracy']:.2%} at epoch {result['best_epoch']}; "
        f"{duration(result['seconds'])} of training"
    )

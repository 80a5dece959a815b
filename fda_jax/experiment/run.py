"""One experiment, from configuration to result; reads like a paragraph."""

import dataclasses
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np

from fda_jax.experiment import diagnose, setup
from fda_jax.experiment.environment import environment
from fda_jax.experiment.folder import RunFolder, WorkdirError
from fda_jax.experiment.logs import TensorBoard, Terminal, duration
from fda_jax.training import devices, feed
from fda_jax.training.checkpoints import Checkpoints
from fda_jax.training.metrics import Metrics
from fda_jax.training.state import TrainState, init_state
from fda_jax.training.step import Batch, make_eval_step, make_train_call, make_train_step

# What a key is for; each is folded into the root key, so no two uses share random numbers.
INIT, AUGMENT = 0, 1


@dataclasses.dataclass
class Progress:
    """Where a run stands.

    Attributes:
      state: of training.
      totals: training metrics of the epoch under way.
      seconds: training time so far, evaluation and compilation left out.
    """

    state: TrainState
    totals: Metrics
    seconds: float


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
        _terminal(experiment).line(f"{folder.path} is finished already: {_summary(finished)}")
        return finished
    folder.write("environment.json", environment())
    checkpoints = Checkpoints(folder.checkpoints)
    try:
        with _Stop() as stop:
            done = _Trainer(experiment, folder, checkpoints).run(stop)
    finally:
        checkpoints.close()
    if not done:
        return None
    result = _result(config, folder)
    folder.write("result.json", result)
    _terminal(experiment).line(_summary(result))
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
    evaluator = _Evaluator(experiment)
    progress = _start(experiment)
    answers = {}
    for name, step in (("last", checkpoints.latest_step()), ("best", checkpoints.best_step())):
        if step is None:
            continue
        (state, _), _ = checkpoints.restore((progress.state, progress.totals), step)
        means = evaluator(devices.replicate(state)).means()
        answers[name] = {"step": step, **means}
        _terminal(experiment).line(
            f"{name} checkpoint (step {step}): test loss {means['loss']:.4f} "
            f"accuracy {means['accuracy']:.2%}"
        )
    checkpoints.close()
    if not answers:
        raise WorkdirError(f"the folder {folder.path} has no checkpoint yet: train it first")
    return answers


class _Evaluator:
    """Accuracy and loss on the whole test set; compiled once."""

    def __init__(self, experiment: setup.Experiment) -> None:
        test = experiment.dataset.test
        step = make_eval_step(experiment.model, experiment.preprocessing, axis_name=devices.AXIS)
        axis = feed.axis(test)
        self._plan = experiment.plan
        self._feeder = feed.Feeder(test, seed=experiment.seed, train=False)
        self._step = devices.parallel(step, in_axes=(None, None, axis, axis, 0))

    def __call__(self, state: TrainState) -> Metrics:
        variables = state.inference_variables()
        totals = devices.replicate(Metrics.zero())
        for item in self._feeder.feeds(feed.eval_chunks(self._plan)):
            totals = self._step(variables, totals, item.images, item.labels, item.indices)
        return totals


class _Trainer:
    """The loop: calls, epochs, checkpoints."""

    def __init__(
        self, experiment: setup.Experiment, folder: RunFolder, checkpoints: Checkpoints
    ) -> None:
        self._experiment = experiment
        self._plan = experiment.plan
        self._folder = folder
        self._checkpoints = checkpoints
        self._evaluator = _Evaluator(experiment)
        self._terminal = _terminal(experiment)
        self._key = _key(experiment, AUGMENT)
        step = make_train_step(
            experiment.model,
            experiment.optimizer,
            experiment.preprocessing,
            total_steps=self._plan.total_steps,
            label_smoothing=experiment.label_smoothing,
            ema_decay=experiment.ema_decay,
            axis_name=devices.AXIS,
        )
        axis = feed.axis(experiment.dataset.train)
        self._call = devices.parallel(
            make_train_call(step, steps_per_call=self._plan.steps_per_call),
            in_axes=(None, None, axis, axis, 0, None, None),
            donate=(0, 1),
        )

    def run(self, stop: "_Stop") -> bool:
        """Train to the end; False if a signal asked to stop before it."""
        progress = self._restore()
        step = int(progress.state.step)
        self._folder.forget_after(step)
        board = TensorBoard(self._folder.path, step=step, is_writer=jax.process_index() == 0)
        self._greet(step)
        feeder = feed.Feeder(self._experiment.dataset.train, seed=self._experiment.seed, train=True)
        feeds = feeder.feeds(feed.train_chunks(self._plan, self._experiment.seed, step))
        compiled = False
        for call, item in zip(feed.calls(self._plan, step), feeds, strict=True):
            progress.seconds += self._advance(progress, call, item) * compiled
            compiled = True
            step = call.step + call.count
            epoch = self._plan.epoch_of_step(call.step)
            self._terminal.tick(epoch, step, progress.totals.means())
            if step == self._plan.end_of_epoch(epoch):
                self._finish_epoch(progress, epoch, board)
            if stop.asked and step < self._plan.total_steps:
                self._save(progress)
                self._terminal.line(
                    f"stopped by a signal after step {step} of {self._plan.total_steps}, "
                    "checkpoint saved: the same command goes on from here"
                )
                break
        board.close()
        return step == self._plan.total_steps

    def _advance(self, progress: Progress, call: feed.Call, item: feed.Feed) -> float:
        """Run one compiled call; its seconds."""
        start = time.monotonic()
        progress.state, progress.totals, health = self._call(
            progress.state,
            progress.totals,
            item.images,
            item.labels,
            item.indices,
            np.int32(call.count),
            self._key,
        )
        if not bool(health.is_finite()):
            self._fail(progress, call, item)
        return time.monotonic() - start

    def _finish_epoch(self, progress: Progress, epoch: int, board: TensorBoard) -> None:
        """Evaluate, log and save at the end of an epoch."""
        plan, state = self._plan, progress.state
        step = int(state.step)
        last = epoch == plan.epochs
        train_means = progress.totals.means()
        rate = step * plan.batch_size / progress.seconds if progress.seconds else 0.0
        shared = {"step": step, "epoch": epoch}
        rows: list[dict[str, Any]] = [
            {
                **shared,
                "split": "train",
                **train_means,
                "learning_rate": float(np.asarray(self._experiment.schedule(step - 1))),
                "progress": (step - 1) / plan.total_steps,
                "seconds": progress.seconds,
                "images_per_second": rate,
            }
        ]
        test_means = None
        new_best = None
        if last or epoch % plan.eval_every_epochs == 0:
            test_means = self._evaluator(state).means()
            rows.append({**shared, "split": "test", **test_means})
            if test_means["accuracy"] > _best(self._folder.metrics())["accuracy"]:
                new_best = test_means["accuracy"]
        self._folder.append_metrics(*rows)
        for row in rows:
            board.write(row)
        self._terminal.epoch(epoch, plan.epochs, train_means, test_means, step, rate)
        progress.totals = devices.replicate(Metrics.zero())
        if last or new_best is not None or epoch % plan.checkpoint_every_epochs == 0:
            self._save(progress, new_best=new_best)

    def _save(self, progress: Progress, *, new_best: float | None = None) -> None:
        self._checkpoints.save(
            int(progress.state.step),
            (progress.state, progress.totals),
            {"seconds": progress.seconds},
            new_best=new_best,
        )

    def _restore(self) -> Progress:
        """The newest checkpoint, or the start; on the devices."""
        progress = _start(self._experiment)
        latest = self._checkpoints.latest_step()
        if latest is not None:
            like = (progress.state, progress.totals)
            (state, totals), notes = self._checkpoints.restore(like, latest)
            progress = Progress(state, totals, notes["seconds"])
        progress.state, progress.totals = devices.replicate((progress.state, progress.totals))
        return progress

    def _greet(self, step: int) -> None:
        experiment, plan = self._experiment, self._plan
        self._terminal.line(
            f"{experiment.dataset.name}: {plan.num_train:,} training and {plan.num_test:,} test "
            f"images; {plan.epochs} epochs of {plan.total_steps / plan.epochs:g} steps; "
            f"{plan.num_devices} {jax.devices()[0].device_kind} device(s); run in "
            f"{self._folder.path}"
        )
        if step:
            self._terminal.line(f"going on from step {step} of {plan.total_steps}")

    def _fail(self, progress: Progress, call: feed.Call, item: feed.Feed) -> None:
        """Say which step and layer gave a number that is not finite, and stop."""
        step = int(progress.state.step)
        where = diagnose.describe(
            self._experiment.model.clone(axis_name=None),
            self._experiment.preprocessing,
            jax.device_get(progress.state),
            Batch(*item.examples_of(step - call.step)),
            self._key,
            total_steps=self._plan.total_steps,
        )
        kept = self._checkpoints.latest_step()
        raise diagnose.NonFiniteError(
            f"the loss or gradient of step {step + 1} (epoch {self._plan.epoch_of_step(step)}) is "
            f"not finite: {where}. The step was not applied; "
            + (
                f"the checkpoint of step {kept} is kept. "
                if kept is not None
                else "there was no checkpoint yet. "
            )
            + diagnose.ADVICE
        )


class _Stop:
    """Turns SIGTERM and the first Ctrl-C into a request to stop after the call under way."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "_Stop":
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._ask)
            except ValueError:  # not the main thread, where a notebook may run us
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self._before[signal.Signals(number)])


def _terminal(experiment: setup.Experiment) -> Terminal:
    return Terminal(experiment.plan.total_steps, is_writer=jax.process_index() == 0)


def _key(experiment: setup.Experiment, purpose: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(experiment.seed), purpose)


def _start(experiment: setup.Experiment) -> Progress:
    state = init_state(
        experiment.model,
        experiment.optimizer,
        _key(experiment, INIT),
        experiment.dataset.image_shape_hwc,
        with_ema=experiment.ema_decay > 0,
    )
    return Progress(state, Metrics.zero(), 0.0)


def _best(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The first test row of the highest accuracy."""
    tests = [row for row in rows if row["split"] == "test"]
    return max(tests, key=lambda row: row["accuracy"], default={"accuracy": -1.0})


def _result(config: Mapping[str, Any], folder: RunFolder) -> dict[str, Any]:
    rows = folder.metrics()
    last_train = [row for row in rows if row["split"] == "train"][-1]
    last_test = [row for row in rows if row["split"] == "test"][-1]
    best = _best(rows)
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

"""A run beside the program that trains it, and the loop of a run that is trained alone."""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import jax
import numpy as np

from fda_jax import data
from fda_jax.experiment import diagnose
from fda_jax.experiment.folder import RunFolder
from fda_jax.experiment.inherit import Predecessor
from fda_jax.experiment.logs import TensorBoard, Terminal
from fda_jax.experiment.setup import ConfigError, Experiment
from fda_jax.training import devices, feed
from fda_jax.training.checkpoints import Checkpoints
from fda_jax.training.flips import Signs
from fda_jax.training.metrics import TOP5_CLASSES, Metrics
from fda_jax.training.state import TrainState, init_state
from fda_jax.training.step import Batch, Health, make_eval_step, make_train_call, make_train_step

# What a key is for; each is folded into the root key, so no two uses share random numbers.
INIT, AUGMENT, PROBE = 0, 1, 2
# Seconds within which several signals ask for one thing.
ONE_REQUEST = 1.0


@dataclasses.dataclass
class Progress:
    """Where a run stands.

    Attributes:
      state: of training.
      totals: training metrics of the epoch under way.
      signs: of the binary weights at the end of the epoch before; None where there are none, or
        nobody asks.
      seconds: training time so far, with the wait for data; evaluation, diagnosis and compilation
        left out.
      timed_steps: that it holds: all but those of each start's first call, which compiles.
    """

    state: TrainState
    totals: Metrics
    signs: Signs | None
    seconds: float = 0.0
    timed_steps: int = 0

    def time(self, seconds: float, steps: int) -> None:
        """Add a call that did not compile."""
        self.seconds += seconds
        self.timed_steps += steps

    def arrays(self) -> tuple[TrainState, Metrics, Signs | None]:
        """What a checkpoint holds."""
        return self.state, self.totals, self.signs


class Evaluator:
    """Accuracy and loss on all of what a run is judged by; compiled once."""

    def __init__(self, experiment: Experiment) -> None:
        test = experiment.dataset.test
        step = make_eval_step(experiment.model, experiment.preprocessing, axis_name=devices.AXIS)
        axis = feed.axis(test)
        self._plan = experiment.plan
        self._zero = Metrics.zero(top5=experiment.dataset.num_classes >= TOP5_CLASSES)
        self._feeder = feed.Feeder(test, seed=experiment.seed, train=False)
        self._step = devices.parallel(step, in_axes=(None, None, axis, axis, 0))

    def __call__(self, state: TrainState) -> Metrics:
        """The metrics of these examples, each counted once."""
        variables = state.inference_variables()
        totals = devices.replicate(self._zero)
        for item in self._feeder.feeds(feed.eval_chunks(self._plan)):
            totals = self._step(variables, totals, item.images, item.labels, item.indices)
        return totals


class Lane:
    """A run beside the program that trains it: where it starts, what it logs, saves and says.

    Args:
      experiment: what is trained.
      folder: where the metrics go.
      checkpoints: of the run, from the newest of which it goes on.
      predecessor: where the run starts if it has no checkpoint yet; None for random weights.
      evaluator: of the same network and data, where several runs share one; None makes one.
      name: stands before what the run says on the terminal; "" for nothing.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        checkpoints: Checkpoints,
        predecessor: Predecessor | None = None,
        *,
        evaluator: Evaluator | None = None,
        name: str = "",
    ) -> None:
        self.experiment = experiment
        self.folder = folder
        self.terminal = make_terminal(experiment, name)
        self._predecessor = predecessor
        self._plan = experiment.plan
        self._checkpoints = checkpoints
        self._evaluator = Evaluator(experiment) if evaluator is None else evaluator
        self._rate = jax.jit(experiment.schedule)
        self._board: TensorBoard | None = None

    @contextlib.contextmanager
    def opened(self) -> Iterator[Progress]:
        """Go to the newest checkpoint or the start, and keep the event file open from there on.

        Raises:
          WorkdirError: the data are not those that the run began with.
        """
        self.folder.claim_data(self.experiment.dataset.facts())
        progress = self.restore()
        step = int(progress.state.step)
        self.folder.forget_after(step)
        self._greet(step)
        board = TensorBoard(self.folder.path, step=step, is_writer=jax.process_index() == 0)
        self._board = board
        with contextlib.closing(board):
            yield progress

    def restore(self) -> Progress:
        """The newest checkpoint, or the start; on the devices."""
        latest = self._checkpoints.latest_step()
        values = None
        if self._predecessor is not None and latest is None:
            values = self._predecessor.values(self.experiment)
        progress = start(self.experiment, values)
        if latest is not None:
            arrays, notes = self._checkpoints.restore(progress.arrays(), latest)
            timed_steps = notes.get("timed_steps", latest)  # which older checkpoints lack
            progress = Progress(*arrays, seconds=notes["seconds"], timed_steps=timed_steps)
        progress.state, progress.totals = devices.replicate((progress.state, progress.totals))
        return progress

    def log(self, *rows: Mapping[str, Any]) -> None:
        """Write rows of metrics.jsonl, also for TensorBoard."""
        self.folder.append_metrics(*rows)
        for row in rows:
            if self._board is not None:
                self._board.write(row)

    def finish_epoch(self, progress: Progress, epoch: int) -> None:
        """Evaluate, log and save at the end of an epoch; the totals begin anew."""
        plan, state = self._plan, progress.state
        step = int(state.step)
        last = epoch == plan.epochs
        train_means = progress.totals.means()
        timed = progress.timed_steps * plan.batch_size
        rate = timed / progress.seconds if progress.seconds else 0.0
        shared = {"step": step, "epoch": epoch}
        rows: list[dict[str, Any]] = [
            {
                **shared,
                "split": "train",
                **train_means,
                **self._flips(progress),
                "learning_rate": float(self._rate(step - 1)),
                "progress": (step - 1) / plan.total_steps,
                "seconds": progress.seconds,
                "timed_steps": progress.timed_steps,
                "images_per_second": rate,
            }
        ]
        test_means = None
        new_best = None
        if last or epoch % plan.eval_every_epochs == 0:
            test_means = self._evaluator(state).means()
            rows.append({**shared, "split": self.experiment.dataset.eval_split, **test_means})
            if test_means["accuracy"] > best_row(self.folder.metrics())["accuracy"]:
                new_best = test_means["accuracy"]
        self.log(*rows)
        progress.totals = devices.replicate(Metrics.zero())
        if last or new_best is not None or epoch % plan.checkpoint_every_epochs == 0:
            self._save(progress, new_best=new_best)
        self.terminal.epoch(epoch, plan.epochs, train_means, test_means, step, rate)

    def stop(self, progress: Progress) -> None:
        """Save where the run stands, so that it goes on from here."""
        self._save(progress)
        self.terminal.line(
            f"stopped by a signal after step {int(progress.state.step)} of "
            f"{self._plan.total_steps}, checkpoint saved: the same command goes on from here"
        )

    def fail(self, progress: Progress, call: feed.Call, item: feed.Feed) -> None:
        """Say which step and layer gave a number that is not finite, and stop.

        Args:
          progress: with the last good state.
          call: the one that ended before its end.
          item: what it read.

        Raises:
          NonFiniteError: always.
        """
        step = int(progress.state.step)
        where = diagnose.describe(
            self.experiment,
            jax.device_get(progress.state),
            Batch(*item.examples_of(step - call.step)),
            augment_key(self.experiment),
        )
        kept = self._checkpoints.latest_step()
        message = (
            f"the loss or gradient of step {step + 1} (epoch {self._plan.epoch_of_step(step)}) is "
            f"not finite: {where}. The step was not applied; "
            + (
                f"the checkpoint of step {kept} is kept. "
                if kept is not None
                else "there was no checkpoint yet. "
            )
            + diagnose.ADVICE
        )
        self.folder.write("failure.json", {"step": step, "message": message})
        raise diagnose.NonFiniteError(message)

    def _flips(self, progress: Progress) -> dict[str, float]:
        """The share of binary weights that flipped in the epoch; the next is measured from here."""
        before = progress.signs
        progress.signs = _signs(self.experiment, progress.state)
        if before is None or progress.signs is None:
            return {}
        return {"flips": progress.signs.share_flipped_since(before)}

    def _save(self, progress: Progress, *, new_best: float | None = None) -> None:
        self._checkpoints.save(
            int(progress.state.step),
            progress.arrays(),
            {"seconds": progress.seconds, "timed_steps": progress.timed_steps},
            new_best=new_best,
        )

    def _greet(self, step: int) -> None:
        experiment, plan = self.experiment, self._plan
        self.terminal.line(
            f"{experiment.dataset.name}: {plan.num_train:,} training and {plan.num_test:,} "
            f"{experiment.dataset.eval_split} images; {plan.epochs} epochs of "
            f"{plan.total_steps / plan.epochs:g} steps; {plan.num_devices} "
            f"{jax.devices()[0].device_kind} device(s); run in {self.folder.path}"
        )
        if experiment.teacher is not None:
            self.terminal.line(f"learning the answers of {experiment.teacher_run}")
        if step:
            self.terminal.line(f"going on from step {step} of {plan.total_steps}")
        elif self._predecessor is not None:
            self.terminal.line(self._predecessor.told(experiment))


class Trainer:
    """The loop of a run that is trained alone: calls, epochs, checkpoints.

    Args:
      lane: the run.
    """

    def __init__(self, lane: Lane) -> None:
        experiment = lane.experiment
        self._lane = lane
        self._experiment = experiment
        self._plan = experiment.plan
        self._call = make_call(experiment)
        self._watch = None
        if self._plan.diagnose_every_steps:
            keys = augment_key(experiment), _key(experiment, PROBE)
            self._watch = diagnose.Watch(experiment, *keys)

    def run(self, stop: "Stop") -> bool:
        """Train to the end; False if a signal asked to stop before it."""
        with self._lane.opened() as progress:
            split, seed = self._experiment.dataset.train, self._experiment.seed
            feeds = feed.Feeder(split, seed=seed, train=True).feeds(
                feed.train_chunks(self._plan, seed, int(progress.state.step))
            )
            with contextlib.closing(feeds):
                return self._loop(progress, feeds, stop)

    def _loop(self, progress: Progress, feeds: Iterator[feed.Feed], stop: "Stop") -> bool:
        compiled = False
        for call in feed.calls(self._plan, int(progress.state.step)):
            start = time.monotonic()
            item = next(feeds)
            waited = time.monotonic() - start
            if self._watch is not None and self._plan.is_diagnosed(call.step):
                self._lane.log(self._watch(progress.state, call.step, item))
            seconds = waited + self._advance(progress, call, item)
            if compiled:
                progress.time(seconds, call.count)
            compiled = True
            step = call.step + call.count
            epoch = self._plan.epoch_of_step(call.step)
            self._lane.terminal.tick(epoch, step, progress.totals.means())
            if step == self._plan.end_of_epoch(epoch):
                self._lane.finish_epoch(progress, epoch)
            if step < self._plan.total_steps and devices.any_process(stop.asked):
                self._lane.stop(progress)
                return False
        return True

    def _advance(self, progress: Progress, call: feed.Call, item: feed.Feed) -> float:
        """Run one compiled call; its seconds."""
        start = time.monotonic()
        progress.state, progress.totals, health = self._call(
            progress.state, progress.totals, call, item
        )
        if not bool(health.is_finite()):
            self._lane.fail(progress, call, item)
        return time.monotonic() - start


class Stop:
    """Turns SIGTERM or Ctrl-C into a request to stop after the call under way.

    A further one ends the process at once; not within a second of the first, for whoever ends a
    group of processes, as `timeout` does, may send each several.
    """

    def __init__(self) -> None:
        self.asked = False
        self._since = math.inf
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Stop":
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
        self._since = min(self._since, time.monotonic())
        if time.monotonic() - self._since > ONE_REQUEST:
            signal.signal(number, self._before[signal.Signals(number)])
            signal.raise_signal(number)


def make_call(experiment: Experiment) -> Callable[..., tuple[TrainState, Metrics, Health]]:
    """Compile the training steps of an experiment, for all devices.

    Args:
      experiment: what is trained.

    Returns:
      (state, totals, call, feed) -> (state, totals, health), see `step.make_train_call`; the
      memory of the first two is taken over.
    """
    key, axis = augment_key(experiment), feed.axis(experiment.dataset.train)
    run = devices.parallel(
        train_call(experiment),
        in_axes=(None, None, axis, axis, 0, None, None, None),
        donate=(0, 1),
    )
    knowledge = devices.replicate(experiment.knowledge)

    def advance(state: TrainState, totals: Metrics, call: feed.Call, item: feed.Feed) -> Any:
        count = np.int32(call.count)
        return run(state, totals, item.images, item.labels, item.indices, count, key, knowledge)

    return advance


def train_call(experiment: Experiment) -> Callable[..., Any]:
    """The function of `step.make_train_call` for an experiment on one device."""
    plan = experiment.plan
    if experiment.teacher_run and experiment.teacher is None:
        raise ConfigError(
            f"train.teacher is {experiment.teacher_run!r}, but only a run in a folder has one: use "
            'experiment.train, or set train.teacher to ""'
        )
    step = make_train_step(
        experiment.model,
        experiment.optimizer,
        experiment.preprocessing,
        total_steps=plan.total_steps,
        label_smoothing=experiment.label_smoothing,
        ema_decay=experiment.ema_decay,
        axis_name=devices.AXIS,
        teacher=experiment.teacher,
    )
    return make_train_call(step, steps_per_call=plan.steps_per_call)


def make_terminal(experiment: Experiment, name: str = "") -> Terminal:
    """The terminal of this process; silent in all processes but the first."""
    return Terminal(
        experiment.plan.total_steps,
        is_writer=jax.process_index() == 0,
        name=name,
        eval_split=experiment.dataset.eval_split,
    )


def augment_key(experiment: Experiment) -> jax.Array:
    """Root of the random numbers of a run's augmentation."""
    return _key(experiment, AUGMENT)


def _key(experiment: Experiment, purpose: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(experiment.seed), purpose)


def start(experiment: Experiment, values: Mapping[str, Any] | None = None) -> Progress:
    """Before the first step: no metrics, no time, and weights of a seed or the values given."""
    state = init_state(
        experiment.model,
        experiment.optimizer,
        _key(experiment, INIT),
        experiment.dataset.image_shape_hwc,
        with_ema=experiment.ema_decay > 0,
        values=values,
    )
    return Progress(state, Metrics.zero(), _signs(experiment, state))


def _signs(experiment: Experiment, state: TrainState) -> Signs | None:
    if experiment.signs is None:
        return None
    return experiment.signs(state.inference_variables())


def best_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The first row of an evaluation with the highest accuracy."""
    tests = [row for row in rows if row["split"] in data.EVAL_SPLITS]
    return max(tests, key=lambda row: row["accuracy"], default={"accuracy": -1.0})

"""Training in memory, for notebooks: no folder, no checkpoint, no word on the terminal."""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np

from fda_jax.experiment.diagnose import ADVICE, NonFiniteError
from fda_jax.experiment.loop import Evaluator, make_call, start
from fda_jax.experiment.setup import Experiment
from fda_jax.training import devices, feed
from fda_jax.training.metrics import Metrics
from fda_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Epoch:
    """Where training stands at the end of an epoch.

    Attributes:
      number: 1, 2, ...; 0 before the first step.
      state: host arrays, which later epochs leave alone.
      train: mean `loss` in nats and `accuracy` in [0, 1] over the epoch; NaN at 0.
      test: the same over the test set, by pure 1-bit inference; None where the plan skips it.
    """

    number: int
    state: TrainState
    train: dict[str, float]
    test: dict[str, float] | None


def epochs(experiment: Experiment) -> Iterator[Epoch]:
    """Train from random weights, by the steps of `experiment.train`, bit for bit.

    Args:
      experiment: of `experiment.build`, on one process. `train.init_from` and `train.teacher` are
        for runs in folders.

    Yields:
      An `Epoch` before the first step and after each epoch.

    Raises:
      ConfigError: the experiment asks for a teacher.
      NonFiniteError: a loss or a gradient is not finite.
    """
    plan, advance, evaluate = experiment.plan, make_call(experiment), Evaluator(experiment)
    state, totals = devices.replicate(start(experiment).arrays()[:2])
    yield Epoch(0, _host(state), totals.means(), evaluate(state).means())
    split = experiment.dataset.train
    feeds = feed.Feeder(split, seed=experiment.seed, train=True).feeds(
        feed.train_chunks(plan, experiment.seed, 0)
    )
    for call, item in zip(feed.calls(plan, 0), feeds, strict=True):
        state, totals, health = advance(state, totals, call, item)
        if not bool(health.is_finite()):
            raise NonFiniteError(
                f"the loss or gradient of step {int(state.step) + 1} is not finite. {ADVICE}"
            )
        number, step = plan.epoch_of_step(call.step), call.step + call.count
        if step == plan.end_of_epoch(number):
            tested = number == plan.epochs or number % plan.eval_every_epochs == 0
            test = evaluate(state).means() if tested else None
            yield Epoch(number, _host(state), totals.means(), test)
            totals = devices.replicate(Metrics.zero())


def _host(state: TrainState) -> TrainState:
    # Copies: a view of device memory would change under the next step.
    return jax.tree.map(np.array, state)

"""What a running training looks like inside, and which layer first gave a number not finite."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fda_jax.experiment.setup import Experiment
from fda_jax.training import devices, feed
from fda_jax.training.diagnostics import cosine, make_diagnosis, make_probe
from fda_jax.training.state import TrainState
from fda_jax.training.step import Batch, loss_and_gradient, make_update

ADVICE = (
    "Try a smaller --config.optimizer.learning_rate, --config.optimizer.clip_norm=1, "
    "--config.optimizer.warmup_epochs=5, or an estimator with a window"
)


class NonFiniteError(RuntimeError):
    """A loss or gradient is not finite; the message names the step, the layer and what to try."""


class Watch:
    """Looks at steps before they are taken, in two programs of its own; each is compiled once.

    Args:
      experiment: what is trained.
      augment_key: of the training calls.
      probe_key: root of the probes' random sets.
    """

    def __init__(
        self, experiment: Experiment, augment_key: jax.Array, probe_key: jax.Array
    ) -> None:
        self._plan = experiment.plan
        self._probes = experiment.probes
        self._keys = augment_key, probe_key
        settings = {
            "total_steps": experiment.plan.total_steps,
            "label_smoothing": experiment.label_smoothing,
            "axis_name": devices.AXIS,
            "teacher": experiment.teacher,
        }
        update = make_update(experiment.optimizer, ema_decay=0.0)
        diagnosis = make_diagnosis(experiment.model, update, experiment.preprocessing, **settings)
        probe = make_probe(experiment.model, experiment.preprocessing, **settings)
        axis = feed.axis(experiment.dataset.train)
        axes = (None, axis, axis, 0, None)
        self._diagnose = devices.parallel(diagnosis, in_axes=(*axes, None))
        self._probe = devices.parallel(probe, in_axes=(*axes, None, None, None))
        self._knowledge = devices.replicate(experiment.knowledge)

    def __call__(self, state: TrainState, step: int, item: feed.Feed) -> dict[str, Any]:
        """The row of metrics.jsonl of the first step of a call.

        Args:
          state: before the step.
          step: number of finished steps.
          item: what the call reads.
        """
        augment_key, probe_key = self._keys
        arguments = (state, item.images, item.labels, item.indices, augment_key)
        diagnosis, slopes = self._diagnose(*arguments, self._knowledge)
        row = {
            "step": step + 1,
            "epoch": self._plan.epoch_of_step(step),
            "split": "diagnostics",
            **diagnosis.numbers(),
        }
        if not slopes or not self._probes:
            return row
        key = jax.random.fold_in(probe_key, step)
        pairs = [
            self._probe(*arguments, slopes, jax.random.fold_in(key, number), self._knowledge)
            for number in range(self._probes)
        ]
        value, error = cosine(*np.asarray(jax.device_get(pairs), np.float64).T)
        return row if np.isnan(value) else {**row, "cosine": value, "cosine_error": error}


def describe(experiment: Experiment, state: TrainState, batch: Batch, key: jax.Array) -> str:
    """Repeat a failed step without compiling it, and say where the trouble starts.

    Args:
      experiment: what is trained.
      state: the last good state, on the host.
      batch: the examples of the failed step.
      key: of the step's augmentation.

    Returns:
      One sentence that names the first layer in the direction of the computation: of a parameter,
      else of an output in the forward pass, else of a gradient in the backward pass.
    """
    model, preprocessing = experiment.model.clone(axis_name=None), experiment.preprocessing
    total_steps, teacher = experiment.plan.total_steps, experiment.teacher
    for path, leaf in _leaves(state.params):
        if not _is_finite(leaf):
            return f"the parameter {path} is not finite already"
    images = preprocessing.train(
        batch.images, key, state.step * len(batch.labels) + jnp.arange(len(batch.labels))
    )
    _, captured = model.apply(
        {"params": state.params, "batch_stats": state.batch_stats},
        images,
        train=True,
        progress=state.step / total_steps,
        mutable=["batch_stats", "intermediates"],
        capture_intermediates=True,
    )
    # Outside jit the outputs come in the order in which they were computed.
    outputs = list(_leaves(captured["intermediates"]))
    for path, leaf in outputs:
        if not _is_finite(leaf):
            return f"the first output that is not finite is that of {_layer(path)}"
    if teacher is not None and not _is_finite(teacher.logits(experiment.knowledge, images)):
        return "every output is finite, but an answer of the teacher (train.teacher) is not"
    gradient = loss_and_gradient(
        model,
        preprocessing,
        total_steps=total_steps,
        label_smoothing=experiment.label_smoothing,
        axis_name=None,
        teacher=teacher,
    )
    _, grads = gradient(state, batch, key, experiment.knowledge)
    order = [_layer(path) for path, _ in outputs]
    broken = [path for path, leaf in _leaves(grads) if not _is_finite(leaf)]
    if not broken:
        return "the loss or the gradient's norm overflows although every layer's part is finite"

    def depth(path: str) -> int:
        owners = [i for i, layer in enumerate(order) if path.startswith(layer + "/")]
        return min(owners, default=-1)

    return (
        "every output is finite, and on the way back the first gradient that is not belongs to "
        f"{max(broken, key=depth)}"
    )


def _is_finite(array: jax.Array) -> bool:
    return bool(jnp.all(jnp.isfinite(array)))


def _layer(path: str) -> str:
    return path.rsplit("/__call__", 1)[0] or "the whole network"


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings with their paths, in the mappings' own order."""
    for name, value in tree.items():
        path = f"{prefix}/{name}" if prefix else name
        if isinstance(value, Mapping):
            yield from _leaves(value, path)
        else:
            for leaf in jax.tree.leaves(value):
                yield path, leaf

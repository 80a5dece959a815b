"""One training step and one evaluation step, pure: the same under jit, vmap and pmap."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from fda_jax import data
from fda_jax.layers import Quantizer, make_method, quantize_weights
from fda_jax.training.losses import cross_entropy
from fda_jax.training.metrics import Metrics
from fda_jax.training.packing import Packed, pack_parameters, pack_statistics, unpacked
from fda_jax.training.state import TrainState
from fda_jax.training.teacher import Teacher


@flax.struct.dataclass
class Batch:
    """Examples of one step on one device.

    Attributes:
      images: uint8 (batch, height, width, channels).
      labels: int32 (batch,); -1 marks padding, which evaluation leaves out.
    """

    images: jax.Array
    labels: jax.Array


@flax.struct.dataclass
class Health:
    """What tells whether a step may be applied.

    Attributes:
      loss: float32 scalar, mean loss of the step in nats, penalties included.
      grad_norm: float32 scalar, global norm of the gradient before clipping.
    """

    loss: jax.Array
    grad_norm: jax.Array

    @jax.jit
    def is_finite(self) -> jax.Array:
        """Whether both are finite, as a bool scalar."""
        return jnp.isfinite(self.loss) & jnp.isfinite(self.grad_norm)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From stored pixels to the network's input, inside the compiled step.

    Attributes:
      mean: of each channel, in units where 255 is 1.
      std: of each channel, likewise.
      crop_px: width in pixels of the black border from which a crop of the old size is cut.
      flip: mirror half of the images left to right.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_px: int
    flip: bool

    def train(self, images: jax.Array, key: jax.Array, positions: jax.Array) -> jax.Array:
        """Augmented, normalised float32 images; each depends on (key, position) alone."""
        images = data.crop_and_flip(images, key, positions, pad_px=self.crop_px, flip=self.flip)
        return data.normalize(images, self.mean, self.std)

    def evaluate(self, images: jax.Array) -> jax.Array:
        """Normalised float32 images."""
        return data.normalize(images, self.mean, self.std)


TrainStep = Callable[..., tuple[TrainState, Metrics, Health]]


def stream_positions(step: jax.Array, size: int, axis_name: str | None) -> jax.Array:
    """Positions in the training stream of the `size` examples that this device sees in a step.

    They seed an example's augmentation, so that it does not depend on the number of devices.

    Args:
      step: int32 scalar, number of finished steps.
      size: examples of the step on one device.
      axis_name: mapped axis of several devices, or None.

    Returns:
      int32 (size,).
    """
    device = 0 if axis_name is None else jax.lax.axis_index(axis_name)
    devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    return (step * devices + device) * size + jnp.arange(size)


def make_loss(
    model: nn.Module,
    *,
    total_steps: int,
    label_smoothing: float,
    teacher: Teacher | None = None,
    collections: Sequence[str] = ("batch_stats", "penalties"),
) -> Callable[..., tuple[jax.Array, tuple[jax.Array, jax.Array, Mapping[str, Any]]]]:
    """Make the training loss of one device.

    Args:
      model: network.
      total_steps: length of the run: progress is step / total_steps.
      label_smoothing: see `losses.cross_entropy`.
      teacher: of whose answers the loss is, too; None for the labels alone.
      collections: that the network may change.

    Returns:
      (params, state, images, labels, wanted) -> (loss, (logits, losses, updates)): the mean loss of
      normalised images plus the penalties that the method's quantizers sow, and the changed
      collections. Of the state it reads step and statistics, not the parameters. wanted are the
      teacher's logits, needed where there is one.
    """

    quantizer = _weight_quantizer(model)

    def loss_fn(
        params: Any,
        state: TrainState,
        images: jax.Array,
        labels: jax.Array,
        wanted: jax.Array | None = None,
    ) -> tuple:
        progress = state.step / total_steps
        quantized: dict[str, Any] = {}
        if isinstance(params, Packed):
            params = params.tree()
            if quantizer is not None:
                quantized = quantize_weights(quantizer, params, progress)
        logits, updates = model.apply(
            {"params": params, "batch_stats": unpacked(state.batch_stats), **quantized},
            images,
            train=True,
            progress=progress,
            mutable=list(collections),
        )
        losses = cross_entropy(logits, labels, label_smoothing=label_smoothing)
        if teacher is not None:
            losses = teacher.losses(losses, logits, cast(jax.Array, wanted))
        penalty = sum(jax.tree.leaves(updates.get("penalties", {})), jnp.float32(0))
        return jnp.mean(losses) + penalty, (logits, losses, updates)

    return loss_fn


def loss_and_gradient(
    model: nn.Module,
    preprocessing: Preprocessing,
    *,
    total_steps: int,
    label_smoothing: float,
    axis_name: str | None,
    teacher: Teacher | None = None,
) -> Callable[..., Any]:
    """Make the function (state, batch, key, knowledge) -> ((loss, aux), gradient).

    aux is (logits, losses, updates), and the gradient is of this device's loss, see `make_loss`.
    knowledge holds the teacher's variables, where there is one.
    """
    loss = make_loss(
        model, total_steps=total_steps, label_smoothing=label_smoothing, teacher=teacher
    )

    def loss_fn(
        params: Any, state: TrainState, batch: Batch, key: jax.Array, knowledge: Any
    ) -> tuple:
        positions = stream_positions(state.step, len(batch.labels), axis_name)
        images = preprocessing.train(batch.images, key, positions)
        wanted = None if teacher is None else teacher.logits(knowledge, images)
        return loss(params, state, images, batch.labels, wanted)

    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    return lambda state, batch, key, knowledge=None: gradient(
        state.params, state, batch, key, knowledge
    )


def make_update(
    optimizer: optax.GradientTransformation, *, ema_decay: float
) -> Callable[[TrainState, Any, Any], TrainState]:
    """Make the function (state, gradient, batch_stats) -> the state after the optimizer's step.

    The optimizer sees parameters and gradient packed; the state that comes out is packed where the
    one that came in was.

    Args:
      optimizer: optax transform.
      ema_decay: see `make_train_step`.
    """

    def update(state: TrainState, grads: Any, batch_stats: Any) -> TrainState:
        before: Any = pack_parameters(state.params)
        gradient: Any = pack_parameters(grads)
        updates, opt_state = optimizer.update(gradient, state.opt_state, before)
        params: Any = optax.apply_updates(before, updates)
        if before is state.params:
            batch_stats = pack_statistics(batch_stats)
        else:
            params = unpacked(params)
        return TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=_average(state.ema, {"params": params, "batch_stats": batch_stats}, ema_decay),
        )

    return update


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    preprocessing: Preprocessing,
    *,
    total_steps: int,
    label_smoothing: float = 0.0,
    ema_decay: float = 0.0,
    axis_name: str | None = None,
    teacher: Teacher | None = None,
) -> TrainStep:
    """Make the training step of one device.

    Args:
      model: network; built with the same axis_name, so that batch statistics are synchronised.
      optimizer: optax transform.
      preprocessing: from stored pixels to the network's input.
      total_steps: length of the run: progress is step / total_steps.
      label_smoothing: see `losses.cross_entropy`.
      ema_decay: of the moving averages of parameters and statistics, in [0, 1); 0 for none.
      axis_name: mapped axis over which gradients and metrics are reduced, or None.
      teacher: see `make_loss`.

    Returns:
      (state, batch, key, knowledge) -> (new state, metrics over all devices, health). knowledge
      holds the teacher's variables, where there is one.
    """
    gradient_of = loss_and_gradient(
        model,
        preprocessing,
        total_steps=total_steps,
        label_smoothing=label_smoothing,
        axis_name=axis_name,
        teacher=teacher,
    )

    update = make_update(optimizer, ema_decay=ema_decay)

    def train_step(state: TrainState, batch: Batch, key: jax.Array, knowledge: Any = None) -> tuple:
        (loss, (logits, losses, changed)), grads = gradient_of(state, batch, key, knowledge)
        metrics = Metrics.of_batch(losses, logits, batch.labels)
        if axis_name is not None:
            loss, grads = jax.lax.pmean((loss, grads), axis_name)
            metrics = jax.lax.psum(metrics, axis_name)
        grads = pack_parameters(grads)
        new = update(state, grads, changed.get("batch_stats", {}))
        return new, metrics, Health(loss, optax.global_norm(grads))

    return train_step


def make_train_call(train_step: TrainStep, *, steps_per_call: int) -> Callable[..., Any]:
    """Make the function that runs up to `steps_per_call` steps in one compiled call.

    A step whose loss or gradient is not finite is not applied, and the call ends before it: the
    state that comes back is the last good one.

    Args:
      train_step: see `make_train_step`.
      steps_per_call: upper bound; 1 compiles no loop, which XLA's CPU backend needs to run
        convolutions at full speed.

    Returns:
      (state, totals, images, labels, indices (steps, batch), count, key, knowledge) -> (state,
      totals, health): runs the first `count` rows of indices into images and labels; knowledge is
      that of `make_train_step`.
    """

    def apply(
        state: TrainState, totals: Metrics, batch: Batch, key: jax.Array, knowledge: Any
    ) -> tuple:
        new, metrics, health = train_step(state, batch, key, knowledge)
        kept = jax.tree.map(
            lambda after, before: jnp.where(health.is_finite(), after, before),
            (new, totals.merge(metrics)),
            (state, totals),
        )
        return (*kept, health)

    def train_call(
        state: TrainState,
        totals: Metrics,
        images: jax.Array,
        labels: jax.Array,
        indices: jax.Array,
        count: jax.Array,
        key: jax.Array,
        knowledge: Any = None,
    ) -> tuple[TrainState, Metrics, Health]:
        def step_at(i: jax.Array | int, state: TrainState, totals: Metrics) -> tuple:
            batch = Batch(images[indices[i]], labels[indices[i]])
            return apply(state, totals, batch, key, knowledge)

        if steps_per_call == 1:
            return step_at(0, state, totals)
        # The state has not moved yet, so a health of zeros lets the loop begin.
        start = (jnp.int32(0), state.pack(), totals, Health(jnp.float32(0), jnp.float32(0)))
        _, state, totals, health = jax.lax.while_loop(
            lambda carry: (carry[0] < count) & carry[3].is_finite(),
            lambda carry: (carry[0] + 1, *step_at(carry[0], carry[1], carry[2])),
            start,
        )
        return state.unpack(), totals, health

    return train_call


def make_eval_step(
    model: nn.Module, preprocessing: Preprocessing, *, axis_name: str | None = None
) -> Callable[..., Metrics]:
    """Make the evaluation step: pure 1-bit inference on one batch.

    Args:
      model: network.
      preprocessing: from stored pixels to the network's input.
      axis_name: mapped axis over which metrics are summed, or None.

    Returns:
      (variables, totals, images, labels, indices (batch,)) -> totals with the batch merged in,
      top-5 answers where totals count them; an index below 0 is padding. The loss is the plain
      cross-entropy.
    """

    def eval_step(
        variables: dict[str, Any],
        totals: Metrics,
        images: jax.Array,
        labels: jax.Array,
        indices: jax.Array,
    ) -> Metrics:
        chosen = jnp.where(indices >= 0, labels[indices], -1)
        inputs = preprocessing.evaluate(images[indices])
        logits = cast(jax.Array, model.apply(variables, inputs, train=False))
        losses = cross_entropy(logits, chosen, label_smoothing=0.0)
        top5 = totals.correct_top5 is not None
        metrics = Metrics.of_batch(losses, logits, chosen, top5=top5)
        if axis_name is not None:
            metrics = jax.lax.psum(metrics, axis_name)
        return totals.merge(metrics)

    return eval_step


def _average(average: Any, value: Any, decay: float) -> Any:
    def moved(new: jax.Array, old: jax.Array) -> Any:
        is_real = jnp.issubdtype(new.dtype, jnp.floating)  # counts have no mean
        return optax.incremental_update(new, old, 1.0 - decay) if is_real else new

    return jax.tree.map(moved, value, average) if average else average


def _weight_quantizer(model: nn.Module) -> Quantizer | None:
    """What a network's layers quantize their weights with, where that is no module of its own."""
    method = getattr(model, "method", None)
    weight = None if method is None else make_method(method).weight
    return weight if isinstance(weight, Quantizer) else None

"""One step: the same on one device and on four, alone and in a loop; never applied when broken."""

import collections
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fda_jax.layers import BinaryConv, Method, Quantizer
from fda_jax.models.common import batch_norm
from fda_jax.ops import ClippedSTE
from fda_jax.training import devices, step
from fda_jax.training.metrics import Metrics
from fda_jax.training.state import init_state
from fda_jax.training.step import (
    Batch,
    Preprocessing,
    loss_and_gradient,
    make_eval_step,
    make_train_call,
    make_train_step,
)

SHAPE = (6, 6, 1)
BATCH = 16
PREPROCESSING = Preprocessing(mean=(0.5,), std=(0.25,), crop_px=1, flip=True)
OPTIMIZER = optax.sgd(0.05, 0.9)
EMA_DECAY = 0.75
# How often the call of so many steps was traced.
TRACES = collections.Counter()


class Tiny(nn.Module):
    """The smallest network with every part that training touches."""

    axis_name: str | None = None
    method: str | Method = "fda"

    @nn.compact
    def __call__(self, images, *, train=False, progress=1.0):
        norm = batch_norm(jnp.float32, self.axis_name, train=train)
        x = norm(name="norm1")(nn.Conv(4, (3, 3), name="stem")(images))
        x = BinaryConv(4, method=self.method, name="conv")(x, train=train, progress=progress)
        x = norm(name="norm2")(x)
        return nn.Dense(3, name="classifier")(x.mean(axis=(1, 2)))


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 64).astype(np.int32)
    # Noise, but for a column whose brightness tells the class.
    images = rng.integers(0, 256, (64, *SHAPE), dtype=np.uint8)
    images[:, :, 2:4, 0] = 100 * labels[:, None, None]
    return Batch(images, labels)


@functools.cache
def initial(method):
    model = Tiny(method=method)
    state = init_state(model, OPTIMIZER, jax.random.key(0), SHAPE, with_ema=True)
    return jax.device_get(state)


def start(axis_name=None, method="fda"):
    return Tiny(axis_name, method), jax.tree.map(jnp.asarray, initial(method))


def step_of(model, axis_name=None):
    return make_train_step(
        model, OPTIMIZER, PREPROCESSING, total_steps=10, ema_decay=EMA_DECAY, axis_name=axis_name
    )


@functools.cache
def compiled_call(steps_per_call):
    call = make_train_call(step_of(Tiny()), steps_per_call=steps_per_call)

    def counted(*args):
        TRACES[steps_per_call] += 1
        return call(*args)

    return jax.jit(counted)


def take_step(state, examples, rows, key):
    """One step on these examples; the state and the metrics of that step alone."""
    indices = np.asarray(rows, np.int32)[None]
    arrays = (examples.images, examples.labels, indices, np.int32(1), key)
    state, metrics, _ = compiled_call(1)(state, Metrics.zero(), *arrays)
    return state, metrics


def take(examples, rows):
    return Batch(examples.images[rows], examples.labels[rows])


def run(call, state, examples, steps, count, split):
    """Steps through rows 0, 1, ... of batches; returns the state and its totals."""
    totals = Metrics.zero()
    indices = np.arange(64, dtype=np.int32).reshape(-1, BATCH)
    for first in range(0, steps, count):
        rows = np.resize(indices[first : first + count], (max(count, 1), BATCH))
        rows = split(rows) if split else rows
        state, totals, _ = call(
            state,
            totals,
            examples.images,
            examples.labels,
            rows,
            np.int32(count),
            jax.random.key(3),
        )
    return state, totals


@pytest.fixture(scope="module")
def one_device(examples):
    _, state = start()
    call = compiled_call(1)
    return run(call, state, examples, steps=4, count=1, split=None)


def test_four_devices_give_what_one_gives_on_the_same_global_batch(examples, one_device):
    # Tolerance: the sums over a batch are added in another order, 4 steps long.
    model, state = start(devices.AXIS)
    call = devices.parallel(
        make_train_call(step_of(model, devices.AXIS), steps_per_call=1),
        in_axes=(None, None, None, None, 0, None, None),
    )
    assert jax.device_count() == 4
    state, totals = run(call, state, examples, 4, 1, devices.split)
    chex.assert_trees_all_close(state, one_device[0], atol=2e-5, rtol=2e-5)
    assert int(totals.count) == int(one_device[1].count) == 64
    assert float(totals.loss) == pytest.approx(float(one_device[1].loss), rel=1e-5)


@pytest.mark.slow
def test_vmap_with_an_axis_name_gives_what_one_device_gives(examples, one_device):
    model, state = start("devices")
    step = step_of(model, "devices")
    both = jax.jit(
        jax.vmap(step, in_axes=(None, 0, None), out_axes=None, axis_name="devices", axis_size=4)
    )
    for first in range(0, 64, BATCH):
        rows = np.arange(first, first + BATCH).reshape(4, -1)
        state, _, _ = both(state, take(examples, rows), jax.random.key(3))
    chex.assert_trees_all_close(state, one_device[0], atol=2e-5, rtol=2e-5)


def test_many_steps_in_one_call_give_what_single_steps_give(examples, one_device):
    _, state = start()
    call = compiled_call(4)
    state, totals = run(call, state, examples, 4, 4, None)
    chex.assert_trees_all_close(state, one_device[0], atol=2e-5, rtol=2e-5)
    assert int(totals.count) == 64


def test_a_call_runs_only_the_steps_it_is_told_to(examples, one_device):
    _, state = start()
    call = compiled_call(4)
    indices = np.full((4, BATCH), -1, np.int32)
    indices[:2] = np.arange(2 * BATCH).reshape(2, -1)
    state, totals, _ = call(
        state, Metrics.zero(), examples.images, examples.labels, indices, 2, jax.random.key(3)
    )
    assert int(state.step) == 2
    assert int(totals.count) == 2 * BATCH


@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_a_step_that_is_not_finite_is_not_applied_and_ends_the_call(examples, steps_per_call):
    _, state = start()
    broken = jax.tree.map(lambda leaf: leaf, state.params)
    broken["classifier"]["bias"] = jnp.array([0.0, jnp.nan, 0.0])
    state = state.replace(params=broken)
    call = compiled_call(steps_per_call)
    indices = np.arange(steps_per_call * BATCH, dtype=np.int32).reshape(steps_per_call, BATCH)
    after, totals, health = call(
        state,
        Metrics.zero(),
        examples.images,
        examples.labels,
        indices,
        np.int32(steps_per_call),
        jax.random.key(3),
    )
    assert not bool(health.is_finite())
    assert int(totals.count) == 0
    chex.assert_trees_all_equal(after, state)


def test_the_call_is_traced_once_for_a_whole_run(one_device):
    assert int(one_device[0].step) == 4
    assert TRACES[1] == 1


def test_the_moving_average_is_that_of_parameters_and_statistics(examples):
    _, state = start()
    before = jax.tree.map(np.asarray, state.ema)
    after, _ = take_step(state, examples, np.arange(BATCH), jax.random.key(0))
    wanted = jax.tree.map(
        lambda old, new: EMA_DECAY * old + (1 - EMA_DECAY) * new,
        before,
        {"params": after.params, "batch_stats": after.batch_stats},
    )
    chex.assert_trees_all_close(after.ema, wanted, rtol=1e-6)
    chex.assert_trees_all_equal(after.inference_variables(), dict(after.ema))


def test_augmentation_depends_on_the_step(examples):
    _, state = start()
    rows = np.arange(BATCH)
    _, now = take_step(state, examples, rows, jax.random.key(0))
    _, later = take_step(state.replace(step=jnp.int32(1)), examples, rows, jax.random.key(0))
    assert float(now.loss) != float(later.loss)


@pytest.fixture(scope="module")
def logits(examples):
    model, state = start()
    images = PREPROCESSING.evaluate(jnp.asarray(examples.images))
    return jax.jit(model.apply)(state.inference_variables(), images)


@pytest.mark.parametrize("batch", [64, 24, 20])
def test_evaluation_counts_every_example_once_whatever_the_batch_size(examples, logits, batch):
    model, state = start()
    step = jax.jit(make_eval_step(model, PREPROCESSING))
    totals = Metrics.zero()
    for first in range(0, 64, batch):
        rows = np.arange(first, first + batch, dtype=np.int32)
        rows = np.where(rows < 64, rows, -1)
        totals = step(state.inference_variables(), totals, examples.images, examples.labels, rows)
    assert int(totals.count) == 64
    assert int(totals.correct) == int((logits.argmax(-1) == examples.labels).sum())


def test_training_lowers_the_loss(examples):
    _, state = start()
    losses = []
    for i in range(25):
        rows = np.arange(i * BATCH, (i + 1) * BATCH) % 64
        state, metrics = take_step(state, examples, rows, jax.random.key(0))
        losses.append(float(metrics.loss))
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:3])


def test_a_penalty_of_the_weights_is_added_to_the_loss_but_not_to_the_metrics(examples):
    """The gradient of a penalty's weight decay is that of the loss plus the latent weights."""

    def half_square(w, progress):
        return 0.5 * jnp.sum(w * w) * progress

    clip = ClippedSTE()

    def gradient(penalty, state):
        model = Tiny(method=Method(Quantizer(clip, "layer", penalty=penalty), Quantizer(clip)))
        step = loss_and_gradient(
            model, PREPROCESSING, total_steps=10, label_smoothing=0.0, axis_name=None
        )
        (loss, (_, losses, _)), grads = step(state, take(examples, slice(BATCH)), jax.random.key(1))
        return loss, jnp.mean(losses), grads["conv"]["latent_kernel"]

    # A penalty brings no parameters: the same state is for both.
    _, state = start(method=Method(Quantizer(clip, "layer"), Quantizer(clip)))
    state = state.replace(step=jnp.int32(4))
    (loss, cross_entropy, plain), (penalised, same_cross_entropy, grads) = jax.jit(
        lambda state: (gradient(None, state), gradient(half_square, state))
    )(state)
    w = np.asarray(state.params["conv"]["latent_kernel"])
    assert loss == cross_entropy
    np.testing.assert_allclose(same_cross_entropy, cross_entropy, rtol=1e-6)
    np.testing.assert_allclose(penalised - loss, 0.4 * 0.5 * np.sum(w * w), rtol=1e-5)
    np.testing.assert_allclose(grads, plain + 0.4 * w, rtol=1e-4, atol=1e-6)


def test_a_count_among_the_statistics_has_no_average():
    before = {"mean": jnp.array(1.0), "count": jnp.array(3)}
    made = step._average(before, {"mean": jnp.array(2.0), "count": jnp.array(4)}, 0.75)
    chex.assert_trees_all_equal(made, {"mean": jnp.array(1.25), "count": jnp.array(4)})

"""One step: the same on one device and on four, alone and in a loop; never applied when broken."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fda_jax.layers import BinaryConv
from fda_jax.models.common import batch_norm
from fda_jax.training import devices
from fda_jax.training.metrics import Metrics
from fda_jax.training.state import init_state
from fda_jax.training.step import (
    Batch,
    Preprocessing,
    make_eval_step,
    make_train_call,
    make_train_step,
)

SHAPE = (6, 6, 1)
BATCH = 16
PREPROCESSING = Preprocessing(mean=(0.5,), std=(0.25,), crop_px=1, flip=True)
OPTIMIZER = optax.sgd(0.05, 0.9)


class Tiny(nn.Module):
    """The smallest network with every part that training touches."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, *, train=False, progress=1.0):
        norm = batch_norm(jnp.float32, self.axis_name, train=train)
        x = norm(name="norm1")(nn.Conv(4, (3, 3), name="stem")(images))
        x = BinaryConv(4, method="fda", name="conv")(x, train=train, progress=progress)
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


def start(axis_name=None, with_ema=False):
    model = Tiny(axis_name)
    return model, init_state(model, OPTIMIZER, jax.random.key(0), SHAPE, with_ema=with_ema)


def step_of(model, axis_name=None, **settings):
    return make_train_step(
        model, OPTIMIZER, PREPROCESSING, total_steps=10, axis_name=axis_name, **settings
    )


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
    model, state = start()
    call = jax.jit(make_train_call(step_of(model), steps_per_call=1))
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
    model, state = start()
    call = jax.jit(make_train_call(step_of(model), steps_per_call=4))
    state, totals = run(call, state, examples, 4, 4, None)
    chex.assert_trees_all_close(state, one_device[0], atol=2e-5, rtol=2e-5)
    assert int(totals.count) == 64


def test_a_call_runs_only_the_steps_it_is_told_to(examples, one_device):
    model, state = start()
    call = jax.jit(make_train_call(step_of(model), steps_per_call=4))
    indices = np.full((4, BATCH), -1, np.int32)
    indices[:2] = np.arange(2 * BATCH).reshape(2, -1)
    state, totals, _ = call(
        state, Metrics.zero(), examples.images, examples.labels, indices, 2, jax.random.key(3)
    )
    assert int(state.step) == 2
    assert int(totals.count) == 2 * BATCH


@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_a_step_that_is_not_finite_is_not_applied_and_ends_the_call(examples, steps_per_call):
    model, state = start()
    broken = jax.tree.map(lambda leaf: leaf, state.params)
    broken["classifier"]["bias"] = jnp.array([0.0, jnp.nan, 0.0])
    state = state.replace(params=broken)
    call = jax.jit(make_train_call(step_of(model), steps_per_call=steps_per_call))
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


def test_the_call_is_traced_once_for_a_whole_run(examples):
    chex.clear_trace_counter()
    model, state = start()
    call = make_train_call(step_of(model), steps_per_call=1)
    traced = jax.jit(chex.assert_max_traces(call, n=1))
    state, _ = run(traced, state, examples, 4, 1, None)
    assert int(state.step) == 4


def test_the_moving_average_is_that_of_parameters_and_statistics(examples):
    model, state = start(with_ema=True)
    step = jax.jit(step_of(model, ema_decay=0.75))
    before = jax.tree.map(np.asarray, state.ema)
    after, _, _ = step(state, take(examples, np.arange(BATCH)), jax.random.key(0))
    wanted = jax.tree.map(
        lambda old, new: 0.75 * old + 0.25 * new,
        before,
        {"params": after.params, "batch_stats": after.batch_stats},
    )
    chex.assert_trees_all_close(after.ema, wanted, rtol=1e-6)
    chex.assert_trees_all_equal(after.inference_variables(), dict(after.ema))


def test_augmentation_depends_on_the_step(examples):
    model, state = start()
    step = jax.jit(step_of(model))
    batch = take(examples, np.arange(BATCH))
    _, now, _ = step(state, batch, jax.random.key(0))
    _, later, _ = step(state.replace(step=jnp.int32(1)), batch, jax.random.key(0))
    assert float(now.loss) != float(later.loss)


@pytest.mark.parametrize("batch", [64, 24, 20])
def test_evaluation_counts_every_example_once_whatever_the_batch_size(examples, batch):
    model, state = start()
    step = jax.jit(make_eval_step(model, PREPROCESSING))
    totals = Metrics.zero()
    for first in range(0, 64, batch):
        rows = np.arange(first, first + batch, dtype=np.int32)
        rows = np.where(rows < 64, rows, -1)
        totals = step(state.inference_variables(), totals, examples.images, examples.labels, rows)
    logits = model.apply(
        state.inference_variables(), PREPROCESSING.evaluate(jnp.asarray(examples.images))
    )
    assert int(totals.count) == 64
    assert int(totals.correct) == int((logits.argmax(-1) == examples.labels).sum())


def test_training_lowers_the_loss(examples):
    model, state = start()
    step = jax.jit(step_of(model))
    losses = []
    for _ in range(25):
        state, metrics, _ = step(state, take(examples, np.arange(64)), jax.random.key(0))
        losses.append(float(metrics.loss))
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:3])

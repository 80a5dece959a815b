"""Learning another network's answers, against NumPy and against the loss of the labels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fda_jax.training import diagnostics
from fda_jax.training.losses import distillation
from fda_jax.training.step import Batch, Preprocessing, loss_and_gradient, make_update
from fda_jax.training.teacher import Teacher
from tests.training.test_step import PREPROCESSING, SHAPE, Tiny, initial, start

OURS = np.array([[1.0, 2.0, -1.0], [0.5, 0.1, 0.2], [60.0, -80.0, 0.0]])
THEIRS = np.array([[2.0, 1.0, 0.0], [0.5, 0.1, 0.2], [-3.0, 2.0, 90.0]])
KEY = jax.random.key(1)


def probabilities(logits, temperature):
    shifted = logits / temperature - np.max(logits / temperature, -1, keepdims=True)
    return np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_distillation_is_the_scaled_divergence_of_two_softmaxes(temperature):
    p, q = (probabilities(z, temperature) for z in (THEIRS, OURS))
    terms = np.where(p > 0, p * np.log(np.maximum(p, 1e-300) / np.maximum(q, 1e-300)), 0.0)
    got = distillation(jnp.array(OURS), jnp.array(THEIRS), temperature=temperature)
    np.testing.assert_allclose(got, temperature**2 * terms.sum(-1), rtol=1e-5, atol=1e-6)
    assert float(got[1]) == 0.0


def test_at_a_high_temperature_the_gradient_is_the_difference_of_logits_over_the_classes():
    """Hinton et al. 2015, Eq. 4, for logits without a mean."""
    ours, theirs = (jnp.array(z - z.mean(-1, keepdims=True))[:2] for z in (OURS, THEIRS))
    loss = jax.grad(lambda z: distillation(z, theirs, temperature=300.0).sum())
    gradient = jax.jit(loss)(ours)
    np.testing.assert_allclose(gradient, (ours - theirs) / 3, atol=3e-3)


@functools.cache
def examples():
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (8, *SHAPE), dtype=np.uint8)
    return Batch(jnp.array(images), jnp.array(rng.integers(0, 3, 8), jnp.int32))


@functools.cache
def taught(weight, temperature=2.0):
    """A teacher of another method than the network's, and its variables."""
    state = initial("fda")
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return Teacher(Tiny(), weight, temperature), variables


@functools.cache
def gradient(weight=None):
    """Loss, logits, losses and gradient of a step, with a teacher of this weight if any."""
    model, state = start(method="ste")
    teacher, knowledge = (None, None) if weight is None else taught(weight)
    settings = {"total_steps": 10, "label_smoothing": 0.0, "axis_name": None, "teacher": teacher}
    step = jax.jit(loss_and_gradient(model, PREPROCESSING, **settings))
    (loss, (logits, losses, _)), grads = step(state, examples(), KEY, knowledge)
    return float(loss), np.asarray(logits), np.asarray(losses), grads["conv"]["latent_kernel"]


def test_the_loss_and_its_gradient_are_the_weighted_means_of_labels_and_teacher():
    label, only, both = (gradient(weight) for weight in (None, 1.0, 0.25))
    np.testing.assert_array_equal(label[1], both[1])
    for alone, by_teacher, mixed in ((label[i], only[i], both[i]) for i in (0, 2, 3)):
        np.testing.assert_allclose(mixed, 0.75 * alone + 0.25 * by_teacher, rtol=1e-4, atol=1e-6)
    assert np.max(np.abs(only[3] - label[3])) > 1e-3


def test_the_teacher_sees_the_augmented_images_of_the_step_and_answers_by_inference():
    _, knowledge = taught(1.0)
    _, logits, losses, _ = gradient(1.0)
    images = jax.jit(PREPROCESSING.train)(examples().images, KEY, jnp.arange(8))
    wanted = jax.jit(functools.partial(Tiny().apply, train=False, progress=1.0))(knowledge, images)
    np.testing.assert_allclose(
        losses, distillation(jnp.array(logits), wanted, temperature=2.0), rtol=1e-4, atol=1e-6
    )


@pytest.mark.slow
def test_what_a_look_changes_in_the_network_leaves_a_teacher_of_the_same_layers_alone():
    """The probes flip weights of layers by name; the teacher has layers of these names, too."""
    plain = Preprocessing(PREPROCESSING.mean, PREPROCESSING.std, crop_px=0, flip=False)
    optimizer = optax.sgd(0.1)
    model, state = start(method="ste")
    state = state.replace(opt_state=optimizer.init(state.params))
    teacher, knowledge = taught(1.0)
    settings = {"total_steps": 10, "teacher": teacher}
    given = (state, examples().images, examples().labels, jnp.arange(8)[None], KEY)
    update = make_update(optimizer, ema_decay=0.0)
    diagnose = diagnostics.make_diagnosis(model, update, plain, **settings)
    found, slopes = jax.jit(diagnose)(*given, knowledge)
    one = loss_and_gradient(model, plain, label_smoothing=0.0, axis_name=None, **settings)
    (loss, _), _ = jax.jit(one)(state, examples(), KEY, knowledge)
    np.testing.assert_allclose(found.loss, loss, rtol=1e-5)

    probe = diagnostics.make_probe(model, plain, flipped_share=0.5, **settings)
    measured, _ = jax.jit(probe)(*given, slopes, jax.random.key(2), knowledge)
    images = plain.train(examples().images, KEY, jnp.arange(8))
    answers = teacher.logits(knowledge, images)

    @jax.jit
    def loss_of(factors):
        kernel = state.params["conv"]["latent_kernel"] * factors
        params = {**state.params, "conv": {**state.params["conv"], "latent_kernel": kernel}}
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return jnp.mean(distillation(logits, answers, temperature=2.0))

    first, second = (
        loss_of(factors["conv"]) for factors in diagnostics.two_sets(slopes, jax.random.key(2), 0.5)
    )
    np.testing.assert_allclose(measured, first - second, rtol=1e-3, atol=1e-5)
    assert abs(float(measured)) > 1e-3
